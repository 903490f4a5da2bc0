"""Edits against plain torch hooks: what is removed, added and set, at every site, in order, and gone afterwards."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager

import pytest
import torch

from gemlens.errors import InputError, MismatchError
from gemlens.lm.gemma import activations, reading
from gemlens.sites import SITES, Site, parse_site
from gemlens.study.directions import steer_direction
from gemlens.study.edits import unedited
from gemlens.study.intervene import ablate, patch, steer
from gemlens.study.places import active, last
from gemlens.study.splice import splice
from tiny import LAYERS, random_clt, random_sae, random_tensors, random_transcoders, sae_of, some_tokens, tiny_gemma

TOKENS = some_tokens(11, batch=2)
KINDS = ["gemma2", "gemma3", "multimodal"]
EVERY_SITE = [Site(layer, name) for name in SITES for layer in ((0,) if name == "embed" else (0, 3, LAYERS - 1))]
FEATURES = [3, 17, 29]


@pytest.fixture(scope="module", params=KINDS)
def any_model(request):
    return tiny_gemma(kind=request.param)


def scores(model, tokens=TOKENS):
    with torch.no_grad():
        return model.module(tokens).logits


def hooks_left(model):
    modules = list(model.module.modules())
    counts = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules]
    return sum(counts) + sum("_norm" in vars(m) for m in modules)


# By hand: torch's own hooks on the modules of the blocks, and the formulas written out.


def acts_of(sae, x):
    """[..., width]"""
    pre = x.float() @ sae.encoder.weight.T + sae.b_enc
    return pre.relu() * (pre > sae.threshold)


@contextmanager
def by_hand(model, site, change):
    """What passes ``site`` becomes ``x + change(x)``, BOS left alone."""
    block = model.backbone.layers[site.layer]

    def new(x):
        return torch.cat([x[:, :1], (x + change(x))[:, 1:]], dim=1)

    def before(_module, args):
        return (new(args[0]), *args[1:])

    def after(_module, _args, output):
        return (new(output[0]), *output[1:]) if isinstance(output, tuple) else new(output)

    with ExitStack() as stack:
        if site.name == "resid_mid":  # the block's input is known before what attention adds to it
            entry = []
            stack.callback(block.register_forward_pre_hook(lambda _m, args: entry.append(args[0])).remove)

            def added(_module, _args, output):
                middle = entry.pop() + output
                return output + (new(middle) - middle)

            stack.callback(block.post_attention_layernorm.register_forward_hook(added).remove)
        elif site.name == "mlp_in_normalized":
            norm = block.pre_feedforward_layernorm

            def scaled(_module, args, output):
                x = args[0].float()
                unit = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + norm.eps)
                return new(unit) * (1 + norm.weight)

            stack.callback(norm.register_forward_hook(scaled).remove)
        else:
            module = block.get_submodule(site.place.module)
            hook = module.register_forward_pre_hook if site.place.side == "input" else module.register_forward_hook
            stack.callback(hook(before if site.place.side == "input" else after).remove)
        yield


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


# Nothing


@pytest.mark.parametrize("site", EVERY_SITE, ids=str)
def test_an_edit_of_nothing_changes_no_logit(site, any_model):
    sae, plain = random_sae(any_model, str(site)), scores(any_model)
    d = sae.d_in
    silent = sae_of(random_tensors(d, 40) | {"threshold": torch.full((40,), 1e6)}, site)
    with ExitStack() as stack:
        for nothing in (
            ablate(any_model, sae, []),
            ablate(any_model, silent, FEATURES),
            steer(any_model, sae, FEATURES, 0.0),
            steer(any_model, sae, FEATURES, 0.0, relative_to="norm"),
            steer(any_model, sae, FEATURES, 1.0, mode="scale"),
            ablate(any_model, sae, FEATURES, where=active(sae, 3, above=1e6)),
            steer_direction(any_model, site, torch.ones(d), 0.0),
        ):
            stack.enter_context(nothing)
        assert torch.equal(scores(any_model), plain)
    assert torch.equal(scores(any_model), plain)


# What is changed


@pytest.mark.parametrize("site", EVERY_SITE, ids=str)
def test_ablation_removes_activation_times_decoder_row(site, any_model):
    sae = random_sae(any_model, str(site))
    rows = sae.decoder.weight[FEATURES]
    with by_hand(any_model, site, lambda x: -acts_of(sae, x)[..., FEATURES] @ rows):
        expected = scores(any_model)
    with ablate(any_model, sae, FEATURES):
        found = scores(any_model)
    close(found, expected)
    assert (found - scores(any_model)).abs().max() > 1e-3


@pytest.mark.parametrize("reads", ["mlp_in", "mlp_in_normalized", "resid_mid"])
def test_a_transcoder_is_read_where_it_reads_and_edited_where_it_writes(reads, any_model):
    sae = random_transcoders(any_model, reads=reads)[3]
    seen = activations(any_model, TOKENS, [sae.reads])[sae.reads]
    rows = sae.decoder.weight[FEATURES]
    with by_hand(any_model, sae.writes, lambda _: -acts_of(sae, seen)[..., FEATURES] @ rows):
        expected = scores(any_model)
    with ablate(any_model, sae, FEATURES):
        close(scores(any_model), expected)


@pytest.mark.parametrize("source", [0, 2, LAYERS - 1])
def test_a_clt_feature_is_edited_at_every_layer_that_it_writes(source, any_model):
    clt = random_clt(any_model)
    layer = clt.layers[source]
    reads = Site(source, "mlp_in")
    x = activations(any_model, TOKENS, [reads])[reads]
    pre = x @ layer.encoder.weight.T + layer.b_enc
    acts = (pre.relu() * (pre > layer.threshold))[..., [4, 9]]
    rows = layer.decoder.weight.view(layer.encoder.width, layer.outputs, -1)[[4, 9]]
    with ExitStack() as stack:
        for index in range(layer.outputs):
            site = Site(source + index, "mlp_out")
            stack.enter_context(by_hand(any_model, site, lambda _, i=index: -acts @ rows[:, i]))
        expected = scores(any_model)
    with ablate(any_model, clt, [4, 9], layer=source):
        close(scores(any_model), expected)


@pytest.mark.parametrize("source", [0, 4])
def test_a_crosscoder_feature_is_edited_at_every_layer_also_below_the_one_it_reads(source, any_model):
    crosscoder = random_clt(any_model, crosscoder=True)
    layer, reads = crosscoder.layers[source], Site(source, "resid_post")
    x = activations(any_model, TOKENS, [reads])[reads]
    pre = x @ layer.encoder.weight.T + layer.b_enc
    acts = (pre.relu() * (pre > layer.threshold))[..., [4, 9]]
    rows = layer.decoder.weight.view(layer.encoder.width, LAYERS, -1)[[4, 9]]
    with ExitStack() as stack:
        for index in range(LAYERS):
            site = Site(index, "resid_post")
            stack.enter_context(by_hand(any_model, site, lambda _, i=index: -acts @ rows[:, i]))
        expected = scores(any_model)
    with ablate(any_model, crosscoder, [4, 9], layer=source):
        close(scores(any_model), expected)
    # An edit outside of it is seen where it is read.
    sae = random_sae(any_model, "resid_post.1")
    with steer(any_model, sae, 5, 3.0), ablate(any_model, crosscoder, [4, 9], layer=source):
        both = scores(any_model)
    with steer(any_model, sae, 5, 3.0):
        outer = activations(any_model, TOKENS, [reads])[reads]
        pre = outer @ layer.encoder.weight.T + layer.b_enc
        acts = (pre.relu() * (pre > layer.threshold))[..., [4, 9]]
        with ExitStack() as stack:
            for index in range(LAYERS):
                site = Site(index, "resid_post")
                stack.enter_context(by_hand(any_model, site, lambda _, i=index: -acts @ rows[:, i]))
            close(both, scores(any_model))


def orthogonal(x, rows, strength):
    basis = torch.linalg.qr(rows.T).Q
    return -(x @ basis) @ basis.T + strength * rows.sum(0)


CHANGES = {
    "add": ({}, lambda x, old, rows: 2.5 * rows.sum(0)),
    "set": ({"mode": "set"}, lambda x, old, rows: (2.5 - old) @ rows),
    "scale": ({"mode": "scale"}, lambda x, old, rows: (1.5 * old) @ rows),
    "orthogonal": ({"mode": "orthogonal"}, lambda x, old, rows: orthogonal(x, rows, 2.5)),
    "max": (
        {"relative_to": "max", "maximum": [1.0, 2.0, 4.0]},
        lambda x, old, rows: 2.5 * (torch.tensor([1.0, 2.0, 4.0]) @ rows),
    ),
    "norm": (
        {"relative_to": "norm"},
        lambda x, old, rows: 2.5 * x.norm(dim=-1, keepdim=True) * (rows / rows.norm(dim=1, keepdim=True)).sum(0),
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_each_mode_and_unit(name, any_model):
    options, change = CHANGES[name]
    sae, site = random_sae(any_model, "resid_post.3"), parse_site("resid_post.3")
    rows = sae.decoder.weight[FEATURES]
    with by_hand(any_model, site, lambda x: change(x, acts_of(sae, x)[..., FEATURES], rows)):
        expected = scores(any_model)
    with steer(any_model, sae, FEATURES, 2.5, **options):
        close(scores(any_model), expected)


def test_a_feature_that_is_set_has_that_activation_if_its_rows_are_dual(model):
    tensors = random_tensors(16, 16) | {"b_enc": torch.zeros(16), "threshold": torch.zeros(16)}
    tensors["w_enc"] = torch.linalg.inv(tensors["w_dec"])
    site = parse_site("resid_post.3")
    sae = sae_of(tensors, site)
    with steer(model, sae, 7, 3.25, mode="set"):
        found = acts_of(sae, activations(model, TOKENS, [site])[site])[..., 7]
    fires = acts_of(sae, activations(model, TOKENS, [site])[site])[..., 7] > 0
    fires[:, 0] = False
    assert fires.sum() > 5
    close(found[fires], torch.full((int(fires.sum()),), 3.25))


def test_a_direction_is_added_taken_out_or_scaled_to_the_norm(any_model):
    site, v = parse_site("resid_mid.2"), torch.randn(16, generator=torch.Generator().manual_seed(4))
    for options, change in [
        ({}, lambda x: 1.5 * v),
        ({"relative_to": "norm"}, lambda x: 1.5 * x.norm(dim=-1, keepdim=True) * v / v.norm()),
        ({"mode": "orthogonal"}, lambda x: (1.5 - (x @ v / (v @ v))[..., None]) * v),
    ]:
        with by_hand(any_model, site, change):
            expected = scores(any_model)
        with steer_direction(any_model, "resid_mid.2", v, 1.5, **options):
            close(scores(any_model), expected)


@pytest.mark.parametrize("aligned", [True, False])
def test_a_patch_gives_the_activations_of_another_prompt(aligned, any_model):
    sae, site, other = random_sae(any_model, "resid_post.3"), parse_site("resid_post.3"), some_tokens(11, seed=9)
    rows = sae.decoder.weight[FEATURES]
    theirs = acts_of(sae, activations(any_model, other, [site])[site])[..., FEATURES]
    given = theirs if aligned else theirs[:, 4:5]
    with by_hand(any_model, site, lambda x: (given - acts_of(sae, x)[..., FEATURES]) @ rows):
        expected = scores(any_model)
    with patch(any_model, sae, FEATURES, other[0], take=None if aligned else 4):
        close(scores(any_model), expected)


def test_a_patch_reads_the_other_prompt_without_any_edit(model):
    sae = random_sae(model, "resid_post.3")
    below = random_sae(model, "resid_post.1")
    # Which of two is outer decides nothing here: the one below is no part of the other prompt's pass.
    with patch(model, sae, FEATURES, some_tokens(11, seed=9)[0]), steer(model, below, 3, 5.0):
        expected = scores(model)
    with steer(model, below, 3, 5.0), patch(model, sae, FEATURES, some_tokens(11, seed=9)[0]):
        close(scores(model), expected)


def test_a_patch_from_the_same_prompt_changes_nothing_and_from_a_shorter_one_is_refused(model):
    sae = random_sae(model, "resid_post.3")
    plain = scores(model, TOKENS[:1])
    with patch(model, sae, FEATURES, TOKENS[0]):
        close(scores(model, TOKENS[:1]), plain)
    with (
        patch(model, sae, FEATURES, TOKENS[0, :8]),
        pytest.raises(InputError, match="the prompts have 11 and 8 tokens, so no token has a counterpart; give take"),
    ):
        scores(model)


@pytest.mark.parametrize("without", [[], FEATURES])
def test_a_splice_is_the_bare_reconstruction(without, any_model):
    site = parse_site("resid_post.3")
    sae = random_sae(any_model, "resid_post.3")
    kept = torch.ones(40)
    kept[without] = 0
    with by_hand(any_model, site, lambda x: (acts_of(sae, x) * kept) @ sae.decoder.weight + sae.b_dec - x):
        expected = scores(any_model)
    with splice(any_model, sae, without=without):
        close(scores(any_model), expected)


def test_transcoders_and_clts_are_spliced_as_the_replacement_model_is(model):
    from gemlens.study.replacement import replaced

    transcoders, clt = random_transcoders(model), random_clt(model)
    with replaced(model, transcoders):
        expected = scores(model)
    with ExitStack() as stack:
        for each in transcoders:
            stack.enter_context(splice(model, each))
        close(scores(model), expected)
    with replaced(model, clt):
        expected = scores(model)
    with splice(model, clt):
        close(scores(model), expected)


# Where


def test_only_the_chosen_positions_are_touched(model):
    sae, site = random_sae(model, "resid_post.3"), parse_site("resid_post.3")
    plain = activations(model, TOKENS, [site])[site]
    everything = [*range(1, 11)]
    for positions, touched in [
        (None, everything),
        (4, [4]),
        (-1, [10]),
        ([2, -3], [2, 8]),
        (slice(3, 6), [3, 4, 5]),
        (slice(-2, None), [9, 10]),
        (slice(0, None, 3), [3, 6, 9]),
        (last, [10]),
        (lambda tokens: tokens.ids == TOKENS[:, 5:6], None),
    ]:
        with steer(model, sae, 5, 10.0, positions=positions):
            changed = (activations(model, TOKENS, [site])[site] != plain).any(-1)
        expected = torch.zeros(2, 11, dtype=torch.bool)
        expected[:, touched or []] = True
        assert torch.equal(changed, TOKENS[:, 5:6] == TOKENS if touched is None else expected), positions


def test_only_where_a_feature_is_active_also_of_another_dictionary_and_a_lower_layer(any_model):
    site = parse_site("resid_post.3")
    sae = random_sae(any_model, "resid_post.3")
    plain = activations(any_model, TOKENS, [site])[site]
    for other in (sae, random_sae(any_model, "attn_out.2", seed=3), random_transcoders(any_model)[1]):
        acts = acts_of(other, activations(any_model, TOKENS, [other.reads])[other.reads])[..., 3]
        above = float(acts[:, 1:].median())
        expected = acts > above
        expected[:, 0] = False
        assert 0 < expected.sum() < 20
        with steer(any_model, sae, 5, 10.0, where=active(other, 3, above=above)):
            changed = (activations(any_model, TOKENS, [site])[site] != plain).any(-1)
        assert torch.equal(changed, expected)


def test_bos_is_touched_when_asked_for(model):
    sae, site = random_sae(model, "resid_post.3"), parse_site("resid_post.3")
    plain = activations(model, TOKENS, [site])[site]
    with steer(model, sae, 5, 10.0, bos=True):
        changed = activations(model, TOKENS, [site])[site] != plain
    assert changed.any(-1).all()
    with (
        steer(model, sae, 5, 10.0, positions=0),
        pytest.raises(InputError, match=r"position 0 is left out: it is BOS.* give bos=True"),
    ):
        scores(model)


def test_the_opening_of_a_chat_is_left_out_with_gemma_scope_2_for_it_models():
    model = tiny_gemma(chat=True, name="google/gemma-3-270m-it")
    ids = model.tokenizer("<bos><start_of_turn>user\nthe hat", add_special_tokens=False, return_tensors="pt")[
        "input_ids"
    ]
    opening = len(model.tokenizer("<bos><start_of_turn>user\n", add_special_tokens=False)["input_ids"])
    site = parse_site("resid_post.3")
    plain = activations(model, ids, [site])[site]
    for name, first in [("google/gemma-3-270m-it", opening), ("google/gemma-3-270m", 1)]:
        with steer(model, random_sae(model, "resid_post.3", model_name=name), 5, 10.0):
            changed = (activations(model, ids, [site])[site] != plain).any(-1)[0]
        assert changed.tolist() == [position >= first for position in range(ids.shape[1])]


def test_padding_on_the_left_shifts_no_position_and_is_not_touched(model):
    sae = random_sae(model, "resid_post.3")
    ids = torch.cat([torch.zeros(2, 3, dtype=torch.int64), TOKENS], dim=1)
    mask = (torch.arange(14) >= 3).long().expand(2, 14)
    found = []
    for positions in ([], [4, -1]):
        with steer(model, sae, 5, 10.0, positions=positions), reading(model, [sae.writes]) as seen, torch.no_grad():
            model.module(ids, attention_mask=mask)
        found.append(seen[sae.writes][0])
    changed = (found[0] != found[1]).any(-1)
    assert changed.nonzero()[:, 1].tolist() == [7, 13, 7, 13]


def test_each_text_of_a_batch_can_have_its_own_strength(any_model):
    sae = random_sae(any_model, "resid_post.3")
    strengths = torch.tensor([[0.0, 1.0, 2.0], [-1.0, 0.0, 0.5]])
    with steer(any_model, sae, FEATURES, strengths):
        together = scores(any_model)
    for row in range(2):
        with steer(any_model, sae, FEATURES, strengths[row].tolist()):
            close(together[row : row + 1], scores(any_model, TOKENS[row : row + 1]))
    with (
        steer(any_model, sae, 3, torch.ones(3, 1)),
        pytest.raises(InputError, match=r"strengths for 3 texts, .* reads 2"),
    ):
        scores(any_model)


# Order, and the end


def test_nested_edits_compose_in_order(any_model):
    site = parse_site("resid_post.3")
    one, other = random_sae(any_model, "resid_post.3"), random_sae(any_model, "resid_post.3", seed=1)

    def expected(first, second):
        changes = {
            "ablate": lambda x: -acts_of(one, x)[..., FEATURES] @ one.decoder.weight[FEATURES],
            "set": lambda x: (4 - acts_of(other, x)[..., [3]]) @ other.decoder.weight[[3]],
        }
        with by_hand(any_model, site, changes[first]), by_hand(any_model, site, changes[second]):
            return scores(any_model)

    with ablate(any_model, one, FEATURES), steer(any_model, other, 3, 4.0, mode="set"):
        found = scores(any_model)
    close(found, expected("ablate", "set"))
    with steer(any_model, other, 3, 4.0, mode="set"), ablate(any_model, one, FEATURES):
        other_way = scores(any_model)
    close(other_way, expected("set", "ablate"))
    assert (found - other_way).abs().max() > 1e-3


def test_edits_of_several_dictionaries_and_layers_at_once(any_model):
    sites = ["embed", "attn_out.1", "mlp_out.2", "resid_mid.4", "resid_post.5"]
    saes = [random_sae(any_model, site, seed=index) for index, site in enumerate(sites)]
    with ExitStack() as stack:
        for sae in saes:
            change = lambda x, s=sae: -acts_of(s, x)[..., FEATURES] @ s.decoder.weight[FEATURES]  # noqa: E731
            stack.enter_context(by_hand(any_model, sae.writes, change))
        expected = scores(any_model)
    for order in (saes, saes[::-1]):
        with ExitStack() as stack:
            for sae in order:
                stack.enter_context(ablate(any_model, sae, FEATURES))
            close(scores(any_model), expected)


def test_hooks_are_gone_after_an_exception(any_model):
    sae, clt = random_sae(any_model, "resid_mid.3"), random_clt(any_model)
    normalized = random_sae(any_model, "mlp_in_normalized.3")
    plain, before = scores(any_model), hooks_left(any_model)
    for fail in (lambda: 1 / 0, lambda: scores(any_model, TOKENS[:, :4])):
        with (
            pytest.raises((ZeroDivisionError, InputError)),
            ablate(any_model, clt, 4, layer=2),
            ablate(any_model, normalized, 3, where=active(sae, 3)),
            ablate(any_model, sae, 3, positions=7),
        ):
            assert hooks_left(any_model) > before
            fail()
        assert hooks_left(any_model) == before
    assert torch.equal(scores(any_model), plain)


def test_within_unedited_the_model_is_as_it_was_and_afterwards_edited_again(model):
    sae, plain = random_sae(model, "resid_post.3"), scores(model)
    with steer(model, sae, 5, 10.0):
        edited = scores(model)
        with unedited(model):
            assert torch.equal(scores(model), plain)
            scores(model, TOKENS[:1, :5])
        assert torch.equal(scores(model), edited)


# Contradictions and bad input


def test_two_edits_that_contradict_each_other_are_refused_and_named(model):
    sae = random_sae(model, "resid_post.3")
    named = r"ablate feature 5 of .*handmade.* and steer feature 5 of .* \(set 2\) contradict each other at one place"
    with ablate(model, sae, 5), pytest.raises(InputError, match=named), steer(model, sae, 5, 2.0, mode="set"):
        pass
    # Of one place: other positions are another.
    with ablate(model, sae, [4, 5], positions=slice(0, 6)):
        with steer(model, sae, 5, 2.0, mode="set", positions=slice(6, None)):
            scores(model)
        with steer(model, sae, 5, 2.0, mode="set", positions=5), pytest.raises(InputError, match="contradict"):
            scores(model)
        with patch(model, sae, 5, TOKENS[0]), pytest.raises(InputError, match=r"ablate .* and patch .* contradict"):
            scores(model)
    with (
        splice(model, sae, without=[5]),
        pytest.raises(InputError, match="contradict"),
        steer(model, sae, 5, 2.0, mode="set"),
    ):
        pass


def test_edits_that_add_up_or_agree_do_not_contradict(model):
    sae, other = random_sae(model, "resid_post.3"), random_sae(model, "resid_post.3", seed=1)
    with ablate(model, sae, 5), ablate(model, sae, [5, 6]), steer(model, sae, 5, 1.0), ablate(model, other, 5):
        scores(model)
    with steer(model, sae, 5, 1.0), steer(model, sae, 5, 2.0):
        found = scores(model)
    with steer(model, sae, 5, 3.0):
        close(scores(model), found)


NAN = float("nan")


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda m, s: ablate(m, s, 40), r"40 does not exist in handmade: those that read resid_post\.3 are 0 to 39"),
        (lambda m, s: ablate(m, s, -1), "feature -1 does not exist"),
        (lambda m, s: ablate(m, s, [3, "4"]), "feature 4 does not exist"),
        (lambda m, s: ablate(m, s, 3, layer=4), r"layer 4: handmade reads resid_post\.3"),
        (lambda m, s: ablate(m, s, 3, positions=[1.5]), r"position 1\.5 is no whole number"),
        (lambda m, s: ablate(m, s, 3, positions=slice(5, 1, -1)), "a step of 1 or more"),
        (lambda m, s: ablate(m, random_clt(m), 3), r"of its own for each of the layers 0, 1, .* no layer was given"),
        (lambda m, s: ablate(m, random_clt(m), 3, layer=7), "layer 7 is not one of them"),
        (lambda m, s: ablate(m, s, 3, where=active(random_sae(m, "resid_post.4"), 3)), r"reaches resid_post\.3 first"),
        (lambda m, s: ablate(m, s, 3, where=active(s, 3, above=NAN)), "above nan"),
        (lambda m, s: steer(m, s, 3, NAN), "strength nan: take finite numbers"),
        (lambda m, s: steer(m, s, 3, float("inf")), "strength inf"),
        (lambda m, s: steer(m, s, [3, 4], [1.0, 2.0, 3.0]), "3 strengths for 2 features"),
        (lambda m, s: steer(m, s, [3, 3], [1.0, 2.0]), "feature 3 is to be steered twice at one place"),
        (lambda m, s: steer(m, s, 3, torch.ones(2)), r"strengths \[2\]: a tensor is \[texts, 1\]"),
        (lambda m, s: steer(m, s, 3, 1.0, mode="ad"), "no mode is called 'ad'; did you mean add"),
        (lambda m, s: steer(m, s, 3, 1.0, relative_to="mx"), "cannot be relative to 'mx'; did you mean max"),
        (lambda m, s: steer(m, s, 3, 1.0, mode="scale", relative_to="max"), "mode scale multiplies"),
        (lambda m, s: steer(m, s, 3, 1.0, relative_to="max"), "nothing beside handmade says how strongly"),
        (lambda m, s: steer(m, s, 3, 1.0, relative_to="max", maximum=0.0), "maximum 0.0: .* above 0"),
        (lambda m, s: steer(m, s, 3, 1.0, maximum=5.0), "a maximum is only used by"),
        (lambda m, s: steer_direction(m, "resid_post.3", torch.ones(15), 1.0), r"is a tensor \[16\], got \[15\]"),
        (lambda m, s: steer_direction(m, "resid_post.3", torch.zeros(16), 1.0), "the direction is zero"),
        (lambda m, s: steer_direction(m, "resid_post.3", torch.ones(16), 1.0, mode="set"), "has no activation"),
        (lambda m, s: patch(m, s, 3, TOKENS[0], take=11), "take 11: the other prompt has 11 tokens, 0 to 10"),
        (lambda m, s: splice(m, random_clt(m, crosscoder=True)), "is a crosscoder"),
        (lambda m, s: splice(m, random_clt(m), without=[3]), "splice it whole"),
        (lambda m, s: splice(m, s, without=[40]), "feature 40 does not exist"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_the_model_runs(edit, said, model):
    before = hooks_left(model)
    with pytest.raises(InputError, match=said), edit(model, random_sae(model, "resid_post.3")):
        pass
    assert hooks_left(model) == before


def test_positions_that_the_text_does_not_have_are_refused(model):
    sae = random_sae(model, "resid_post.3")
    for position in (11, -12):
        with (
            ablate(model, sae, 3, positions=position),
            pytest.raises(InputError, match="the text has 11 tokens, 0 to 10"),
        ):
            scores(model)


def test_a_dictionary_of_another_layer_or_width_is_refused(model):
    with pytest.raises(MismatchError), ablate(model, random_sae(model, "resid_post.7"), 3):
        pass
    with pytest.raises(MismatchError), ablate(model, sae_of(random_tensors(15, 40), parse_site("resid_post.3")), 3):
        pass


def test_blocks_that_are_run_alone_are_refused(model):
    x = torch.randn(1, 5, 16)
    with (
        steer_direction(model, "mlp_out.3", torch.ones(16), 1.0),
        pytest.raises(InputError, match="has not seen the tokens"),
    ):
        model.blocks[3].post_feedforward_layernorm(x)
