"""Attribution held against the model: plain torch hooks, plain autograd, and sums that must come out."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from gemlens.errors import InputError, MismatchError
from gemlens.lm.gemma import activations
from gemlens.sites import Site, parse_site
from gemlens.study import targets
from gemlens.study.attribute import attribute
from gemlens.study.ways import ablation, direct, gradient, integrated_gradients
from tiny import LAYERS, random_clt, random_sae, random_tensors, random_transcoders, sae_of, tiny_gemma

PROMPT = "hello and the"
EVERY_SITE = ["embed", "attn_out.3", "resid_mid.1", "mlp_out.4", "resid_post.2", "resid_post.6"]
METHODS = [gradient, integrated_gradients, ablation]


@pytest.fixture(scope="module", params=["gemma3", "gemma2"])
def gemma(request):
    return tiny_gemma(kind=request.param)


def normalized_transcoder(model, layer):
    """As Gemma Scope 1's: reads inside the norm."""
    return sae_of(random_tensors(16, 40, seed=9), Site(layer, "mlp_in_normalized"), Site(layer, "mlp_out"))


def dictionaries(model):
    """Every kind there is, and every site."""
    return {
        **{site: random_sae(model, site) for site in EVERY_SITE},
        "transcoder": random_transcoders(model)[3],
        "normalized": normalized_transcoder(model, 4),
        "clt": random_clt(model),
        "crosscoder": random_clt(model, crosscoder=True),
    }


KINDS = [*EVERY_SITE, "transcoder", "normalized", "clt", "crosscoder"]


# By hand: torch's own hooks and autograd


def hook_at(model, site, delta):
    """Add ``delta`` [n, d] to what passes ``site``, with torch's own hooks."""
    block = model.backbone.layers[site.layer]

    def first(value):
        return (value[0] + delta, *value[1:]) if isinstance(value, tuple) else value + delta

    if site.name == "embed":
        return block.register_forward_pre_hook(lambda _module, args: first(args))
    if site.name == "attn_out":
        return block.self_attn.o_proj.register_forward_pre_hook(lambda _module, args: first(args))
    module = {
        "resid_post": block,
        "mlp_out": block.post_feedforward_layernorm,
        "resid_mid": block.post_attention_layernorm,  # what attention adds: the residual there moves as much
    }[site.name]
    return module.register_forward_hook(lambda _module, _args, output: first(output))


def with_added(model, ids, deltas, measure):
    """``measure`` of the logits [n, vocab], with ``deltas`` added at sites."""
    handles = [hook_at(model, site, delta) for site, delta in deltas.items()]
    try:
        return measure(model.module(ids[None], use_cache=False).logits[0].float())
    finally:
        for handle in handles:
            handle.remove()


def ids_of(model, prompt=PROMPT):
    return torch.tensor(model.tokenizer(f"<bos>{prompt}", add_special_tokens=False)["input_ids"])


def rows_of(dictionary, reads, feature):
    """What a feature adds, by the site that it writes."""
    if not hasattr(dictionary, "reads") or isinstance(dictionary.reads, Site):
        return {dictionary.writes: dictionary.decoder.weight[feature]}
    layer = dictionary.layer(reads)
    rows = layer.decoder.weight.view(layer.encoder.width, layer.outputs, -1)[feature]
    return dict(zip(dictionary.writes[layer.first :], rows, strict=True))


def logit_of(model, text):
    (token,) = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    return lambda scores: scores[-1, token]


@pytest.mark.parametrize("kind", KINDS)
def test_exact_ablation_equals_plain_hooks(kind, gemma):
    dictionary, ids = dictionaries(gemma)[kind], ids_of(gemma)
    measure = logit_of(gemma, "a")
    found = attribute(gemma, dictionary, PROMPT, "a", method=ablation)
    clean = with_added(gemma, ids, {}, measure)
    assert found.value == pytest.approx(float(clean), abs=1e-5)
    generator = np.random.default_rng(0)
    compared = 0
    for effects in found.effects:
        chosen = generator.permutation(len(effects.effect))
        # Behind the last block only the last token reaches the target.
        chosen = [*chosen[:8], *chosen[effects.position[chosen] == len(ids) - 1][:8]]
        for entry in chosen:
            position, feature = int(effects.position[entry]), int(effects.feature[entry])
            deltas = {}
            for site, row in rows_of(dictionary, parse_site(effects.dictionary.site), feature).items():
                deltas[site] = torch.zeros(len(ids), len(row))
                deltas[site][position] = -float(effects.activation[entry]) * row
            expected = float(clean - with_added(gemma, ids, deltas, measure))
            assert effects.effect[entry] == pytest.approx(expected, abs=2e-5)
            compared += abs(expected) > 1e-3
    assert compared > 5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("goal", ["logit", "log_probability", "loss"])
def test_gradients_equal_autograd_through_plain_hooks(kind, goal, gemma):
    dictionary, ids = dictionaries(gemma)[kind], ids_of(gemma)
    token = gemma.tokenizer("a", add_special_tokens=False)["input_ids"][0]
    measure = {
        "logit": lambda scores: scores[-1, token],
        "log_probability": lambda scores: scores[-1].log_softmax(-1)[token],
        "loss": lambda scores: -scores[1:-1].log_softmax(-1)[torch.arange(len(ids) - 2), ids[2:]].mean(),
    }[goal]
    goals = {"logit": targets.logit("a"), "log_probability": targets.log_probability("a"), "loss": targets.loss()}
    found = attribute(gemma, dictionary, PROMPT, goals[goal])
    written = [dictionary.writes] if isinstance(dictionary.writes, Site) else list(dictionary.writes)
    there = activations(gemma, ids[None], written)
    leaves = {site: torch.zeros_like(there[site][0], requires_grad=True) for site in written}
    value = with_added(gemma, ids, leaves, measure)
    gradients = dict(zip(written, torch.autograd.grad(value, list(leaves.values())), strict=True))
    assert found.value == pytest.approx(float(value.detach()), abs=1e-5)
    for effects in found.effects:
        for position, feature, activation, effect in zip(
            effects.position, effects.feature, effects.activation, effects.effect, strict=True
        ):
            rows = rows_of(dictionary, parse_site(effects.dictionary.site), int(feature))
            expected = sum(float(activation * (row @ gradients[site][position])) for site, row in rows.items())
            assert effect == pytest.approx(expected, rel=2e-3, abs=1e-4)
    # All the parts together are the activation, BOS left out.
    whole = sum(float((there[site][0, 1:] * gradients[site][1:]).sum()) for site in written)
    assert found.completeness[0].total == pytest.approx(whole, rel=1e-3, abs=1e-3)


# Sums


@pytest.mark.parametrize("method", METHODS)
def test_a_target_linear_in_the_site_is_explained_exactly(method, gemma):
    vector = torch.randn(16, generator=torch.Generator().manual_seed(1))
    goal = targets.direction(Site(3, "resid_post"), vector)
    cases = {
        "the site itself": random_sae(gemma, "resid_post.3"),
        "what the MLP adds there": random_transcoders(gemma)[3],
    }
    for dictionary in cases.values():
        found = attribute(gemma, dictionary, PROMPT, goal, method=method, verify=1000)
        effects, complete = found.effects[0], found.completeness[0]
        last = effects.position == len(found.tokens) - 1
        assert last.sum() > 3
        expected = effects.activation * (dictionary.decoder.weight[effects.feature] @ vector).numpy()
        np.testing.assert_allclose(effects.effect[last], expected[last], rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(effects.effect[~last], 0, atol=1e-4)
        assert len(found.removed) == len(effects.effect)
        for each in found.removed:
            assert each.predicted == pytest.approx(each.actual, rel=1e-3, abs=2e-3)
        assert complete.total == pytest.approx(complete.change, rel=1e-3, abs=2e-3)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "embed"])
def test_integrated_gradients_are_complete_within_a_percent(kind, gemma):
    found = attribute(gemma, dictionaries(gemma)[kind], PROMPT, "a", method=integrated_gradients)
    (complete,) = found.completeness
    assert found.method == "integrated gradients, 64 steps"
    assert complete.change
    assert complete.total == pytest.approx(complete.change, rel=0.01)
    assert complete.bias == complete.skip == 0  # in the baseline


def test_more_steps_bring_the_embedding_there_too(gemma):
    """All seven blocks of a wild random model lie between it and the target."""
    method = partial(integrated_gradients, steps=256)
    (complete,) = attribute(gemma, random_sae(gemma, "embed"), PROMPT, "a", method=method).completeness
    assert complete.total == pytest.approx(complete.change, rel=0.01)


@pytest.mark.parametrize("kind", KINDS)
def test_every_change_is_that_of_plain_hooks_at_the_baseline(kind, gemma):
    dictionary, ids = dictionaries(gemma)[kind], ids_of(gemma)
    measure = logit_of(gemma, "a")
    reads = [dictionary.reads] if isinstance(dictionary.reads, Site) else list(dictionary.reads)
    written = [dictionary.writes] if isinstance(dictionary.writes, Site) else list(dictionary.writes)
    there = {site: each[0] for site, each in activations(gemma, ids[None], [*reads, *written]).items()}
    nothing, silent = {}, {}
    for site, read in zip(written, reads, strict=True):
        part = dictionary if isinstance(dictionary.reads, Site) else dictionary.layer(read)
        constant = part.b_dec + (0 if part.skip is None else there[read].to(part.skip) @ part.skip)
        nothing[site], silent[site] = -there[site].clone(), constant - there[site]
        nothing[site][0] = silent[site][0] = 0
    clean = with_added(gemma, ids, {}, measure)
    for method, deltas in {gradient: nothing, ablation: nothing, integrated_gradients: silent}.items():
        expected = float(clean - with_added(gemma, ids, deltas, measure))
        (complete,) = attribute(gemma, dictionary, PROMPT, "a", method=method).completeness
        assert complete.change == pytest.approx(expected, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("kind", ["embed", "resid_mid.1", "mlp_out.4", "resid_post.2", "transcoder", "clt"])
def test_direct_effects_are_those_of_the_frozen_norm_and_the_head(kind, gemma):
    dictionary, ids = dictionaries(gemma)[kind], ids_of(gemma)
    token = gemma.tokenizer("a", add_special_tokens=False)["input_ids"][0]
    found = attribute(gemma, dictionary, PROMPT, "a", method=direct)
    final = activations(gemma, ids[None], [Site(LAYERS - 1, "resid_post")]).popitem()[1][0, -1]
    norm = gemma.backbone.norm
    scale = norm(final) / final
    along = scale * gemma.module.lm_head.weight[token]
    if cap := gemma.config.final_logit_softcapping:
        along = along * (1 - (found.value / cap) ** 2)
    last = len(ids) - 1
    for effects in found.effects:
        np.testing.assert_allclose(effects.effect[effects.position != last], 0, atol=1e-9)
        for entry in np.flatnonzero(effects.position == last):
            rows = rows_of(dictionary, parse_site(effects.dictionary.site), int(effects.feature[entry]))
            expected = float(effects.activation[entry] * sum(row @ along for row in rows.values()))
            assert effects.effect[entry] == pytest.approx(expected, rel=1e-3, abs=1e-4)
    (complete,) = found.completeness
    if not cap:  # linear, and so complete
        assert complete.total == pytest.approx(complete.change, rel=1e-3, abs=1e-4)


def test_a_feature_as_target_is_its_pre_activation_at_its_token(gemma):
    upper, lower, ids = random_sae(gemma, "resid_post.5", seed=3), random_sae(gemma, "resid_post.2"), ids_of(gemma)
    there = activations(gemma, ids[None], [upper.reads])[upper.reads][0]
    for position in (-1, 2):
        found = attribute(gemma, lower, PROMPT, targets.feature(upper, 7, position=position), verify=5)
        assert found.value == pytest.approx(
            float(there[position] @ upper.encoder.weight[7] + upper.b_enc[7]), rel=1e-4, abs=1e-4
        )
        assert max(found.effects[0].position[found.effects[0].effect != 0]) == range(len(ids))[position]
        assert all(each.actual != 0 for each in found.removed)
    layer = targets.feature(random_clt(gemma), 3, layer=4)
    assert attribute(gemma, lower, PROMPT, layer).target == f"feature 3 of mlp_in.4 at token {len(ids) - 1}"


# What is left out, and what is shared


def test_bos_has_no_effects_and_stays_as_it_is(gemma):
    found = attribute(gemma, random_sae(gemma, "resid_post.2"), PROMPT, "a")
    effects = found.effects[0]
    assert effects.position.min() == 1
    assert found.tokens[0].l0 is None and found.tokens[1].l0 == (effects.position == 1).sum()
    assert effects.error[0] == effects.bias[0] == 0
    assert effects.error[1] != 0 and effects.bias[1] != 0


def test_what_opens_a_chat_is_left_out_where_dictionaries_did_not_see_it(chat_model):
    sae = random_sae(chat_model, "resid_post.2", model_name="google/gemma-3-270m-it")
    found = attribute(chat_model, sae, PROMPT, "a")
    unread = [token.token for token in found.tokens if token.l0 is None]
    assert unread[0] == "<bos>" and unread[1] == "<start_of_turn>" and len(unread) > 3
    assert found.effects[0].position.min() == len(unread)
    assert found.warnings  # the tiny model is not the one it was trained on


@pytest.mark.parametrize("method", [gradient, integrated_gradients, direct])
def test_several_dictionaries_are_each_as_alone(method, gemma):
    several = [random_sae(gemma, "resid_post.2"), random_transcoders(gemma)[4], random_clt(gemma)]
    together = attribute(gemma, several, PROMPT, "a", method=method, verify=6)
    alone = [attribute(gemma, each, PROMPT, "a", method=method) for each in several]
    effects = [each for found in alone for each in found.effects]
    assert len(together.effects) == len(effects) == 2 + LAYERS
    for ours, theirs in zip(together.effects, effects, strict=True):
        assert ours.dictionary == theirs.dictionary
        np.testing.assert_allclose(ours.effect, theirs.effect, rtol=1e-3, atol=1e-4)
    sizes = np.concatenate([np.abs(each.effect) for each in together.effects])
    assert [abs(each.predicted) for each in together.removed] == sorted(sizes, reverse=True)[:6]


def test_lower_blocks_run_once_and_no_gradient_reaches_them(model, monkeypatch):
    calls = dict.fromkeys(range(LAYERS), 0)
    handles = [
        block.register_forward_hook(lambda *_, layer=layer: calls.__setitem__(layer, calls[layer] + 1))
        for layer, block in enumerate(model.blocks)
    ]
    weight = model.blocks[5].mlp.up_proj.weight
    weight.requires_grad_(True)  # as in a model that is being trained
    try:
        attribute(model, random_sae(model, "resid_post.3"), PROMPT, "a", method=ablation)
        assert [calls[layer] for layer in range(4)] == [1] * 4
        assert calls[4] > 1
        attribute(model, random_sae(model, "resid_post.3"), PROMPT, "a")
        assert weight.requires_grad and weight.grad is None
    finally:
        weight.requires_grad_(False)
        for handle in handles:
            handle.remove()


def test_only_decoder_rows_that_fired_are_read(model, monkeypatch):
    sae = random_sae(model, "resid_post.3")
    asked = []
    rows = sae.decoder.rows
    monkeypatch.setattr(sae.decoder, "rows", lambda ids: asked.append(ids) or rows(ids))
    found = attribute(model, sae, PROMPT, "a")
    assert sorted(torch.cat(asked).tolist()) == np.unique(found.effects[0].feature).tolist()


def test_no_hook_stays_after_an_error(model):
    def failing(passes, known):
        def wrong(_state):
            raise RuntimeError("on purpose")

        object.__setattr__(passes.target, "measure", wrong)
        passes.gradients({each.site: torch.zeros(1, *each.value.shape) for each in known[0].written})

    with pytest.raises(RuntimeError, match="on purpose"):
        attribute(model, random_transcoders(model)[2], PROMPT, "a", method=failing)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.module.modules())


def test_the_strongest_and_the_sums_by_token(model):
    found = attribute(model, [random_sae(model, "resid_post.2"), random_sae(model, "resid_post.4")], PROMPT, "a")
    for strong in found.strongest(10):
        effects = found.effects[strong.layer]
        mine = effects.feature == strong.feature
        assert strong.effect == pytest.approx(effects.effect[mine].sum())
        assert strong.tokens == mine.sum()
        peak = np.flatnonzero(mine)[np.abs(effects.effect[mine]).argmax()]
        assert (strong.position, strong.activation) == (effects.position[peak], effects.activation[peak])
    sizes = [abs(strong.effect) for strong in found.strongest()]
    assert sizes == sorted(sizes, reverse=True)
    assert len(sizes) == sum(len(np.unique(each.feature)) for each in found.effects)
    total = sum(each.effect[each.position == 2].sum() for each in found.effects)
    assert found.by_token()[2] == pytest.approx(total)


# Mistakes


def test_a_target_that_is_not_one_token_shows_its_pieces(model):
    sae = random_sae(model, "resid_post.2")
    with pytest.raises(InputError, match=r"not one token of .* but 2: 'h', 'i'; name one of them"):
        attribute(model, sae, PROMPT, "hi")
    with pytest.raises(InputError, match=r"the target ' he' is not one token .* '▁', 'he'; take 'he', which is one"):
        attribute(model, sae, PROMPT, " he")
    with pytest.raises(InputError, match="the target is empty"):
        attribute(model, sae, PROMPT, "")
    with pytest.raises(InputError, match=r"token id 9999 does not exist in .*: its ids are 0 to 366"):
        attribute(model, sae, PROMPT, targets.logit(9999))
    with pytest.raises(InputError, match="name two tokens"):
        attribute(model, sae, PROMPT, targets.difference("a", "a"))


def test_what_is_out_of_range_or_does_not_fit(model):
    sae, late = random_sae(model, "resid_post.2"), random_sae(model, "resid_post.5")
    with pytest.raises(InputError, match=r"position 99 does not exist: the prompt has \d+ tokens"):
        attribute(model, sae, PROMPT, targets.logit("a", position=99))
    with pytest.raises(InputError, match="feature 40 does not exist in handmade"):
        attribute(model, sae, PROMPT, targets.feature(late, 40))
    with pytest.raises(InputError, match=r"handmade writes resid_post\.5, behind resid_post\.2"):
        attribute(model, late, PROMPT, targets.feature(sae, 1))
    with pytest.raises(InputError, match="give 16 finite numbers"):
        attribute(model, sae, PROMPT, targets.direction(Site(3, "resid_post"), torch.zeros(15)))
    with pytest.raises(InputError, match="give 16 finite numbers"):
        attribute(model, sae, PROMPT, targets.direction(Site(3, "resid_post"), torch.full((16,), torch.nan)))
    with pytest.raises(MismatchError, match="its layers are 0 to 6"):
        attribute(model, sae, PROMPT, targets.direction(Site(9, "resid_post"), torch.zeros(16)))
    with pytest.raises(InputError, match="no dictionary"):
        attribute(model, [], PROMPT, "a")
    with pytest.raises(InputError, match="verify -1"):
        attribute(model, sae, PROMPT, "a", verify=-1)
    with pytest.raises(InputError, match="take 5 or more"):
        attribute(model, sae, PROMPT, "a", method=partial(integrated_gradients, steps=4))
    with pytest.raises(InputError, match="one on logits"):
        attribute(model, sae, PROMPT, targets.feature(late, 1), method=direct)
    with pytest.raises(InputError, match="through more than an addition"):
        attribute(model, random_sae(model, "attn_out.3"), PROMPT, "a", method=direct)
    with pytest.raises(InputError, match="a loss needs 3 or more"):
        attribute(model, sae, "a", targets.loss())
    with pytest.raises(InputError, match="no token that dictionaries are applied to"):
        attribute(model, sae, "<bos>", "a")


# The starter

# Verbs that agree with their subjects: self-written.
AGREEMENT = [
    ("The dogs in the yard", " are", " is"),
    ("The window of the old house", " is", " are"),
    ("My brothers", " have", " has"),
    ("The teacher", " has", " have"),
    ("Those two rivers", " were", " was"),
]


def test_on_the_starter_predictions_hold(starter):
    from attribution_agreement import Pair, agreement
    from gemlens.scope.load import load_sae
    from gemlens.scope.starter import STARTER_DICTIONARY

    sae, pairs = load_sae("starter", STARTER_DICTIONARY), [Pair(*each) for each in AGREEMENT]
    for method in (gradient, integrated_gradients):
        found = agreement(starter, sae, pairs, method)
        assert found.n_top == 50 and found.n_all > 500
        assert found.of_top >= 0.8
        assert found.of_all >= 0.8
