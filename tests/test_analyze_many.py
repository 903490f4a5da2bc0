"""Many prompts read together say what each says alone, whatever their lengths, and come in their order."""

from __future__ import annotations

import math
from contextlib import contextmanager

import numpy as np
import pytest
import torch

import gemlens.study.analyze as study
from gemlens.errors import InputError, MismatchError, WeightsError
from gemlens.lm.gemma import activations, ragged_activations
from gemlens.scope.sae import SAE
from gemlens.sites import SITES, Site, parse_site
from gemlens.study.analyze import analyze, analyze_many
from tiny import CONTEXT, LAYERS, random_sae, random_tensors, sae_of, some_tokens, tiny_gemma

ALL_SITES = [Site(layer, name) for layer in range(LAYERS) for name in SITES if name != "embed" or layer == 0]
# Windows are of 4 tokens; one prompt fills the context; BOS is found inside one; equal ones; bytes of a character.
PROMPTS = ["The thing", "x", "hand " * 20, "é日😀", "x" * (CONTEXT - 1), "a<bos>b", "x", "the hand and the thing", "in"]


def assert_same(found, expected):
    """Everything equal but for rounding: a batch adds up in another order."""
    for name in ("prompt", "system", "prompt_text", "model_id", "top_k", "max_new_tokens", "dictionaries", "warnings"):
        assert getattr(found, name) == getattr(expected, name), name
    for ours, theirs in zip(found.activations, expected.activations, strict=True):
        assert np.array_equal(ours.indptr, theirs.indptr)
        assert np.array_equal(ours.ids, theirs.ids)
        # Relative to the strongest too: a weak pre-activation is what is left of large terms.
        atol = 1e-6 * theirs.values.max(initial=0)
        np.testing.assert_allclose(ours.values, theirs.values, rtol=1e-4, atol=atol)
        assert (ours.indptr.dtype, ours.ids.dtype, ours.values.dtype) == (np.int64, np.int64, np.float32)
    for ours, theirs in zip(found.tokens, expected.tokens, strict=True):
        for name in ("position", "token_id", "token", "text", "is_generated", "is_special", "l0"):
            assert getattr(ours, name) == getattr(theirs, name), name
        listed, wanted = ([(f.dictionary, f.feature_id) for f in token.features] for token in (ours, theirs))
        assert listed == wanted


@contextmanager
def passes(model):
    """Shapes [batch, n] of what the model reads."""
    shapes = []

    def note(_module, _args, kwargs):
        shapes.append(tuple(kwargs["input_ids"].shape))

    handle = model.backbone.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield shapes
    finally:
        handle.remove()


# Padding


@pytest.mark.parametrize("kind", ["gemma3-sdpa", "gemma3-eager", "gemma2", "multimodal"])
def test_what_follows_a_text_changes_nothing_at_any_site(kind):
    model = tiny_gemma(kind=kind.split("-")[0])
    if "-" in kind:
        model.module.set_attn_implementation(kind.split("-")[1])
    texts = [some_tokens(n, seed=n)[0] for n in (3, 12, 1, 5, 12, 40)]
    found = ragged_activations(model, texts, ALL_SITES)
    for site in ALL_SITES:
        alone = torch.cat([activations(model, text[None], [site])[site][0] for text in texts])
        torch.testing.assert_close(found[site], alone, rtol=1e-4, atol=1e-4)


def test_no_padding_is_returned_or_checked(model):
    site = parse_site("mlp_out.0")
    spoilt = tiny_gemma()
    norm = spoilt.blocks[0].post_feedforward_layernorm
    norm.register_forward_hook(lambda _module, _args, out: out.masked_fill(padding[..., None], math.nan))
    texts = [some_tokens(n)[0] for n in (2, 5)]
    padding = torch.tensor([[False] * 2 + [True] * 3, [False] * 5])
    found = ragged_activations(spoilt, texts, [site])[site]
    torch.testing.assert_close(found, ragged_activations(model, texts, [site])[site])
    assert found.shape[0] == 7


# The same as one at a time


@pytest.mark.parametrize("kind", ["gemma3", "gemma2"])
@pytest.mark.parametrize("top_k", [1, 5])
def test_together_is_one_at_a_time(kind, top_k):
    model = tiny_gemma(kind=kind, name=f"google/{kind}-tiny")
    dictionaries = [random_sae(model, site, seed=seed) for seed, site in enumerate(("resid_post.5", "attn_out.1"))]
    with passes(model) as shapes:
        found = list(analyze_many(model, dictionaries, PROMPTS, top_k=top_k))
    assert 1 < len(shapes) < len(PROMPTS)
    assert any(batch > 1 for batch, _ in shapes)
    for analysis, prompt in zip(found, PROMPTS, strict=True):
        assert_same(analysis, analyze(model, dictionaries, prompt, top_k=top_k))


def test_chats_bring_their_own_system_text_and_skip_their_opening(chat_model):
    sae = random_sae(chat_model, "resid_post.3", model_name="google/gemma-3-270m-it")
    prompts = ["Hi", ("Hi", "Be brief."), ("the hand and the thing", None), "x" * 60]
    systems = ["Be kind.", "Be brief.", None, "Be kind."]
    found = list(analyze_many(chat_model, sae, prompts, system="Be kind."))
    for analysis, prompt, system in zip(found, ["Hi", "Hi", "the hand and the thing", "x" * 60], systems, strict=True):
        assert_same(analysis, analyze(chat_model, sae, prompt, system=system))
        assert sum(token.l0 is None for token in analysis.tokens) == 7
    plain = list(analyze_many(chat_model, sae, prompts, chat=False))
    assert [analysis.prompt_text for analysis in plain[:2]] == ["<bos>Hi", "<bos>Be brief.\n\nHi"]
    assert_same(plain[1], analyze(chat_model, sae, "Hi", system="Be brief.", chat=False))


def test_one_prompt_and_none(model):
    sae = random_sae(model, "resid_post.2")
    (only,) = analyze_many(model, sae, ["The thing"])
    assert_same(only, analyze(model, sae, "The thing"))
    assert list(analyze_many(model, sae, [])) == []


def test_a_record_does_not_keep_its_batch_in_memory(model):
    first, *_ = analyze_many(model, random_sae(model, "resid_post.2"), ["The thing"] * 30)
    active = first.activations[0]
    for name in ("indptr", "ids", "values"):
        array = getattr(active, name)
        base = array if array.base is None else array.base
        assert torch.as_tensor(array).untyped_storage().nbytes() == array.nbytes
        assert getattr(base, "nbytes", array.nbytes) == array.nbytes


# Bounds


def test_a_batch_is_bounded_with_its_padding(model, monkeypatch):
    monkeypatch.setattr(study, "_BATCH", 60)
    monkeypatch.setattr(study, "_PADDING", 10)
    calls = []
    encode = SAE.encode
    monkeypatch.setattr(SAE, "encode", lambda sae, x: calls.append(len(x)) or encode(sae, x))
    lengths = [90, *map(int, np.random.default_rng(0).integers(1, 20, 80)), 70]
    with passes(model) as shapes:
        found = list(analyze_many(model, [random_sae(model, "resid_post.1")] * 2, ["x" * n for n in lengths]))
    assert [len(analysis.tokens) for analysis in found] == [n + 1 for n in lengths]
    assert all(batch == 1 or batch * n <= 60 for batch, n in shapes)
    assert sum(batch for batch, _ in shapes) == len(lengths)
    padding = sum(batch * n for batch, n in shapes) - sum(n + 1 for n in lengths)
    assert padding <= 10 * len(shapes)
    assert len(shapes) < 0.5 * len(lengths)
    assert len(calls) == 2 * len(shapes)
    assert sum(calls) == 2 * sum(lengths)


def test_prompts_of_one_length_share_a_pass(model):
    sae = random_sae(model, "resid_post.1")
    with passes(model) as shapes:
        list(analyze_many(model, sae, ["x" * 19] * 64))
    assert shapes == [(64, 20)]
    with passes(model) as shapes:
        list(analyze_many(model, sae, ["x" * 127] * 20))
    assert shapes == [(16, 128), (4, 128)]  # 2,048 tokens


def test_a_short_prompt_does_not_pay_for_a_long_one():
    model = tiny_gemma(max_position_embeddings=2048)
    with passes(model) as shapes:
        list(analyze_many(model, random_sae(model, "resid_post.0"), ["x" * 999, "x", "xx"]))
    assert sorted(shapes) == [(1, 1000), (2, 3)]


def test_prompts_are_taken_and_read_only_as_they_are_needed(model, monkeypatch):
    monkeypatch.setattr(study, "_WINDOW", 50)
    taken, read = [], []

    def prompts():
        for n in (9, 1, 9, 1) * 5:
            taken.append(n)
            yield "x" * n

    monkeypatch.setattr(study, "_PADDING", 0)
    found = analyze_many(model, random_sae(model, "resid_post.2"), prompts(), report=read.append)
    assert (taken, read) == ([], [])
    next(found)
    assert len(taken) < 10
    assert read == [taken.count(9)]  # those as long as the first, not the short ones
    next(found)
    assert read == [taken.count(9), taken.count(1)]
    assert len(list(found)) == 18
    assert sum(read) == len(taken) == 20


# Refusals


def test_what_can_be_refused_at_once_is(model):
    sae = random_sae(model, "resid_post.2")
    with pytest.raises(InputError, match="no dictionary was given"):
        analyze_many(model, [], ["x"])
    with pytest.raises(InputError, match="top_k 0"):
        analyze_many(model, sae, ["x"], top_k=0)
    with pytest.raises(MismatchError, match=r"resid_post\.7 does not exist"):
        analyze_many(model, random_sae(model, "resid_post.7"), ["x"])


@pytest.mark.parametrize(
    ("prompt", "message"), [(" \n", "the prompt is empty"), ("x" * CONTEXT, f"has {CONTEXT + 1} tokens")], ids=repr
)
def test_a_refused_prompt_is_named_by_its_place(model, prompt, message):
    with pytest.raises(InputError, match=rf"prompts\[1\]: .*{message}"):
        list(analyze_many(model, random_sae(model, "resid_post.2"), ["x", prompt]))


def test_a_model_that_computes_nonsense_is_refused():
    model = tiny_gemma()
    model.blocks[1].mlp.up_proj.weight[:] = math.nan
    with pytest.raises(WeightsError, match=r"at resid_post\.2 that are not finite"):
        list(analyze_many(model, random_sae(model, "resid_post.2"), ["x", "xx"]))


# The real thing


def test_the_starter_on_prompts_of_mixed_lengths(starter):
    sae = sae_of(random_tensors(640, 200), parse_site("resid_post.12"), model_name="google/gemma-3-270m")
    prompts = ["The capital of France is", "Water", "One two three four five six seven, " * 12, "Die Würde 😀 日本"]
    with passes(starter) as shapes:
        found = list(analyze_many(starter, sae, prompts))
    assert len(shapes) == 2
    for analysis, prompt in zip(found, prompts, strict=True):
        assert_same(analysis, analyze(starter, sae, prompt))
