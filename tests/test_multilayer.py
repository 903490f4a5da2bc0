"""CLTs and crosscoders compute the published formula, held against the einsum written out.

acts[i]  = relu(pre[i]) * (pre[i] > threshold[i]),  pre[i] = x[i] @ w_enc[i] + b_enc[i]
recon[j] = sum over i (and i <= j in a CLT) of acts[i] @ w_dec[i][:, j] + b_dec[j] (+ x[j] @ skip[j])
"""

from __future__ import annotations

import pytest
import torch

from gemlens.errors import MismatchError
from gemlens.scope.load import load_clt, load_crosscoder
from gemlens.scope.rows import DenseRows
from gemlens.sites import Site, parse_site
from layouts import (
    CLT,
    CROSSCODER,
    LAYERS,
    D,
    random_layers,
    some_x,
    write_circuit_tracer_clt,
    write_layers,
)


def dense(layers, x, *, causal):
    """Activations by layer, and the reconstruction [layers, n, d] by one einsum over padded tensors."""
    width = max(layer["w_enc"].shape[1] for layer in layers)
    acts, decoders = [], []
    for index, layer in enumerate(layers):
        pre = x[index] @ layer["w_enc"] + layer["b_enc"]
        acts.append(torch.relu(pre) * (pre > layer["threshold"]))
        decoder = torch.zeros(width, len(layers), D)
        decoder[: len(layer["w_dec"])] = layer["w_dec"]
        if causal:
            decoder[:, :index] = 0
        decoders.append(decoder)
    padded = torch.stack([torch.nn.functional.pad(each, (0, width - each.shape[1])) for each in acts])
    recon = torch.einsum("inf,ifjd->jnd", padded, torch.stack(decoders))
    recon = recon + torch.stack([layer["b_dec"] for layer in layers])[:, None]
    if "skip" in layers[0]:
        recon = recon + torch.einsum("jnd,jde->jne", x, torch.stack([layer["skip"] for layer in layers]))
    return acts, recon


def by_site(sites, x):
    return dict(zip(sites, x, strict=True))


def clt_at(path, layers, layout):
    if layout == "gemma_scope_2":
        name = CLT if "skip" in layers[0] else CLT.removesuffix("_affine")
        write_layers(path / name, layers)
        return load_clt(str(path), name)
    return load_clt(str(write_circuit_tracer_clt(path / "mine", layers)))


@pytest.fixture(params=["gemma_scope_2", "circuit_tracer"])
def layout(request):
    return request.param


@pytest.mark.parametrize("skip", [False, True])
def test_a_clt_is_the_causal_einsum(tmp_path, layout, skip):
    layers = random_layers(skip=skip)
    clt = clt_at(tmp_path, layers, layout)
    x = torch.stack([some_x(seed=index) for index in range(LAYERS)])
    acts, recon = dense(layers, x, causal=True)
    features = clt.encode(by_site(clt.reads, x))
    for site, expected in zip(clt.reads, acts, strict=True):
        assert expected.count_nonzero()
        torch.testing.assert_close(features[site].dense(), expected)
    made = clt.reconstruct(by_site(clt.reads, x))
    torch.testing.assert_close(torch.stack([made[site] for site in clt.writes]), recon)


def test_whole_numbers_come_out_exactly(tmp_path, layout):
    """Pre-activations hit thresholds and zero all the time; no rounding hides a row that is one off."""
    layers = [{name: (each * 2).round() for name, each in layer.items()} for layer in random_layers(skip=True)]
    clt = clt_at(tmp_path, layers, layout)
    x = torch.stack([some_x(seed=index).round() for index in range(LAYERS)])
    acts, recon = dense(layers, x, causal=True)
    assert all(torch.equal(clt.encode({s: y})[s].dense(), a) for s, y, a in zip(clt.reads, x, acts, strict=True))
    made = clt.reconstruct(by_site(clt.reads, x))
    assert all(torch.equal(made[site], each) for site, each in zip(clt.writes, recon, strict=True))


def test_what_a_clt_writes_to_earlier_layers_is_neither_used_nor_held(tmp_path):
    layers = random_layers(skip=True)
    for index, layer in enumerate(layers):
        layer["w_dec"][:, :index] = 1e30
    write_layers(tmp_path / CLT, layers)
    clt = load_clt(str(tmp_path), CLT)
    assert [clt.layer(site).outputs for site in clt.reads] == [3, 2, 1]
    x = {site: some_x() for site in clt.reads}
    assert all(each.abs().max() < 1e3 for each in clt.reconstruct(x).values())


@pytest.mark.parametrize("skip", [False, True])
def test_a_crosscoder_is_the_full_einsum(tmp_path, skip):
    layers = random_layers(skip=skip, widths=(20, 20, 20))
    write_layers(tmp_path / CROSSCODER, layers)
    crosscoder = load_crosscoder(str(tmp_path), CROSSCODER)
    assert [str(site) for site in crosscoder.reads] == ["resid_post.7", "resid_post.13", "resid_post.17"]
    assert crosscoder.reads == crosscoder.writes
    x = torch.stack([some_x(seed=index) for index in range(LAYERS)])
    _, recon = dense(layers, x, causal=False)
    made = crosscoder.reconstruct(by_site(crosscoder.reads, x))
    torch.testing.assert_close(torch.stack(list(made.values())), recon)
    causal = dense(layers, x, causal=True)[1]
    assert not torch.allclose(recon, causal)
    assert crosscoder.width == 60


def test_a_layer_is_decoded_from_the_layers_that_write_it(tmp_path):
    layers = random_layers(skip=True)
    write_layers(tmp_path / CLT, layers)
    clt = load_clt(str(tmp_path), CLT)
    x = some_x()
    first, second = clt.reads[:2]
    features = clt.encode({first: x, second: x})
    _, recon = dense(layers, torch.stack([x] * 3), causal=True)
    torch.testing.assert_close(clt.decode(features, clt.writes[1]), recon[1] - x @ layers[1]["skip"])
    with pytest.raises(MismatchError, match=r"needs the features of mlp_in\.2 to write mlp_out\.2"):
        clt.decode(features, clt.writes[2])
    with pytest.raises(MismatchError, match=r"does not write resid_post\.0; it writes mlp_out\.0, mlp_out\.1"):
        clt.decode(features, parse_site("resid_post.0"))
    with pytest.raises(MismatchError, match=r"does not read mlp_in\.3"):
        clt.encode({Site(3, "mlp_in"): x})
    for shape in [(3, D + 1), (D,), (1, 2, D)]:
        with pytest.raises(MismatchError, match=r"reads mlp_in\.0 as \[tokens, 6\], got"):
            clt.encode({first: torch.zeros(shape)})


def test_decoding_reads_active_rows_only(tmp_path, monkeypatch):
    write_layers(tmp_path / CLT, random_layers(skip=True))
    clt = load_clt(str(tmp_path), CLT)
    features = clt.encode({site: some_x(1) for site in clt.reads})
    asked = []
    add = DenseRows.weighted_sum
    monkeypatch.setattr(
        DenseRows, "weighted_sum", lambda self, ids, *rest: (asked.append(ids), add(self, ids, *rest))[1]
    )
    clt.decode(features, clt.writes[2])
    # Three, two and one outputs a feature: the last of each.
    expected = [features[site].ids * n + n - 1 for site, n in zip(clt.reads, (3, 2, 1), strict=True)]
    assert [each.tolist() for each in asked] == [each.tolist() for each in expected]


def test_silence_and_no_tokens(tmp_path):
    layers = random_layers(skip=True)
    for layer in layers:
        layer["threshold"] += 1e6
    write_layers(tmp_path / CLT, layers)
    clt = load_clt(str(tmp_path), CLT)
    x = {site: some_x(4) for site in clt.reads}
    for index, site in enumerate(clt.writes):
        assert torch.equal(clt.decode(clt.encode(x), site), layers[index]["b_dec"].expand(4, -1))
    nothing = clt.reconstruct({site: torch.zeros(0, D) for site in clt.reads})
    assert {tuple(each.shape) for each in nothing.values()} == {(0, D)}


def test_what_a_clt_says_of_itself(tmp_path, layout):
    clt = clt_at(tmp_path, random_layers(skip=True), layout)
    read = "mlp_in" if layout == "gemma_scope_2" else "resid_mid"
    assert [str(site) for site in clt.reads] == [f"{read}.{index}" for index in range(3)]
    assert [str(site) for site in clt.writes] == [f"mlp_out.{index}" for index in range(3)]
    assert (len(clt), clt.width, clt.is_transcoder, clt.info.width) == (3, 51, True, 51)
    numbers = sum(w * (D + 2 + D * n) + D + D * D for w, n in zip((20, 14, 17), (3, 2, 1), strict=True))
    assert clt.nbytes == 4 * numbers
    assert not clt.reconstruct({site: some_x().requires_grad_() for site in clt.reads})[clt.writes[0]].requires_grad
