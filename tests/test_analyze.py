"""An analysis says of every token what encoding the model's own activations by hand says."""

from __future__ import annotations

import dataclasses
import io
import math

import numpy as np
import pytest
import torch
from rich.console import Console

from gemlens import __version__
from gemlens.errors import InputError, MismatchError, WeightsError
from gemlens.lm.gemma import activations
from gemlens.lm.text import encode_prompt, pieces, prompt_text
from gemlens.report import table
from gemlens.report.html import to_html
from gemlens.report.json import to_dict
from gemlens.sites import parse_site
from gemlens.study.analyze import analyze
from gemlens.study.fit_check import check_fit, site_width
from tiny import CONTEXT, HEAD_DIM, HEADS, HIDDEN, random_sae, random_tensors, sae_of, some_tokens, tiny_gemma

PROMPT = "The thing and 😀日 the hand"


@pytest.fixture(scope="module")
def sae(model):
    return random_sae(model, "resid_post.2")


def by_hand(model, dictionary, ids):
    """[n, width] activations of the dictionary over the whole text, BOS included."""
    x = activations(model, torch.tensor([ids]), [dictionary.reads])[dictionary.reads][0]
    pre = x @ dictionary.encoder.weight.T + dictionary.b_enc
    return torch.relu(pre) * (pre > dictionary.threshold)


def check_against(analysis, model, dictionaries, *, exact=True):
    """Hold every token of an analysis against the dense formula; BOS has nothing."""
    ids = [token.token_id for token in analysis.tokens]
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if exact else {"rtol": 1e-3, "atol": 1e-3}
    for index, dictionary in enumerate(dictionaries):
        dense = by_hand(model, dictionary, ids)
        for position, token in enumerate(analysis.tokens):
            row = dense[position].clone() if token.token_id != model.bos else torch.zeros(dictionary.width)
            found, values = analysis.activations[index].row(position)
            assert found.tolist() == row.nonzero()[:, 0].tolist()
            torch.testing.assert_close(torch.from_numpy(values), row[found], **tolerance)
            strongest = sorted(zip(values.tolist(), (-found).tolist(), strict=True), reverse=True)[: analysis.top_k]
            listed = [feature for feature in token.features if feature.dictionary == index]
            assert [(feature.activation, -feature.feature_id) for feature in listed] == strongest
            if index == 0:
                assert token.l0 == (None if token.token_id == model.bos else len(found))


@pytest.mark.parametrize("top_k", [1, 5, 1000])
@pytest.mark.parametrize("site", ["resid_post.0", "resid_post.6", "mlp_out.3", "attn_out.1", "mlp_in.4"])
def test_features_are_those_of_the_models_activations(site, top_k, model):
    dictionary = random_sae(model, site)
    analysis = analyze(model, dictionary, PROMPT, top_k=top_k)
    check_against(analysis, model, [dictionary])
    assert any(token.features for token in analysis.tokens)
    assert analysis.dictionaries == (dictionary.info,)


def test_tokens_are_those_of_the_prompt(model, sae):
    analysis = analyze(model, sae, PROMPT)
    fed = prompt_text(model, PROMPT)
    ids = encode_prompt(model, fed)[0].tolist()
    assert [token.token_id for token in analysis.tokens] == ids
    assert [token.position for token in analysis.tokens] == list(range(len(ids)))
    assert [token.token for token in analysis.tokens] == pieces(model, ids)
    assert "".join(token.text for token in analysis.tokens) == fed == analysis.prompt_text == "<bos>" + PROMPT
    assert not any(token.is_generated for token in analysis.tokens)
    assert [token.is_special for token in analysis.tokens] == [True] + [False] * (len(ids) - 1)
    assert analysis.generated_text == ""


def test_bos_has_no_features(model, sae):
    bos, *others = analyze(model, sae, PROMPT).tokens
    assert (bos.token, bos.is_special, bos.l0, bos.features) == ("<bos>", True, None, ())
    assert all(isinstance(token.l0, int) for token in others)


@pytest.mark.parametrize("prompt", ["<bos>", "<bos>one<bos>two<bos>"])
def test_every_bos_is_left_out(prompt, model, sae):
    analysis = analyze(model, sae, prompt)
    check_against(analysis, model, [sae])
    assert [token.l0 is None for token in analysis.tokens] == [token.token == "<bos>" for token in analysis.tokens]


def test_chat_turns_are_marked_special_and_still_read(chat_model, sae):
    analysis = analyze(chat_model, sae, "Hi", system="Be brief.")
    assert analysis.prompt_text == ("<bos><start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n<start_of_turn>model\n")
    special = [token.token for token in analysis.tokens if token.is_special]
    assert special == ["<bos>", "<start_of_turn>", "<end_of_turn>", "<start_of_turn>"]
    assert all(token.l0 is not None for token in analysis.tokens[1:])
    check_against(analysis, chat_model, [sae])
    assert (analysis.prompt, analysis.system) == ("Hi", "Be brief.")
    assert analyze(chat_model, sae, "Hi", chat=False).prompt_text == "<bos>Hi"


OPENING = ["<bos>", "<start_of_turn>", "u", "s", "e", "r", "\n"]  # 4 tokens of Gemma's vocabulary, 7 of this one


@pytest.mark.parametrize(
    "info",
    [
        {"model_name": "google/gemma-3-270m-it"},
        {"model_name": "gemma-3-27b-it"},
        {"release": "google/gemma-scope-2-1b-it"},
        {"release": "/data/gemma-scope-2-270m-it"},
        {"release": "gemma-scope-2-270m-it-res"},
    ],
    ids=str,
)
def test_the_opening_of_a_chat_is_left_out_where_gemma_scope_2_left_it_out(info, chat_model, sae):
    ours = random_sae(chat_model, "resid_post.3", **info)
    analysis = analyze(chat_model, ours, "Hi", max_new_tokens=2, greedy=True)
    n = len(OPENING)
    assert [token.token for token in analysis.tokens[:n]] == OPENING
    assert all(token.l0 is None and not token.features for token in analysis.tokens[:n])
    assert not analysis.activations[0].indptr[n]
    rest = analyze(chat_model, random_sae(chat_model, "resid_post.3"), "Hi", max_new_tokens=2, greedy=True)
    assert [(token.l0, token.features) for token in analysis.tokens[n:]] == [
        (token.l0, token.features) for token in rest.tokens[n:]
    ]
    assert all(token.l0 is not None for token in rest.tokens[1:])

    # One answer for all dictionaries: views mark tokens, not tokens of a dictionary.
    both = analyze(chat_model, [random_sae(chat_model, "resid_post.1"), ours], "Hi")
    assert [token.l0 is None for token in both.tokens] == [i < n for i in range(len(both.tokens))]
    assert all(active.indptr[n] == 0 for active in both.activations)


def test_every_view_marks_the_opening_of_a_chat_as_not_read(chat_model):
    ours = random_sae(chat_model, "resid_post.3", model_name="google/gemma-3-270m-it")
    analysis = analyze(chat_model, ours, "Hi")
    terminal = Console(file=io.StringIO(), width=120)
    table.render(analysis, terminal)
    shown = (terminal.file.getvalue(), to_html(analysis).split("<script")[0], analysis._repr_html_())
    assert [text.count("not read") for text in shown] == [len(OPENING)] * 3
    assert [token["l0"] for token in to_dict(analysis)["tokens"][: len(OPENING) + 1]].count(None) == len(OPENING)


@pytest.mark.parametrize(
    "info",
    [
        {"model_name": "google/gemma-3-270m"},
        {"model_name": "google/gemma-3-4b-pt"},
        {"model_name": "google/gemma-3-4b-pt", "release": "google/gemma-scope-2-4b-it"},
        {"model_name": "someone/gemma-3-italian"},
        {"release": "google/gemma-scope-2-270m-pt"},
        {"release": "google/gemma-scope-9b-it-res"},
    ],
    ids=str,
)
def test_other_dictionaries_read_the_opening_of_a_chat(info, chat_model):
    analysis = analyze(chat_model, random_sae(chat_model, "resid_post.3", **info), "Hi")
    assert [token.l0 is None for token in analysis.tokens] == [i == 0 for i in range(len(analysis.tokens))]


@pytest.mark.parametrize("prompt", ["Hi", "<start_of_turn>model\nHi", "x<start_of_turn>user\nHi"])
def test_a_text_that_opens_no_chat_is_read_from_its_first_token(prompt, chat_model, model):
    for each in (chat_model, model):
        ours = random_sae(each, "resid_post.3", model_name="google/gemma-3-270m-it")
        analysis = analyze(each, ours, prompt, chat=False)
        assert [token.l0 is None for token in analysis.tokens] == [i == 0 for i in range(len(analysis.tokens))]


def test_a_chat_written_by_hand_opens_like_one(chat_model, model):
    text = "<start_of_turn>user\nHi<end_of_turn>\n"
    ours = random_sae(chat_model, "resid_post.3", model_name="google/gemma-3-270m-it")
    assert sum(token.l0 is None for token in analyze(chat_model, ours, text, chat=False).tokens) == len(OPENING)
    # Without a template it is a base model, to which these tokens mean nothing.
    assert sum(token.l0 is None for token in analyze(model, ours, text).tokens) == 1


def test_several_dictionaries_share_one_pass(model):
    sites = ["resid_post.5", "resid_post.1", "attn_out.3", "resid_post.5"]
    dictionaries = [random_sae(model, site, seed=seed, width=20 + seed) for seed, site in enumerate(sites)]
    passes = []
    handle = model.blocks[0].register_forward_hook(lambda *_: passes.append(1))
    analysis = analyze(model, dictionaries, PROMPT, top_k=3)
    handle.remove()
    assert len(passes) == 1
    check_against(analysis, model, dictionaries)
    assert [info.site for info in analysis.dictionaries] == sites
    for token in analysis.tokens[1:]:
        order = [feature.dictionary for feature in token.features]
        assert order == sorted(order)
    alone = analyze(model, dictionaries[2], PROMPT, top_k=3)
    for name in ("indptr", "ids", "values"):
        assert np.array_equal(getattr(alone.activations[0], name), getattr(analysis.activations[2], name))


def test_ties_are_listed_by_id(model):
    tensors = random_tensors(HIDDEN, 6)
    tensors = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    tensors["b_enc"] = torch.tensor([1.0, 2.0, 1.0, 2.0, 0.0, -1.0])
    token = analyze(model, sae_of(tensors, parse_site("resid_post.2")), "x", top_k=3).tokens[1]
    assert [(feature.feature_id, feature.activation) for feature in token.features] == [(1, 2.0), (3, 2.0), (0, 1.0)]
    assert token.l0 == 4


def test_columns_are_one_feature_over_all_tokens(model, sae):
    analysis = analyze(model, sae, PROMPT)
    dense = by_hand(model, sae, [token.token_id for token in analysis.tokens])
    dense[0] = 0
    for feature in range(sae.width):
        np.testing.assert_allclose(analysis.activations[0].column(feature), dense[:, feature], rtol=1e-5)


def test_records_are_plain_and_frozen(model, sae):
    analysis = analyze(model, sae, PROMPT)
    active = analysis.activations[0]
    assert (active.indptr.dtype, active.ids.dtype, active.values.dtype) == (np.int64, np.int64, np.float32)
    assert len(active.indptr) == len(analysis.tokens) + 1
    assert type(analysis.tokens[1].features[0].activation) is float
    with pytest.raises(dataclasses.FrozenInstanceError):
        analysis.prompt = "other"


# Generation


@pytest.mark.parametrize("options", [{"greedy": True}, {"temperature": 3.0, "seed": 5}], ids=["greedy", "sampled"])
def test_generated_tokens_are_read_like_the_others(options, model, sae):
    analysis = analyze(model, sae, PROMPT, max_new_tokens=12, **options)
    n = encode_prompt(model, analysis.prompt_text).shape[1]
    assert [token.is_generated for token in analysis.tokens] == [False] * n + [True] * (len(analysis.tokens) - n)
    assert len(analysis.tokens) == n + 12
    check_against(analysis, model, [sae], exact=False)
    assert "".join(token.text for token in analysis.tokens) == analysis.prompt_text + analysis.generated_text


def test_the_prompts_part_does_not_depend_on_generation(model, sae):
    alone, extended = analyze(model, sae, PROMPT), analyze(model, sae, PROMPT, max_new_tokens=3)
    assert extended.tokens[: len(alone.tokens)] == alone.tokens


def test_an_end_token_ends_the_analysis():
    model = tiny_gemma()
    sae = random_sae(model, "resid_post.2")
    free = analyze(model, sae, PROMPT, max_new_tokens=12, greedy=True)
    generated = [token.token_id for token in free.tokens if token.is_generated]
    model.module.generation_config.eos_token_id = generated[4]
    ended = analyze(model, sae, PROMPT, max_new_tokens=12, greedy=True)
    assert [token.token_id for token in ended.tokens if token.is_generated] == generated[
        : generated.index(generated[4]) + 1
    ]


def test_the_same_seed_gives_the_same_record(model, sae):
    options = {"max_new_tokens": 10, "temperature": 30.0, "top_p": 1.0}
    one, two, other = (analyze(model, sae, PROMPT, seed=seed, **options) for seed in (1, 1, 2))
    assert one.tokens == two.tokens
    assert one.tokens != other.tokens


# Provenance


def test_a_record_carries_what_made_it(model, sae):
    made = analyze(model, sae, PROMPT, max_new_tokens=2, temperature=0.5, top_p=0.9, seed=11).provenance
    assert (made.gemlens_version, made.torch_version) == (__version__, torch.__version__)
    assert (made.dtype, made.device, made.seed, made.temperature, made.top_p) == ("float32", "cpu", 11, 0.5, 0.9)
    assert made.created.endswith("+00:00")


@pytest.mark.parametrize(
    "options", [{}, {"max_new_tokens": 2, "greedy": True}, {"max_new_tokens": 2, "temperature": 0}]
)
def test_what_was_not_sampled_has_no_temperature(options, model, sae):
    made = analyze(model, sae, PROMPT, **options).provenance
    assert (made.temperature, made.top_p) == (None, None)


# Pairs that do not fit


def trained_on(model, name, **info):
    return random_sae(model, "resid_post.2", model_name=name, **info)


@pytest.mark.parametrize(
    ("ours", "theirs", "warned"),
    [
        ("google/gemma-3-270m-it", "google/gemma-3-270m-it", False),
        ("google/gemma-3-270m", "google/gemma-3-270m-pt", False),
        ("models/Gemma-3-270M/", "google/gemma-3-270m", False),
        ("starter", "google/gemma-3-270m-pt", False),
        ("google/gemma-3-270m-it", None, False),
        ("google/gemma-3-270m", "google/gemma-3-270m-it", True),
        ("starter", "google/gemma-3-270m-it", True),
        ("org/my-finetune", "google/gemma-3-270m", True),
    ],
)
def test_a_sibling_runs_with_a_warning(ours, theirs, warned):
    model = tiny_gemma(name=ours)
    warnings = analyze(model, trained_on(model, theirs), "x").warnings
    expected = f"resid_post/handmade was trained on {theirs}, not on {ours}: features may mislead"
    assert warnings == ((expected,) if warned else ())


def test_a_dictionary_without_category_is_named_by_its_id(model):
    assert check_fit(model, trained_on(model, "google/gemma-3-1b-it", category=""))[0].startswith(
        "handmade was trained"
    )


@pytest.mark.parametrize("name", ["google/gemma-3-270m-it", "models/mine"])
def test_another_generation_is_refused(name):
    model = tiny_gemma(name=name)
    with pytest.raises(MismatchError, match=f"was trained on google/gemma-2-2b, {name} is of another generation"):
        analyze(model, trained_on(model, "google/gemma-2-2b"), "x")


def test_a_layer_that_the_model_lacks_is_refused(model):
    with pytest.raises(
        MismatchError, match=r"resid_post\.7 does not exist in google/gemma-3-tiny: its layers are 0 to 6"
    ):
        analyze(model, random_sae(model, "resid_post.7"), "x")


def test_another_width_is_refused_before_anything_is_computed(model):
    wide = sae_of(random_tensors(HIDDEN + 8, 10), parse_site("resid_post.2"), model_name="google/gemma-3-1b-it")
    with pytest.raises(
        MismatchError, match=r"expects 24 numbers at resid_post\.2, google/gemma-3-tiny has 16; it was trained "
    ):
        analyze(model, wide, "")
    writes_elsewhere = sae_of(random_tensors(HIDDEN, 10, d_out=5), parse_site("mlp_in.2"), parse_site("mlp_out.2"))
    with pytest.raises(MismatchError, match=r"expects 5 numbers at mlp_out\.2"):
        analyze(model, writes_elsewhere, "x")


def test_the_width_of_a_site_is_that_of_its_activations(model):
    for name, width in {
        "attn_out": HEADS * HEAD_DIM,
        "resid_post": HIDDEN,
        "mlp_in": HIDDEN,
        "mlp_out": HIDDEN,
    }.items():
        site = parse_site(f"{name}.3")
        assert site_width(model, site) == activations(model, some_tokens(), [site])[site].shape[-1] == width


# Options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 0}, "top_k 0: at least 1"),
        ({"top_k": -3}, "top_k -3"),
        ({"max_new_tokens": -1}, "max_new_tokens -1"),
        ({"temperature": -0.1}, "temperature -0.1"),
        ({"temperature": math.nan}, "temperature nan"),
        ({"temperature": math.inf}, "temperature inf"),
        ({"top_p": 0.0}, "top_p 0.0"),
        ({"top_p": 1.01}, "top_p 1.01"),
        ({"top_p": math.nan}, "top_p nan"),
        ({"seed": 2**64}, "must fit in 64 bits"),
        ({"seed": -(2**63) - 1}, "must fit in 64 bits"),
        ({"chat": True}, "has no chat template"),
        ({"max_new_tokens": CONTEXT}, f"and {CONTEXT} new ones, the context"),
    ],
    ids=str,
)
def test_options_out_of_range_are_refused(options, message, model, sae):
    with pytest.raises(InputError, match=message):
        analyze(model, sae, PROMPT, **options)


@pytest.mark.parametrize(
    "options", [{"seed": 2**64 - 1}, {"seed": -1}, {"temperature": 1}, {"top_p": 1}, {"temperature": 1e-45}]
)
def test_options_at_the_edge_of_their_range_work(options, model, sae):
    assert len(analyze(model, sae, "x", max_new_tokens=2, **options).tokens) == 4


def test_an_empty_prompt_and_no_dictionary_are_refused(model, sae):
    with pytest.raises(InputError, match="the prompt is empty"):
        analyze(model, sae, " \n")
    with pytest.raises(InputError, match="no dictionary was given"):
        analyze(model, [], PROMPT)


def test_a_prompt_that_fills_the_context_is_read(model, sae):
    assert len(analyze(model, sae, "x" * (CONTEXT - 1)).tokens) == CONTEXT
    with pytest.raises(InputError, match=f"the context of google/gemma-3-tiny holds {CONTEXT}"):
        analyze(model, sae, "x" * CONTEXT)


def test_a_model_that_computes_nonsense_is_refused():
    model = tiny_gemma()
    model.blocks[1].mlp.up_proj.weight[:] = math.nan
    with pytest.raises(WeightsError, match="not finite"):
        analyze(model, random_sae(model, "resid_post.2"), "x")


def test_a_model_in_bfloat16_is_read_in_the_dictionarys_float32():
    model = tiny_gemma()
    model.module.bfloat16()
    sae = random_sae(model, "resid_post.2")
    analysis = analyze(model, sae, PROMPT, max_new_tokens=3)
    ids = torch.tensor([[token.token_id for token in analysis.tokens if not token.is_generated]])
    x = activations(model, ids, [sae.reads])[sae.reads][0].float()
    pre = x @ sae.encoder.weight.T + sae.b_enc
    last = ids.shape[1] - 1
    found, _ = analyze(model, sae, PROMPT).activations[0].row(last)
    assert found.tolist() == (pre[last] > sae.threshold).nonzero()[:, 0].tolist()
    assert analysis.provenance.dtype == "bfloat16"


# The real thing


def test_the_starter_from_prompt_to_record(starter):
    sae = sae_of(random_tensors(640, 200), parse_site("resid_post.12"), model_name="google/gemma-3-270m")
    analysis = analyze(starter, sae, "The capital of France is", max_new_tokens=4, greedy=True)
    check_against(analysis, starter, [sae], exact=False)
    assert [token.text for token in analysis.tokens[:6]] == ["<bos>", "The", " capital", " of", " France", " is"]
    assert [token.is_generated for token in analysis.tokens] == [False] * 6 + [True] * 4
    assert analysis.generated_text.strip()
    assert analysis.warnings == ()
