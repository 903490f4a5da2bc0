"""Many dictionaries from one pass measure as each alone; all transcoders at once, against logits of plain torch."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from gemlens.errors import InputError, MismatchError
from gemlens.lm.gemma import activations
from gemlens.records import DENSITY_DECADES, DENSITY_STEPS, series_name
from gemlens.study.activity import density
from gemlens.study.fidelity import fidelities, fidelity, rows_of
from gemlens.study.replacement import sites_of
from gemlens.study.set_fidelity import set_fidelity
from test_fidelity import TEXT, loss_plainly, read_plainly
from test_replacement import ByHand
from tiny import LAYERS, random_clt, random_sae, random_transcoders, tiny_gemma

TEXTS = [TEXT * 4]


@pytest.fixture(scope="module")
def model():
    return tiny_gemma()


@pytest.fixture(scope="module")
def tokens(model):
    return torch.stack([torch.from_numpy(row) for row in rows_of(model, TEXTS)])


@pytest.fixture(scope="module")
def transcoders(model):
    return random_transcoders(model)


# One at a time, from one pass


def test_many_dictionaries_measure_as_each_alone(model, transcoders):
    """Also two of one site, and sites that come before and after each other in a block."""
    saes = [random_sae(model, site, seed=seed) for seed, site in enumerate(["resid_post.3", "attn_out.3", "embed"])]
    given = [*transcoders[4:], *saes, random_sae(model, "resid_post.3", width=24, seed=9)]
    calls = []
    together = fidelities(model, given, TEXTS, mix=[TEXT], report=lambda *at: calls.append(at))
    assert together == [fidelity(model, each, TEXTS, mix=[TEXT]) for each in given]
    assert [each.dictionary for each in together] == [each.info for each in given]
    assert len({each.spliced.ce for each in together}) == len(given)
    assert calls == sorted(calls)
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.module.modules())


def test_a_clt_is_measured_where_it_writes(model, tokens):
    """At layer j: what the features of all layers up to j write there, of a clean pass."""
    clt = random_clt(model)
    found = fidelities(model, [clt], TEXTS)
    assert [(each.dictionary.site, each.writes) for each in found] == [
        (f"mlp_in.{layer}", f"mlp_out.{layer}") for layer in range(LAYERS)
    ]
    by_hand = ByHand(model, clt)
    by_hand.run(tokens, splice=False)
    for layer in (0, 3, 6):
        own, recon = by_hand.own[layer], by_hand.recon[layer]
        y, error = own[:, 1:].flatten(0, 1).double(), (own - recon)[:, 1:].double().pow(2).sum()
        assert found[layer].fvu == pytest.approx(float(error / (y - y.mean(0)).pow(2).sum()), rel=1e-4)
        assert found[layer].l0 == pytest.approx(float((by_hand.acts[layer][:, 1:] > 0).sum(-1).float().mean()))
        module = model.backbone.layers[layer].post_feedforward_layernorm
        spliced = loss_plainly(model, tokens, module, recon).mean()
        assert found[layer].spliced.ce == pytest.approx(float(spliced), rel=1e-4)
        assert found[layer].dictionary.width == 30


def test_a_site_with_a_large_mean_and_outliers_is_measured_exactly(tokens, monkeypatch):
    """Sums over several passes must not cancel: float64 over everything says the same."""
    monkeypatch.setattr("gemlens.study.reconstruction._TOGETHER", 3)
    loud = tiny_gemma()
    with torch.no_grad():
        loud.backbone.embed_tokens.weight += 1000.0
        loud.backbone.embed_tokens.weight[7] *= 40
    site = "resid_post.0"
    sae = random_sae(loud, site)
    result = fidelity(loud, sae, TEXTS)
    x = read_plainly(loud, tokens, loud.backbone.layers[0])[:, 1:].flatten(0, 1)
    error = (x - sae.reconstruct(x)).double().pow(2).sum(dim=1)
    x = x.double()
    norm, deviation = x.norm(dim=1), (x - x.mean(0)).pow(2).sum(dim=1)
    low = norm <= norm.quantile(0.99)
    assert result.fvu == pytest.approx(float(error.sum() / deviation.sum()), rel=1e-6)
    trimmed = 1 - error[low].sum() / (x[low] - x[low].mean(0)).pow(2).sum()
    assert result.variance_explained_trimmed == pytest.approx(float(trimmed), rel=1e-6)
    assert result.high_norm_share == pytest.approx(float(deviation[~low].sum() / deviation.sum()), rel=1e-6)
    tutorial = 1 - error.sum() / x.numel() / x.var()
    assert result.variance_explained_tutorial == pytest.approx(float(tutorial), rel=1e-6)
    assert result.norm_max_over_median == pytest.approx(float(norm.max() / norm.median()))
    by_mean = loss_plainly(loud, tokens, loud.backbone.layers[0], x.mean(0).float().expand(*tokens.shape, 16)).mean()
    assert result.mean_ablated.ce == pytest.approx(float(by_mean), rel=1e-5)


def test_the_density_is_a_count_of_features_by_frequency(model, tokens):
    sae = random_sae(model, "resid_post.3", seed=3)
    sae.threshold[7] = 1e9
    result = fidelity(model, sae, TEXTS)
    x = read_plainly(model, tokens, model.backbone.layers[3])[:, 1:].flatten(0, 1)
    share = (sae.encode(x).dense() > 0).double().mean(dim=0)
    assert result.density.tokens == len(x)
    assert result.density.never == int((share == 0).sum()) >= 1
    bins = DENSITY_DECADES * DENSITY_STEPS
    counts = torch.histc(share[share > 0].log10(), bins, min=-DENSITY_DECADES, max=0)
    assert result.density.counts == tuple(counts.long().tolist())
    assert sum(result.density.counts) + result.density.never == sae.width
    everywhere_once_never = density(torch.tensor([10**7, 1, 0, 0]), 10**7)
    assert everywhere_once_never.never == 2
    assert (everywhere_once_never.counts[-1], everywhere_once_never.counts[0]) == (1, 1)
    in_mix = fidelity(model, sae, TEXTS, mix=[TEXT])
    assert in_mix.density.tokens == in_mix.dead_tokens
    assert in_mix.density.never == round(in_mix.dead * 40)


def test_nothing_to_measure_and_misfits_are_refused(model):
    with pytest.raises(InputError, match="no dictionary"):
        fidelities(model, [], TEXTS)
    wide = tiny_gemma(hidden=20)
    with pytest.raises(MismatchError, match=r"expects 16 numbers at mlp_in\.0, .* has 20"):
        fidelities(wide, [random_clt(model)], TEXTS)
    with pytest.raises(MismatchError, match="layers are 0 to 2"):
        set_fidelity(tiny_gemma(layers=3), random_clt(model), TEXTS)


# All at once


@pytest.mark.parametrize("kind", ["transcoders", "clt"])
def test_all_at_once_against_full_logits(model, tokens, transcoders, kind):
    given = random_clt(model) if kind == "clt" else transcoders
    calls = []
    result = set_fidelity(model, given, TEXTS, report=lambda *at: calls.append(at))
    with torch.no_grad():
        clean = model.module(tokens).logits[:, 1:-1].double()
    spliced = ByHand(model, given).run(tokens)[:, 1:-1].double()
    p, q = clean.softmax(-1), spliced.softmax(-1)
    kl = (p * (p.log() - q.log())).sum(-1)
    assert result.kl == pytest.approx(float(kl.mean()), rel=1e-4)
    assert result.kl_standard_error == pytest.approx(float(kl.mean(1).std() / len(tokens) ** 0.5), rel=1e-3)
    agree = (p.argmax(-1) == q.argmax(-1)).double().mean()
    assert 0 < result.agreement < 1
    assert result.agreement == pytest.approx(float(agree), abs=1e-6)
    losses = [
        torch.stack([F.cross_entropy(row, ids[2:]) for row, ids in zip(scores, tokens, strict=True)])
        for scores in (clean, spliced)
    ]
    assert result.ce_clean == pytest.approx(float(losses[0].mean()), rel=1e-5)
    assert result.spliced.ce == pytest.approx(float(losses[1].mean()), rel=1e-5)
    assert result.spliced.above_clean == pytest.approx(float((losses[1] - losses[0]).mean()), rel=1e-3, abs=1e-5)
    assert result.logit_error <= 1e-4
    assert (result.layers, result.tokens) == (tuple(range(LAYERS)), tokens.numel())
    assert calls == [(done, len(tokens)) for done in range(1, len(tokens) + 1)]


def test_dictionaries_that_reconstruct_everything_change_nothing(model):
    from test_fidelity import identity

    result = set_fidelity(model, [identity(16, f"mlp_out.{layer}") for layer in range(LAYERS)], TEXTS)
    assert result.kl == pytest.approx(0, abs=1e-5)
    assert result.agreement == 1
    assert result.spliced.above_clean == pytest.approx(0, abs=1e-4)


def test_a_set_is_called_by_what_its_transcoders_have_in_common(model, transcoders):
    assert set_fidelity(model, transcoders, TEXTS).name == "transcoder_all/layer_*_width_40_l0_small_affine"
    assert set_fidelity(model, random_clt(model), TEXTS).name == "clt/width_210_l0_small"
    transcoders[2].info, before = replace(transcoders[2].info, path="mine/other"), transcoders[2].info
    try:
        assert set_fidelity(model, transcoders, TEXTS).name == "7 transcoders"
    finally:
        transcoders[2].info = before


@pytest.mark.parametrize(
    ("path", "series"),
    [
        ("resid_post/layer_12_width_4k_l0_medium", "resid_post/layer_*_width_4k_l0_medium"),
        ("layer_20/width_16k/average_l0_71", "layer_*/width_16k/average_l0_71"),
        ("clt/layers_3_5_width_64_l0_small", "clt/layers_3_5_width_64_l0_small"),
        ("mine", "mine"),
    ],
)
def test_series_leave_the_layer_out(path, series):
    assert series_name(path) == series


@pytest.fixture
def all_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    yield
    torch.set_num_threads(before)


def test_the_real_model_all_at_once(starter, all_threads):
    """Transcoders that know a linear map, fitted here to the very rows: near the model without errors, it with them."""
    texts = [TEXT * 3]
    rows = torch.stack([torch.from_numpy(row) for row in rows_of(starter, texts)])[:2]
    transcoders = random_transcoders(starter, width=16)
    found = activations(starter, rows, sites_of(transcoders))
    for each in transcoders:
        x, y = (found[site][:, 1:].flatten(0, 1) for site in (each.reads, each.writes))
        ones = torch.cat([x, torch.ones(len(x), 1)], dim=1)
        solution = torch.linalg.solve(ones.T @ ones + torch.eye(len(ones.T)), ones.T @ y)
        each.skip, each.b_dec = solution[:-1], solution[-1]
        each.threshold = each.threshold + 1e9
    result = set_fidelity(starter, transcoders, texts)
    assert result.logit_error <= 1e-4
    assert 0 < result.kl < 5
    assert 0.1 < result.agreement < 1
    assert result.layers == tuple(range(18))
