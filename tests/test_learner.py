"""Training: planted features are recovered, folding is exact, restoring goes on to the bit, bad input stops."""

import pytest
import torch

from gemlens.errors import InputError, MismatchError, WeightsError
from gemlens.scope.multilayer import MultiLayer
from gemlens.sites import parse_site
from gemlens.train.fit import fit
from gemlens.train.learner import Learner
from planted import ACTIVE, FEATURES, INFO, D, decoder, directions, planted, recovered, small, strengths

SITE = parse_site("resid_post.1")


def sites(*names):
    return [parse_site(name) for name in names]


@pytest.mark.parametrize("activation", ["jumprelu", "batchtopk", "topk"])
def test_an_sae_recovers_planted_features(activation):
    seen = []
    config = small(activation=activation)
    sae = fit(planted(config.tokens).split(256), config, info=INFO, report=seen.append)
    assert recovered(directions(), decoder(sae)) >= 0.9
    fresh = planted(5000, seed=1)
    features = sae.encode(fresh)
    assert features.l0.float().mean() == pytest.approx(ACTIVE, rel=0.1)
    residual = (fresh - sae.decode(features)).pow(2).sum() / (fresh - fresh.mean(0)).pow(2).sum()
    assert residual < 0.1
    assert [at.step for at in seen] == list(range(1, 601))
    assert seen[-1].fvu < 0.1 < seen[0].fvu
    assert seen[-1].l0 == pytest.approx(ACTIVE, rel=0.1)


READ, WRITTEN = sites("mlp_in.1", "mlp_out.1")
TRANSCODER = {"kind": "transcoder", "reads": str(READ), "writes": str(WRITTEN)}


def fvu(dictionary, x, y):
    return float((y - dictionary.reconstruct(x)).pow(2).sum() / (y - y.mean(0)).pow(2).sum())


def test_a_transcoder_recovers_planted_features():
    """Features read from one basis and written to another, at scales of their own."""
    config = small(**TRANSCODER)
    active = strengths(config.tokens)
    x, y = 20 * active @ directions(1) + 3, 0.1 * active @ directions(2) - 1
    transcoder = fit([{READ: a, WRITTEN: b} for a, b in zip(x.split(256), y.split(256), strict=True)], config)
    assert transcoder.skip is None
    assert recovered(directions(2), decoder(transcoder)) >= 0.9
    assert fvu(transcoder, x[:4096], y[:4096]) < 0.15


def test_a_skip_takes_the_linear_part():
    """What is linear in the input needs no features; without a skip they have to make do."""
    linear = torch.randn(D, D, generator=torch.Generator().manual_seed(3))
    x = 5 + 2 * torch.randn(200 * 256, D, generator=torch.Generator().manual_seed(4))
    y = 0.1 * x @ linear + 1
    batches = [{READ: a, WRITTEN: b} for a, b in zip(x.split(256), y.split(256), strict=True)]
    with_skip, without = (fit(batches, small(**TRANSCODER, skip=skip, tokens=200 * 256)) for skip in (True, False))
    assert fvu(with_skip, x, y) < 0.01 < 0.2 < fvu(without, x, y)


def test_a_clt_recovers_planted_features():
    """Three layers; the features of each write to its own layer and all later ones."""
    layers = range(3)
    reads, writes = ([parse_site(f"{name}.{layer}") for layer in layers] for name in ("mlp_in", "mlp_out"))
    config = small(kind="clt", reads=[str(s) for s in reads], writes=[str(s) for s in writes], width=32, l0=2)
    active = [strengths(config.tokens, seed=layer, features=24, active=2) for layer in layers]
    known = [directions(10 + layer, 24) for layer in layers]
    written = {(i, j): directions(100 + 10 * i + j, 24) for i in layers for j in layers if i <= j}
    data = {
        site: 10 * (layer + 1) * a @ b + 1 for layer, (site, a, b) in enumerate(zip(reads, active, known, strict=True))
    }
    for j, site in enumerate(writes):
        data[site] = 0.1 * sum(active[i] @ written[i, j] for i in range(j + 1)) - 2
    batches = [{site: x[at : at + 256] for site, x in data.items()} for at in range(0, config.tokens, 256)]
    clt = fit(batches, config)
    assert isinstance(clt, MultiLayer) and len(clt) == 3 and clt.width == 96
    for i in layers:
        rows = clt.layers[i].decoder.rows(torch.arange(32 * (3 - i))).view(32, -1)
        torch.testing.assert_close(rows.norm(dim=1), torch.ones(32))
        own = torch.cat([written[i, j] for j in layers if i <= j], dim=1)
        assert recovered(own, rows) >= 0.9
    fresh = {site: x[:4096] for site, x in data.items()}
    for site, recon in clt.reconstruct({site: fresh[site] for site in reads}).items():
        centred = fresh[site] - fresh[site].mean(0)
        assert (fresh[site] - recon).pow(2).sum() / centred.pow(2).sum() < 0.15


def test_matryoshka_puts_what_matters_first():
    """The first group alone reconstructs as well as it can, which training without groups does not ask for."""
    config = small(groups=[16], tokens=300 * 256)
    common = torch.rand(config.tokens, FEATURES, generator=torch.Generator().manual_seed(5))
    chosen = (common / torch.linspace(1, 6, FEATURES)).topk(ACTIVE, dim=1).indices
    x = torch.zeros(config.tokens, FEATURES).scatter(1, chosen, 1.0) @ directions()

    def first_group(config):
        sae = fit(x.split(256), config, info=INFO)
        features = sae.encode(x[:4096]).dense()
        features[:, 16:] = 0
        error = x[:4096] - features @ decoder(sae) - sae.b_dec
        return float(error.pow(2).sum() / (x[:4096] - x.mean(0)).pow(2).sum())

    assert first_group(config) < 0.8 * first_group(small(tokens=300 * 256))


def after(config, steps, data, **options):
    learner = Learner(config, data, INFO, **options)
    for at in range(steps):
        learner.step({site: x[256 * at : 256 * (at + 1)] for site, x in data.items()})
    return learner


CLT = {"kind": "clt", "reads": ["mlp_in.1", "mlp_in.2"], "writes": ["mlp_out.1", "mlp_out.2"], "skip": True}


def test_folding_an_sae_changes_nothing():
    data = {SITE: planted(2560)}
    learner = after(small(activation="jumprelu"), 10, data, dtype=torch.float32)
    sae, weights, (mean, scale) = learner.finish(), learner._weights[0], learner._scaling[SITE]
    z = (data[SITE] - mean) * scale
    pre = z @ weights.w_enc.T + weights.b_enc
    acts = pre * (pre > weights.log_threshold.exp())
    torch.testing.assert_close(sae.encode(data[SITE]).dense(), acts / scale, rtol=1e-5, atol=1e-5 / scale)
    recon = (sae.reconstruct(data[SITE]) - mean) * scale
    torch.testing.assert_close(recon, acts @ weights.w_dec + weights.b_dec, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(decoder(sae).norm(dim=1), torch.ones(64))


def test_folding_a_clt_changes_nothing():
    """Inputs and outputs of every layer have scales of their own."""
    names = sites("mlp_in.1", "mlp_in.2", "mlp_out.1", "mlp_out.2")
    data = {site: scale * planted(2560, seed=scale) for scale, site in enumerate(names, 1)}
    learner = after(small(**CLT), 10, data, dtype=torch.float32)
    clt = learner.finish()
    z = {site: learner._scaling[site].apply(x) for site, x in data.items()}
    expected = torch.zeros(2560, 2 * D)
    for index, (weights, threshold) in enumerate(zip(learner._weights, learner._threshold, strict=True)):
        own = z[names[index]]
        pre = own @ weights.w_enc.T + weights.b_enc
        expected[:, index * D :] += (pre * (pre > threshold)) @ weights.w_dec
        expected[:, index * D : (index + 1) * D] += weights.b_dec + own @ weights.skip
        assert weights.skip.abs().max() > 0
    recon = clt.reconstruct({site: data[site] for site in names[:2]})
    found = torch.cat([learner._scaling[site].apply(recon[site]) for site in names[2:]], dim=1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("changes", [{"activation": "jumprelu"}, {}, {"activation": "topk", "groups": [8, 20]}, CLT])
def test_restoring_goes_on_to_the_bit(changes):
    config = small(**changes, dead_after=300, tokens=10 * 256)
    names = sites(*config.reads, *config.writes)
    data = {site: planted(2560, seed=seed) for seed, site in enumerate(names)}
    batches = [{site: x[at : at + 256] for site, x in data.items()} for at in range(0, 2560, 256)]
    whole, states = Learner(config, data, INFO), []
    whole._weights[0].b_enc[:5] = -9  # dead, so that the auxiliary loss takes part
    whole._refresh()
    for batch in batches:
        states.append(whole.state())
        whole.step(batch)
    for cut in (0, 1, 4, 9):
        # A learner that knows nothing of the first one's data but the state.
        resumed = Learner(config, {site: x[:50] + 1 for site, x in data.items()}, INFO)
        resumed.restore(states[cut])
        steps = [resumed.step(batch) for batch in batches[cut:]]
        assert steps[-1].step == 10
        ours, theirs = resumed.state(), whole.state()
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(theirs[name])), name
    assert steps[-1].dead > 0


def test_the_state_of_another_dictionary_is_refused():
    data = {SITE: planted(512)}
    state = Learner(small(), data, INFO).state()
    for other in (small(width=32), small(activation="jumprelu")):
        with pytest.raises(MismatchError, match="is not of planted"):
            Learner(other, data, INFO).restore(state)


def test_training_twice_gives_the_same_weights():
    data = {SITE: planted(2560)}
    first, second = (after(small(), 10, data).state() for _ in range(2))
    torch.testing.assert_close(first["w_dec.0"].norm(dim=1), torch.ones(64))
    assert all(torch.equal(torch.as_tensor(value), torch.as_tensor(second[name])) for name, value in first.items())


@pytest.mark.parametrize("activation", ["jumprelu", "batchtopk", "topk"])
def test_a_loss_gone_to_nan_stops_and_leaves_the_weights(activation):
    data = {SITE: planted(2560)}
    learner = after(small(activation=activation), 5, data)
    before = learner.state()
    bad = data[SITE][:256].clone()
    bad[7, 3] = float("nan")
    with pytest.raises(WeightsError, match=r"loss is nan .* at step 6"):
        learner.step({SITE: bad})
    for name, value in learner.state().items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(before[name])), name
    assert learner.step({SITE: data[SITE][:256]}).step == 6


def test_the_auxiliary_loss_revives_dead_features():
    data = {SITE: planted(256 * 200)}

    def dead(dead_after):
        learner = Learner(small(dead_after=dead_after, tokens=256 * 200), data, INFO)
        learner._weights[0].b_enc[8:] = -3  # few of these can fire by themselves
        learner._refresh()
        for batch in data[SITE].split(256):
            learner.step({SITE: batch})
        return int((learner._silent[0] > 1000).sum())

    assert dead(1000) < 0.6 * dead(10**9)


def test_missing_sites_and_useless_samples_are_refused():
    with pytest.raises(InputError, match=r"no activations of resid_post\.1 .* holds mlp_in\.1"):
        Learner(small(), {parse_site("mlp_in.1"): planted(100)}, INFO)
    with pytest.raises(WeightsError, match="not finite or all alike"):
        Learner(small(), {SITE: torch.ones(100, D)}, INFO)
    with pytest.raises(InputError, match="give the activations of each by site"):
        fit(planted(2560).split(256), small(kind="transcoder", reads="mlp_in.1", writes="mlp_out.1"))


def test_too_little_text_is_refused():
    with pytest.raises(InputError, match="2,560 tokens"):
        fit(planted(2560).split(256), small(tokens=256 * 20), info=INFO)
    with pytest.raises(InputError, match="empty"):
        fit([], small(), info=INFO)


def test_a_dictionary_without_a_name_is_named_after_its_config():
    sae = fit(planted(2560).split(256), small(tokens=2560))
    assert (sae.info.site, sae.info.id, sae.info.width) == ("resid_post.1", "layer_1_width_64_l0_3", 64)
