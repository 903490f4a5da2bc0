"""Fidelity: known dictionaries have known figures; every formula again, written out with plain torch."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from gemlens.errors import InputError, MismatchError
from gemlens.sites import Site, parse_site
from gemlens.study.activity import activity
from gemlens.study.fidelity import fidelities, fidelity, rows_of
from gemlens.study.verdict import verdict
from tiny import random_sae, sae_of, tiny_gemma

# Written for this test: ordinary prose, some of it repeated, about 20 rows of 128 tiny tokens.
TEXT = (
    "The lamp in the harbour went out at nine, and the man who kept it walked home along the wall. He had wanted to "
    "tell somebody about the light he saw in the water, but there was nobody to tell; the boats were in, the doors "
    "were shut, and the rain had begun. In the morning he wrote it down instead: a green light, low, moving against "
    "the wind, and gone when he lifted his hand. "
)


@pytest.fixture(scope="module")
def model():
    return tiny_gemma()


@pytest.fixture(scope="module")
def tokens(model):
    return torch.stack([torch.from_numpy(row) for row in rows_of(model, [TEXT * 6])])


def identity(d, site, writes=None):
    """Two features a dimension, one for each sign: reconstructs everything."""
    eye = torch.eye(d)
    tensors = {
        "w_enc": torch.cat([eye, -eye], dim=1), "w_dec": torch.cat([eye, -eye]), "b_enc": torch.zeros(2 * d),
        "b_dec": torch.zeros(d), "threshold": torch.zeros(2 * d),
    }  # fmt: skip
    return sae_of(tensors, parse_site(site), writes)


def silent(d, site, b_dec):
    """No feature ever fires: the reconstruction is ``b_dec``."""
    tensors = {
        "w_enc": torch.zeros(d, 5), "w_dec": torch.zeros(5, d), "b_enc": torch.zeros(5), "b_dec": b_dec,
        "threshold": torch.ones(5),
    }  # fmt: skip
    return sae_of(tensors, parse_site(site))


def read_plainly(model, tokens, module, side="output"):
    """[rows, n, d] at a module, with a plain torch hook."""
    found = []
    if side == "output":
        handle = module.register_forward_hook(
            lambda _m, _i, out: found.append(out[0] if isinstance(out, tuple) else out)
        )
    else:
        handle = module.register_forward_pre_hook(lambda _m, args: found.append(args[0]))
    with torch.no_grad():
        model.module(tokens)
    handle.remove()
    return found[0]


def loss_plainly(model, tokens, module=None, value=None):
    """Row losses of predictions made at positions 1 to n - 2, ``value`` put at positions 1 and up."""

    def replace(_module, _inputs, output):
        old = output[0] if isinstance(output, tuple) else output
        new = torch.cat([old[:, :1], value[:, 1:]], dim=1)
        return (new, *output[1:]) if isinstance(output, tuple) else new

    handle = module.register_forward_hook(replace) if module is not None else None
    with torch.no_grad():
        scores = model.module(tokens).logits
    if handle:
        handle.remove()
    losses = [F.cross_entropy(row[1:-1], ids[2:]) for row, ids in zip(scores, tokens, strict=True)]
    return torch.stack(losses)


@pytest.mark.parametrize("site", ["resid_post.3", "resid_post.6", "mlp_out.2", "attn_out.4"])
def test_a_dictionary_that_reconstructs_everything_costs_nothing(model, site):
    d = 24 if site.startswith("attn") else 16
    result = fidelity(model, identity(d, site), [TEXT * 6])
    assert result.variance_explained == pytest.approx(1, abs=1e-9)
    assert result.spliced.above_clean == pytest.approx(0, abs=1e-5)
    assert result.cosine == pytest.approx(1, abs=1e-6)
    assert result.l0 == pytest.approx(d)
    assert result.ce_recovered == pytest.approx(1, abs=1e-3)
    assert any(sentence.startswith("good") for sentence in result.verdict)


def test_figures_against_their_formulas(model, tokens):
    sae = random_sae(model, "resid_post.3", seed=3)
    result = fidelity(model, sae, [TEXT * 6])
    block = model.module.model.layers[3]
    whole = read_plainly(model, tokens, block)
    x = whole[:, 1:].flatten(0, 1).double()
    recon = sae.reconstruct(x.float()).double()
    mean = x.mean(dim=0)
    error, deviation = (x - recon).pow(2).sum(), (x - mean).pow(2).sum()
    assert result.tokens_measured == tokens.numel()
    assert result.variance_explained == pytest.approx(float(1 - error / deviation), rel=1e-5)
    assert result.fvu == pytest.approx(float(error / deviation), rel=1e-5)
    tutorial = 1 - ((recon - x) ** 2).mean() / x.var()
    assert result.variance_explained_tutorial == pytest.approx(float(tutorial), rel=1e-5)
    assert result.cosine == pytest.approx(float(F.cosine_similarity(x, recon).mean()), rel=1e-5)
    assert result.l0 == pytest.approx(float(sae.encode(x.float()).l0.float().mean()))
    assert result.l0_at_bos == pytest.approx(float(sae.encode(whole[:, 0]).l0.float().mean()))
    norm = x.norm(dim=1)
    low = x[norm <= norm.quantile(0.99)]
    low_error = (low - sae.reconstruct(low.float()).double()).pow(2).sum()
    trimmed = 1 - low_error / (low - low.mean(0)).pow(2).sum()
    assert result.variance_explained_trimmed == pytest.approx(float(trimmed), rel=1e-4)

    clean = loss_plainly(model, tokens)
    edits = {
        "spliced": sae.reconstruct(whole.flatten(0, 1)).view_as(whole),
        "zeroed": torch.zeros_like(whole),
        "mean_ablated": mean.float().expand_as(whole),
    }
    assert result.ce_clean == pytest.approx(float(clean.mean()), rel=1e-5)
    for name, value in edits.items():
        difference = (loss_plainly(model, tokens, block, value) - clean).double()
        got = getattr(result, name)
        assert got.above_clean == pytest.approx(float(difference.mean()), rel=1e-3, abs=1e-5)
        assert got.standard_error == pytest.approx(float(difference.std() / len(tokens) ** 0.5), rel=1e-3)
    recovered = 1 - result.spliced.above_clean / result.mean_ablated.above_clean
    assert result.ce_recovered_mean == pytest.approx(recovered)


def test_the_mean_alone_explains_nothing_but_flatters_the_tutorial(model, tokens):
    x = read_plainly(model, tokens, model.module.model.layers[3])[:, 1:].flatten(0, 1)
    result = fidelity(model, silent(16, "resid_post.3", x.mean(dim=0)), [TEXT * 6])
    assert result.variance_explained == pytest.approx(0, abs=1e-5)
    assert result.variance_explained_tutorial == pytest.approx(result.variance_explained_tutorial_of_mean, abs=1e-6)
    assert result.spliced.above_clean == pytest.approx(result.mean_ablated.above_clean, rel=1e-4)
    assert result.silent == 1
    assert result.l0 == 0
    assert any("WRONG SITE OR SCALE" in sentence for sentence in result.verdict)


def test_a_transcoder_is_held_against_the_mlp_output(model, tokens):
    """Reads mlp_in, writes mlp_out: with a skip alone its reconstruction is ``x @ skip + b_dec``."""
    sae = silent(16, "mlp_in.2", torch.randn(16, generator=torch.Generator().manual_seed(1)))
    sae.writes = Site(2, "mlp_out")
    sae.skip = torch.randn(16, 16, generator=torch.Generator().manual_seed(0)) / 4
    result = fidelity(model, sae, [TEXT * 6])
    block = model.module.model.layers[2]
    x = read_plainly(model, tokens, block.pre_feedforward_layernorm)
    y = read_plainly(model, tokens, block.post_feedforward_layernorm)
    recon = x @ sae.skip + sae.b_dec
    error = (y - recon)[:, 1:].double().pow(2).sum()
    target = y[:, 1:].flatten(0, 1).double()
    assert result.fvu == pytest.approx(float(error / (target - target.mean(0)).pow(2).sum()), rel=1e-5)
    spliced = loss_plainly(model, tokens, block.post_feedforward_layernorm, recon).mean()
    assert result.spliced.ce == pytest.approx(float(spliced), rel=1e-4)
    assert result.writes == "mlp_out.2"


@pytest.mark.parametrize("writes", ["mlp_in.2", "mlp_out.2"])
def test_the_best_linear_map_of_as_many_directions(model, tokens, writes):
    """Of an SAE PCA, of a transcoder that of what least squares predicts; BOS has no part in it."""
    sae = random_sae(model, "mlp_in.2", seed=3)
    sae.writes = parse_site(writes)
    sae.threshold += 2
    result = fidelity(model, sae, [TEXT * 6])
    block = model.module.model.layers[2]
    norms = {"mlp_in.2": block.pre_feedforward_layernorm, "mlp_out.2": block.post_feedforward_layernorm}
    x, y = (read_plainly(model, tokens, norms[site])[:, 1:].flatten(0, 1).double() for site in ("mlp_in.2", writes))
    assert result.l0 == pytest.approx(float(sae.encode(x.float()).l0.float().mean()))
    x, y = x - x.mean(0), y - y.mean(0)
    predicted = x @ torch.linalg.lstsq(x, y).solution
    u, s, vh = torch.linalg.svd(predicted, full_matrices=False)
    rank = round(result.l0)
    assert 0 < rank < 16
    best = (u[:, :rank] * s[:rank]) @ vh[:rank]
    whole = float(y.pow(2).sum())
    assert result.variance_explained_pca == pytest.approx(1 - float((y - best).pow(2).sum()) / whole, rel=1e-5)
    if writes == "mlp_in.2":
        assert result.variance_explained_linear is None
    else:
        assert result.variance_explained_linear == pytest.approx(float(predicted.pow(2).sum()) / whole, rel=1e-5)


def test_a_wrong_site_is_said_in_words(model, tokens):
    """The identity of a site 100 times larger: features fire, but nothing fits."""
    sae = identity(16, "resid_post.3")
    sae.decoder.weight *= 100
    result = fidelity(model, sae, [TEXT * 6])
    assert result.variance_explained < 0
    assert result.verdict[0].startswith("WRONG SITE OR SCALE")


def test_a_reconstruction_worse_than_the_mean_is_said_so(model):
    """Not as a negative share recovered."""
    good = fidelity(model, identity(16, "resid_post.3"), [TEXT * 6])
    costs = {"spliced": 3.0, "mean_ablated": 2.0, "zeroed": 9.0}
    edited = {name: replace(getattr(good, name), above_clean=nats) for name, nats in costs.items()}
    sentence = verdict(replace(good, **edited)).verdict[0]
    assert sentence.startswith("poor: ")
    assert "more than replacing resid_post.3 by its mean does (2.000)" in sentence
    assert "%" not in sentence


def test_hooks_are_gone_and_progress_is_whole(model, tokens):
    calls = []
    fidelity(model, identity(16, "resid_post.3"), [TEXT * 6], report=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (2 * len(tokens), 2 * len(tokens))
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.module.modules())


def test_dead_features_are_counted_on_the_training_mix(model):
    """Text that a feature fires on in the mix, though it is silent on the measured text."""
    sae = random_sae(model, "resid_post.3", seed=3)
    sae.threshold[7] = 1e9
    result = fidelity(model, sae, [TEXT], mix=[TEXT * 3])
    assert result.dead_tokens == (len(list(rows_of(model, [TEXT * 3])))) * 127
    assert 1 / 40 <= result.dead <= result.silent
    assert fidelity(model, sae, [TEXT]).dead is None


def test_the_cross_entropy_of_fewer_rows(model, tokens):
    sae = random_sae(model, "resid_post.3", seed=3)
    (result,) = fidelities(model, [sae], [TEXT * 6], loss_rows=5)
    assert result.ce_tokens == 5 * 128
    assert result.ce_clean == pytest.approx(float(loss_plainly(model, tokens[:5]).mean()), rel=1e-5)
    assert result.l0 == fidelity(model, sae, [TEXT * 6]).l0


def test_too_little_text_and_other_models_are_refused(model):
    with pytest.raises(InputError, match="0 rows"):
        fidelity(model, identity(16, "resid_post.3"), ["short"])
    with pytest.raises(MismatchError, match="16"):
        fidelity(model, identity(20, "resid_post.3"), [TEXT * 6])


def test_activity_counts_and_maxima():
    sae = identity(4, "resid_post.0")
    x = torch.tensor([[1.0, -2, 0, 0], [3, 0, 0, 0], [9, 9, 9, 9]])
    seen = activity(sae, x.split(1), tokens=2)
    assert seen.tokens == 2
    assert seen.fired.tolist() == [2, 0, 0, 0, 0, 1, 0, 0]
    assert seen.max_activation.tolist() == [3, 0, 0, 0, 0, 2, 0, 0]
    assert seen.dead == 6 / 8
