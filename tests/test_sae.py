"""A dictionary computes the published formula: exactly which features fire, and their values to rounding.

pre   = x @ w_enc + b_enc
acts  = relu(pre) * (pre > threshold)
recon = acts @ w_dec + b_dec (+ x @ affine_skip_connection)
"""

from __future__ import annotations

import pytest
import torch

from gemlens.errors import MismatchError
from gemlens.scope import sparse
from gemlens.scope.features import Features
from gemlens.scope.rows import DenseRows, Rows
from gemlens.sites import Site, parse_site
from tiny import random_tensors, sae_of

READS = Site(2, "resid_post")
D, WIDTH = 16, 60


def published(tensors, x):
    """The formula, written out in dense matrices: activations and reconstruction."""
    pre = x @ tensors["w_enc"] + tensors["b_enc"]
    acts = torch.relu(pre) * (pre > tensors["threshold"])
    recon = acts @ tensors["w_dec"] + tensors["b_dec"]
    if (skip := tensors.get("affine_skip_connection")) is not None:
        recon = recon + x @ skip
    return acts, recon


def whole_numbers(tensors):
    """Small integers, on which float32 is exact in any order of summation."""
    return {name: (tensor * 2).round() for name, tensor in tensors.items()}


def random_x(n, *, d=D, seed=1):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=[DenseRows.BLOCK, 7, WIDTH, 1], ids=lambda block: f"block{block}")
def block(request, monkeypatch):
    """Features that are encoded together."""
    monkeypatch.setattr(DenseRows, "BLOCK", request.param)


@pytest.fixture(params=[1024, 3], ids=lambda n: f"chunk{n}")
def chunk(request, monkeypatch):
    """Tokens that are encoded together."""
    monkeypatch.setattr(sparse, "_TOGETHER", request.param)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("d_out", [D, 11])
def test_the_published_formula_on_random_weights(seed, skip, d_out, block, chunk):
    tensors, x = random_tensors(D, WIDTH, d_out=d_out, skip=skip, seed=seed), random_x(8, seed=seed + 100)
    sae = sae_of(tensors, READS, Site(2, "mlp_out"))
    acts, recon = published(tensors, x)
    features = sae.encode(x)
    assert 0 < (acts > 0).float().mean() < 0.9
    assert torch.equal(features.dense() > 0, acts > 0)
    torch.testing.assert_close(features.dense(), acts)
    torch.testing.assert_close(sae.reconstruct(x), recon)
    without_skip = recon - x @ tensors["affine_skip_connection"] if skip else recon
    torch.testing.assert_close(sae.decode(features), without_skip)


@pytest.mark.parametrize("seed", range(8))
def test_whole_numbers_come_out_exactly(seed, block, chunk):
    """Pre-activations hit the threshold, zero and each other all the time here."""
    tensors = whole_numbers(random_tensors(D, WIDTH, skip=True, seed=seed))
    tensors["threshold"] -= 2  # some negative, some zero
    x = random_x(9, seed=seed).round()
    pre = x @ tensors["w_enc"] + tensors["b_enc"]
    assert (pre == tensors["threshold"]).any()
    assert (pre == 0).any()
    acts, recon = published(tensors, x)
    sae = sae_of(tensors, READS)
    features = sae.encode(x)
    assert torch.equal(features.dense(), acts)
    assert torch.equal(features.l0, (acts > 0).sum(-1))
    assert (features.values > 0).all()
    assert torch.equal(sae.reconstruct(x), recon)


@pytest.mark.parametrize(
    ("threshold", "pre", "expected"),
    [
        (1.0, 1.0, 0.0),  # equal is not above
        (1.0, 1.0000001, 1.0000001),
        (1.0, 0.9999999, 0.0),
        (0.0, 0.0, 0.0),
        (0.0, 1e-40, 1e-40),
        (-1.0, -0.5, 0.0),  # above a negative threshold, and still cut by the relu
        (-1.0, 0.0, 0.0),
        (-1.0, 0.5, 0.5),
        (3e38, 3.1e38, 3.1e38),
    ],
)
def test_the_jump(threshold, pre, expected):
    tensors = {
        "w_enc": torch.zeros(1, 1),
        "w_dec": torch.ones(1, 1),
        "b_enc": torch.tensor([pre]),
        "b_dec": torch.zeros(1),
        "threshold": torch.tensor([threshold]),
    }
    features = sae_of(tensors, READS).encode(torch.zeros(1, 1))
    assert features.dense().item() == torch.tensor(expected).item()
    assert features.l0.item() == (expected > 0)


def test_ids_ascend_within_each_token(block, chunk):
    features = sae_of(random_tensors(D, WIDTH), READS).encode(random_x(8))
    for token in range(8):
        ids, _ = features.row(token)
        assert torch.equal(ids, ids.sort().values)


def test_tokens_without_any_feature(block, chunk):
    tensors, x = random_tensors(D, WIDTH), random_x(6)
    tensors["threshold"] += 1e6
    silent = sae_of(tensors, READS)
    features = silent.encode(x)
    assert features.l0.tolist() == [0] * 6
    assert torch.equal(silent.reconstruct(x), tensors["b_dec"].expand(6, -1))
    # A single loud token between silent ones.
    tensors["threshold"] -= 1e6
    x[[0, 1, 3, 4, 5]] = 0
    tensors["b_enc"] = -torch.ones(WIDTH)
    sae = sae_of(tensors, READS)
    acts, recon = published(tensors, x)
    assert sae.encode(x).l0.tolist() == (acts > 0).sum(-1).tolist()
    assert sae.encode(x).l0.count_nonzero() == 1
    torch.testing.assert_close(sae.reconstruct(x), recon)


def test_the_reconstruction_of_silence_is_not_the_weights_themselves():
    tensors = random_tensors(D, WIDTH)
    tensors["threshold"] += 1e6
    sae = sae_of(tensors, READS)
    before = sae.b_dec.clone()
    sae.reconstruct(random_x(2)).add_(1)
    assert torch.equal(sae.b_dec, before)


def test_no_tokens_at_all(block, chunk):
    sae = sae_of(random_tensors(D, WIDTH, d_out=5, skip=True), READS)
    features = sae.encode(torch.zeros(0, D))
    assert (len(features), features.dense().shape) == (0, (0, WIDTH))
    assert sae.reconstruct(torch.zeros(0, D)).shape == (0, 5)


def test_more_tokens_than_are_encoded_together():
    tensors, x = random_tensors(D, WIDTH), random_x(2 * sparse._TOGETHER + 5)
    acts, recon = published(tensors, x)
    sae = sae_of(tensors, READS)
    features = sae.encode(x)
    assert torch.equal(features.dense() > 0, acts > 0)
    torch.testing.assert_close(features.dense(), acts)
    torch.testing.assert_close(sae.decode(features), recon)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_activations_are_taken_to_the_dictionarys_dtype(dtype):
    """A model in bfloat16 hands over bfloat16; the arithmetic stays in the dictionary's float32."""
    tensors, x = random_tensors(D, WIDTH, skip=True), random_x(5).to(dtype)
    sae = sae_of(tensors, READS)
    acts, recon = published(tensors, x.float())
    features = sae.encode(x)
    assert features.values.dtype == torch.float32
    torch.testing.assert_close(features.dense(), acts)
    torch.testing.assert_close(sae.reconstruct(x), recon)


def test_a_dictionary_in_bfloat16_computes_in_bfloat16():
    tensors, x = random_tensors(D, WIDTH, skip=True), random_x(5)
    sae = sae_of({name: tensor.bfloat16() for name, tensor in tensors.items()}, READS)
    _, recon = published(tensors, x)
    assert sae.encode(x).values.dtype == torch.bfloat16
    assert sae.reconstruct(x).dtype == torch.bfloat16
    torch.testing.assert_close(sae.reconstruct(x).float(), recon, rtol=0.1, atol=1.0)


def test_the_skip_is_applied_to_the_input_from_the_left():
    """``x @ S`` with S [d_in, d_out]; peers have it transposed, which only d_in != d_out or S != S.T shows."""
    tensors = {name: torch.zeros_like(tensor) for name, tensor in random_tensors(2, 3, skip=True).items()}
    tensors["affine_skip_connection"] = torch.tensor([[0.0, 1.0], [0.0, 0.0]])
    sae = sae_of(tensors, parse_site("mlp_in.2"), parse_site("mlp_out.2"))
    assert sae.reconstruct(torch.tensor([[5.0, 7.0]])).tolist() == [[0.0, 5.0]]


@pytest.mark.parametrize("shape", [(3, D + 1), (3, D - 1), (D,), (1, 3, D), (0,), (0, 3)])
def test_what_is_not_tokens_by_d_is_refused(shape):
    with pytest.raises(MismatchError, match=rf"handmade reads resid_post\.2 as \[tokens, {D}\], got \["):
        sae_of(random_tensors(D, WIDTH), READS).encode(torch.zeros(shape))


def test_what_a_dictionary_says_of_itself():
    tensors = random_tensors(D, WIDTH, d_out=5, skip=True)
    transcoder = sae_of(tensors, Site(2, "mlp_in"), Site(2, "mlp_out"))
    assert (transcoder.width, transcoder.d_in, transcoder.d_out) == (WIDTH, D, 5)
    assert transcoder.is_transcoder
    assert not sae_of(random_tensors(D, WIDTH), READS).is_transcoder
    assert transcoder.nbytes == 4 * sum(tensor.numel() for tensor in tensors.values())


@pytest.mark.parametrize("way", [DenseRows, Rows], ids=["from the matrix", "of rows asked for"])
def test_decoding_reads_the_active_rows_only(monkeypatch, way):
    """The others hold NaN, which any product with them would spread."""
    monkeypatch.setattr(DenseRows, "weighted_sum", way.weighted_sum)
    features = Features(torch.tensor([0, 2, 2, 3]), torch.tensor([4, 9, 4]), torch.tensor([1.0, 2.0, 3.0]), WIDTH)
    tensors = random_tensors(D, WIDTH)
    expected = features.dense() @ tensors["w_dec"] + tensors["b_dec"]
    silent = [feature for feature in range(WIDTH) if feature not in (4, 9)]
    tensors["w_dec"][silent] = torch.nan
    torch.testing.assert_close(sae_of(tensors, READS).decode(features), expected)


def test_arithmetic_keeps_no_gradients():
    sae = sae_of(random_tensors(D, WIDTH, skip=True), READS)
    assert not sae.reconstruct(random_x(2).requires_grad_()).requires_grad
