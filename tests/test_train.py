"""Training: the objective against its formula, the stream, folding, and recovery of planted features."""

import pytest
import torch
from torch.nn import functional as F

from gemlens.errors import InputError, NotFoundError, WeightsError
from gemlens.records import DictionaryInfo
from gemlens.train.fit import FitConfig, _fold, _threshold, fit
from gemlens.train.objective import auxiliary_loss, batch_top_k, reconstruction_loss, token_weights
from gemlens.train.stream import ShuffledStream

INFO = DictionaryInfo("here", "resid_post", "planted", "resid_post.1", 1, 64, None)


def planted(tokens, *, features=48, d=32, active=3, seed=0):
    """Sparse combinations of known directions, off centre and far from unit scale, as residuals are."""
    fixed, generator = torch.Generator().manual_seed(99), torch.Generator().manual_seed(seed)
    directions = F.normalize(torch.randn(features, d, generator=fixed), dim=1)
    chosen = torch.rand(tokens, features, generator=generator).topk(active, dim=1).indices
    strengths = torch.zeros(tokens, features).scatter(1, chosen, 1 + torch.rand(tokens, active, generator=generator))
    offset = 5 * torch.randn(d, generator=fixed)
    return 300 * (strengths @ directions + offset), directions


def batches(chunks, **settings):
    site = small().place
    stream = ShuffledStream(lambda first: ({site: x} for x in chunks[first:]), batch=256, **settings)
    return (batch[site] for batch in stream)


def small(**changes):
    settings = {
        "site": "resid_post.1", "width": 64, "l0": 3, "tokens": 800 * 256, "batch": 256, "warmup": 20,
        "dead_after": 10_000, "dead_k": 16, "sample": 4096,
    }  # fmt: skip
    return FitConfig(**{**settings, **changes})


def test_batch_top_k_keeps_the_largest_of_the_batch():
    for width in (64, 3000):
        pre = torch.randn(100, width)
        kept, cut = batch_top_k(pre, 4)
        expected = pre.flatten().topk(400).values
        assert torch.equal(kept[kept > 0].sort(descending=True).values, expected)
        assert cut == expected.min()


def test_batch_top_k_keeps_no_negative_ones():
    kept, _ = batch_top_k(-torch.rand(10, 8), 4)
    assert not kept.any()


def test_token_weights_limit_only_tokens_of_high_norm():
    x = torch.ones(5, 4)
    x[3] *= 10
    assert token_weights(x, 4.0).tolist() == pytest.approx([1, 1, 1, 0.04, 1])


def test_reconstruction_loss_is_the_weighted_mean_square():
    error, weights = torch.randn(7, 5), torch.rand(7)
    by_hand = sum(w * (e @ e) / 5 for w, e in zip(weights, error, strict=True)) / 7
    torch.testing.assert_close(reconstruction_loss(error, weights), by_hand)


def test_auxiliary_loss_leaves_the_living_alone():
    pre, w_dec = torch.randn(6, 9, requires_grad=True), torch.randn(9, 5, requires_grad=True)
    error = torch.randn(6, 5, requires_grad=True)
    auxiliary_loss(pre, w_dec, error, torch.ones(6), k=3).backward()
    assert error.grad is None
    assert (pre.grad != 0).sum(dim=1).max() <= 3


def test_folding_moves_centre_and_scale_into_the_weights():
    torch.manual_seed(0)
    w_enc, b_enc = torch.randn(8, 20), torch.randn(20)
    w_dec, b_dec = F.normalize(torch.randn(20, 8), dim=1), torch.randn(8)
    mean, scale, threshold = 100 * torch.randn(8), 0.01, 0.5
    x = mean + 100 * torch.randn(50, 8)
    sae = _fold([w_enc, b_enc, w_dec, b_dec], threshold, mean, scale, small().place, INFO)
    z = (x - mean) * scale
    pre = z @ w_enc + b_enc
    acts = pre * (pre > threshold)
    torch.testing.assert_close(sae.encode(x).dense(), acts / scale, rtol=1e-3, atol=1e-2)
    torch.testing.assert_close(sae.reconstruct(x), (acts @ w_dec + b_dec) / scale + mean, rtol=1e-4, atol=1e-2)
    torch.testing.assert_close(sae.decoder.rows(torch.arange(20)).norm(dim=1), torch.ones(20))


def test_threshold_gives_the_l0_that_was_asked_for():
    torch.manual_seed(0)
    x, w_enc, b_enc = torch.randn(3000, 8), torch.randn(8, 64), torch.zeros(64)
    threshold = _threshold(x, [w_enc, b_enc], small(l0=5))
    assert (x @ w_enc > threshold).float().sum(dim=1).mean() == pytest.approx(5, abs=0.01)


def test_planted_features_are_recovered():
    x, directions = planted(110_000)
    stream = batches(x.repeat(2, 1).split(5000), buffer=50_000, seed=1)
    seen = []
    sae = fit(stream, small(), info=INFO, report=seen.append)
    rows = sae.decoder.rows(torch.arange(64))
    best = (directions @ rows.T).max(dim=1).values
    assert (best >= 0.9).float().mean() >= 0.9
    fresh, _ = planted(5000, seed=1)
    features = sae.encode(fresh)
    assert features.l0.float().mean() == pytest.approx(3, rel=0.2)
    residual = (fresh - sae.decode(features)).pow(2).sum() / (fresh - fresh.mean(0)).pow(2).sum()
    assert residual < 0.1
    assert [at.step for at in seen] == list(range(1, 801))


def test_training_twice_gives_the_same_weights():
    x, _ = planted(20_000)
    first, second = (
        fit(batches(x.split(1000)), small(tokens=5120), info=INFO) for _ in range(2)
    )  # fmt: skip
    assert torch.equal(first.encoder.rows(torch.arange(64)), second.encoder.rows(torch.arange(64)))
    assert torch.equal(first.threshold, second.threshold)
    unnamed = fit(x[:2560].split(256), small(tokens=2560))
    assert (unnamed.info.site, unnamed.info.id) == ("resid_post.1", "layer_1_width_64_l0_3")


def test_too_little_text_is_refused():
    x, _ = planted(2560)
    with pytest.raises(InputError, match="2,560 tokens"):
        fit(x.split(256), small(tokens=256 * 20), info=INFO)
    with pytest.raises(InputError, match="empty"):
        fit([], small(), info=INFO)


def test_a_loss_gone_to_nan_stops_the_run():
    x, _ = planted(10 * 256)
    x[1500] = float("nan")
    with pytest.raises(WeightsError, match="step"):
        fit(x.split(256), small(tokens=10 * 256, sample=256), info=INFO)


@pytest.mark.parametrize(
    ("changes", "error"),
    [({"width": 0}, InputError), ({"l0": 65}, InputError), ({"l0": 0}, InputError), ({"tokens": 10}, InputError),
     ({"site": "resid_pots.1"}, NotFoundError)],
)  # fmt: skip
def test_config_refuses_what_cannot_be_trained(changes, error):
    with pytest.raises(error):
        small(**changes)
