"""Gemma 2, Gemma 3, and Gemma 3 inside a multimodal checkpoint against the architecture written out: every site read,
every site written, both soft-caps.
"""

from __future__ import annotations

import math
from contextlib import ExitStack, suppress

import pytest
import torch

from gemlens.errors import MismatchError
from gemlens.lm.gemma import Model, activations, generate, logits, writing
from gemlens.lm.resume import clean_pass, resume
from gemlens.sites import SITES, Site, parse_site
from gemlens.study.fidelity import fidelity
from gemlens.study.fit_check import check_fit, site_width
from tiny import (
    ATTENTION_CAP,
    HEAD_DIM,
    HEADS,
    LAYERS,
    LOGIT_CAP,
    random_sae,
    random_tensors,
    sae_of,
    some_tokens,
    tiny_gemma,
    tiny_module,
    tiny_tokenizer,
)

KINDS = ["gemma2", "gemma3", "multimodal"]
TOKENS = some_tokens(9, batch=2)
ALL_SITES = [Site(layer, name) for layer in range(LAYERS) for name in SITES if name != "embed" or layer == 0]
LAST = Site(LAYERS - 1, "resid_post")


def by_hand(weights, tokens, *, gemma, edits=None, attention_cap=ATTENTION_CAP, logit_cap=LOGIT_CAP):
    """All sites, and the logits under None; ``edits`` replaces the value of a site by a function of it.

    Gemma 2 caps attention logits and final logits; Gemma 3 normalises queries and keys, and turns them at another
    speed in layers that attend to everything.
    """
    found, edits = {}, edits or {}

    def site(layer, name, value):
        place = Site(layer, name)
        found[place] = edits.get(place, lambda x: x)(value)
        return found[place]

    def unit(x):
        return x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()

    batch, n = tokens.shape
    embedding = weights["embed_tokens.weight"]
    x = site(0, "embed", embedding[tokens] * math.sqrt(embedding.shape[1]))
    position = torch.arange(n)
    distance = position[:, None] - position
    for layer in range(LAYERS):
        of = {name.removeprefix(f"layers.{layer}."): w for name, w in weights.items() if f"layers.{layer}." in name}

        def norm(name, value, of=of):
            return unit(value) * (1 + of[f"{name}.weight"])

        def project(name, value, of=of):
            return value @ of[f"{name}.weight"].T

        everything = layer % 6 == 1
        base = 1e6 if gemma == 3 and everything else 1e4
        angle = position[:, None] * base ** -(torch.arange(0, HEAD_DIM, 2) / HEAD_DIM)

        def turned(value, angle=angle):
            one, two = value.chunk(2, dim=-1)
            return torch.cat([one * angle.cos() - two * angle.sin(), two * angle.cos() + one * angle.sin()], dim=-1)

        normed = norm("input_layernorm", x)
        q, k, v = (project(f"self_attn.{name}_proj", normed).view(batch, n, -1, HEAD_DIM) for name in "qkv")
        if gemma == 3:
            q, k = norm("self_attn.q_norm", q), norm("self_attn.k_norm", k)
        scores = turned(q.transpose(1, 2)) @ turned(k.transpose(1, 2)).mT / math.sqrt(HEAD_DIM)
        if gemma == 2 and attention_cap:
            scores = attention_cap * torch.tanh(scores / attention_cap)
        hidden = (distance < 0) if everything else (distance < 0) | (distance >= 4)
        heads = scores.masked_fill(hidden, -math.inf).softmax(-1) @ v.transpose(1, 2)
        z = site(layer, "attn_out", heads.transpose(1, 2).reshape(batch, n, HEADS * HEAD_DIM))
        middle = site(layer, "resid_mid", x + norm("post_attention_layernorm", project("self_attn.o_proj", z)))
        normalized = site(layer, "mlp_in_normalized", unit(middle))
        mlp_in = site(layer, "mlp_in", normalized * (1 + of["pre_feedforward_layernorm.weight"]))
        gate = torch.nn.functional.gelu(project("mlp.gate_proj", mlp_in), approximate="tanh")
        mlp_out = project("mlp.down_proj", gate * project("mlp.up_proj", mlp_in))
        mlp_out = site(layer, "mlp_out", norm("post_feedforward_layernorm", mlp_out))
        x = site(layer, "resid_post", middle + mlp_out)
    scores = unit(x) * (1 + weights["norm.weight"]) @ embedding.T
    found[None] = logit_cap * torch.tanh(scores / logit_cap) if gemma == 2 and logit_cap else scores
    return found


def written_out(model, tokens=TOKENS, **options):
    gemma = 2 if model.config.model_type == "gemma2" else 3
    return by_hand(model.backbone.state_dict(), tokens, gemma=gemma, **options)


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module", params=KINDS)
def any_model(request) -> Model:
    return tiny_gemma(kind=request.param)


@pytest.fixture(scope="module")
def expected(any_model):
    return written_out(any_model)


@pytest.fixture(scope="module")
def gemma2() -> Model:
    return tiny_gemma(kind="gemma2", name="google/gemma-2-tiny")


# Reading


def test_every_site_is_what_the_architecture_says(any_model, expected):
    found = activations(any_model, TOKENS, ALL_SITES)
    assert list(found) == sorted(found) == ALL_SITES
    for site in ALL_SITES:
        close(found[site], expected[site])
        assert found[site].shape[-1] == site_width(any_model, site)


@pytest.mark.parametrize("site", [site for site in ALL_SITES if site.layer in (0, 3, 6)], ids=str)
def test_a_site_is_the_same_alone_and_nothing_deeper_runs(site, any_model, expected):
    ran = []
    handles = [block.register_forward_pre_hook(lambda block, _: ran.append(block)) for block in any_model.blocks]
    found = activations(any_model, TOKENS, [site])
    for handle in handles:
        handle.remove()
    assert list(found) == [site]
    close(found[site], expected[site])
    assert ran == list(any_model.blocks[: site.layer + 1])


def test_the_widths_come_from_the_language_model(any_model):
    assert (any_model.n_layers, any_model.context, any_model.config.num_hidden_layers) == (LAYERS, 128, LAYERS)
    assert site_width(any_model, parse_site("attn_out.0")) == 24


def test_the_normalized_input_of_an_mlp_in_half_precision_is_that_of_its_norm():
    model = tiny_gemma(kind="gemma2")
    model.module.bfloat16()
    sites = [parse_site(f"{name}.2") for name in ("resid_mid", "mlp_in_normalized", "mlp_in")]
    middle, normalized, mlp_in = activations(model, TOKENS, sites).values()
    assert middle.dtype == mlp_in.dtype == torch.bfloat16
    weight = model.blocks[2].pre_feedforward_layernorm.weight
    assert torch.equal((normalized * (1.0 + weight.float())).bfloat16(), mlp_in)


# Writing


@pytest.mark.parametrize("site", [site for site in ALL_SITES if site.layer in (0, 4)], ids=str)
def test_everything_downstream_sees_what_is_written(site, any_model, expected):
    def edit(x):
        return torch.cat([x[:, :3], 0.5 * x[:, 3:] + 1.0], dim=1)

    # The site itself included: what is read inside a write is what was written.
    later = [other for other in ALL_SITES if other.depth >= site.depth]
    with writing(any_model, site, edit):
        found = activations(any_model, TOKENS, later)
    changed = written_out(any_model, edits={site: edit})
    for other in later:
        close(found[other], changed[other])
    assert (found[LAST][:, 3:] - expected[LAST][:, 3:]).abs().max() > 0.1
    assert torch.equal(found[LAST][:, :3], activations(any_model, TOKENS, [LAST])[LAST][:, :3])


def test_writes_compose(any_model):
    sites = [parse_site(text) for text in ("mlp_in_normalized.2", "mlp_in.2", "resid_mid.2", "resid_mid.0", "embed")]
    edits = {site: (lambda x, by=index: x * 0.7 + by) for index, site in enumerate(sites)}
    changed = written_out(any_model, edits=edits)
    for order in (sites, sites[::-1]):
        with ExitStack() as stack:
            for site in order:
                stack.enter_context(writing(any_model, site, edits[site]))
            close(activations(any_model, TOKENS, [LAST])[LAST], changed[LAST])


@pytest.mark.parametrize("site", [parse_site(text) for text in ("resid_mid.1", "mlp_in_normalized.1")], ids=str)
def test_a_write_is_gone_when_the_with_ends_and_refuses_another_shape(site, any_model):
    before = activations(any_model, TOKENS, [LAST])[LAST]
    refusal = pytest.raises(ValueError, match=r"an edit returned shape \(2, 1, 16\) for \(2, 9, 16\)")
    with writing(any_model, site, lambda x: x[:, :1]), refusal:
        activations(any_model, TOKENS, [LAST])
    assert torch.equal(activations(any_model, TOKENS, [LAST])[LAST], before)
    assert not any("_norm" in vars(module) for module in any_model.module.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in any_model.module.modules())


def test_a_write_while_generating_edits_every_token():
    model = tiny_gemma(kind="gemma2")
    site = parse_site("resid_mid.3")
    with writing(model, site, lambda x: x + 1.0):
        ids, found = generate(model, TOKENS[:1], [LAST], max_new_tokens=4, greedy=True)
    close(found[LAST], written_out(model, ids, edits={site: lambda x: x + 1.0})[LAST])


# Soft-caps


def test_the_logits_are_capped_as_the_formula_says(any_model, expected):
    with torch.no_grad():
        theirs = any_model.module(input_ids=TOKENS).logits
    ours = logits(any_model, activations(any_model, TOKENS, [LAST])[LAST])
    assert torch.equal(ours, theirs)
    close(ours, expected[None])


def test_both_caps_of_gemma_2_matter_here(gemma2):
    capped = written_out(gemma2)
    assert (capped[LAST] - written_out(gemma2, attention_cap=None)[LAST]).abs().max() > 0.1
    assert (capped[None] - written_out(gemma2, logit_cap=None)[None]).abs().max() > 0.1


@pytest.mark.parametrize("implementation", ["sdpa", "flex_attention"])
def test_a_module_with_other_attention_is_set_to_eager(implementation, gemma2):
    module = tiny_module(kind="gemma2")
    module.config._attn_implementation = implementation  # setting it properly is refused from transformers 5 on
    if implementation == "sdpa":  # transformers 5 refuses it, 4.57 leaves the cap out
        with suppress(ValueError):
            assert (module(TOKENS).logits - written_out(gemma2)[None]).abs().max() > 0.1
    model = Model(module, tiny_tokenizer(), "google/gemma-2-tiny")
    with torch.no_grad():
        assert torch.equal(module(TOKENS).logits, gemma2.module(TOKENS).logits)
    close(activations(model, TOKENS, [LAST])[LAST], written_out(gemma2)[LAST])


def test_gemma_3_keeps_its_attention():
    """It has no cap, and SDPA is several times faster."""
    module = tiny_module()
    before = module.config._attn_implementation
    assert Model(module, tiny_tokenizer(), "any").config._attn_implementation == before == "sdpa"


# One weight, two checkpoints


def test_a_multimodal_checkpoint_computes_what_its_language_model_does():
    whole, text = tiny_gemma(kind="multimodal"), tiny_gemma()
    ours, theirs = (activations(model, TOKENS, ALL_SITES) for model in (whole, text))
    assert all(torch.equal(ours[site], theirs[site]) for site in ALL_SITES)
    assert torch.equal(logits(whole, ours[LAST]), logits(text, theirs[LAST]))
    one, other = (generate(model, TOKENS[:1], [LAST], max_new_tokens=6, seed=3) for model in (whole, text))
    assert torch.equal(one[0], other[0])
    assert torch.equal(one[1][LAST], other[1][LAST])


# Generating, restarting, measuring


@pytest.mark.parametrize("options", [{"greedy": True}, {"seed": 3, "temperature": 5.0}], ids=["greedy", "sampled"])
def test_what_is_captured_while_generating_is_what_the_architecture_gives(options, any_model):
    sites = [parse_site(text) for text in ("embed", "attn_out.1", "mlp_in_normalized.3", "resid_mid.5", "resid_post.6")]
    ids, found = generate(any_model, TOKENS[:1], sites, max_new_tokens=8, **options)
    again = written_out(any_model, ids)
    for site in sites:
        close(found[site], again[site])
    if options.get("greedy"):
        assert torch.equal(ids[0, 9:], again[None][0, 8:-1].argmax(-1))


@pytest.mark.parametrize("layer", [0, 3, 6])
def test_a_pass_taken_up_again(layer, any_model, expected):
    clean = clean_pass(any_model, TOKENS, layer)
    close(clean.entry, expected[Site(layer - 1, "resid_post") if layer else Site(0, "embed")])
    assert torch.equal(clean.residual, activations(any_model, TOKENS, [LAST])[LAST])
    assert torch.equal(resume(any_model, clean), clean.residual)
    site = Site(layer, "resid_mid")
    with writing(any_model, site, lambda x: x - 1.0):
        close(resume(any_model, clean), written_out(any_model, edits={site: lambda x: x - 1.0})[LAST])


@pytest.mark.parametrize(("reads", "writes"), [("mlp_in_normalized.2", "mlp_out.2"), ("embed", "embed")])
def test_fidelity_edits_the_site_that_is_written(reads, writes, gemma2):
    """Zeroed, against the architecture with that site zeroed from position 1 on."""
    dictionary = sae_of(random_tensors(16, 40), parse_site(reads), parse_site(writes), model_name="google/gemma-2-tiny")
    text = "the answer and the thing in the end " * 80
    result = fidelity(gemma2, dictionary, [text])
    ids = gemma2.tokenizer(text, add_special_tokens=False)["input_ids"]
    rows = torch.tensor([[2, *ids[start : start + 127]] for start in range(0, 127 * (len(ids) // 127), 127)])
    assert result.tokens_measured == rows.numel()

    def loss(edits):
        scores = written_out(gemma2, rows, edits=edits)[None][:, 1:-1]
        return float(torch.nn.functional.cross_entropy(scores.flatten(0, 1), rows[:, 2:].flatten()))

    def zeroed(x):
        return torch.cat([x[:, :1], 0 * x[:, 1:]], dim=1)

    assert result.ce_clean == pytest.approx(loss({}), abs=1e-4)
    assert result.zeroed.ce == pytest.approx(loss({parse_site(writes): zeroed}), abs=1e-4)
    assert abs(result.zeroed.above_clean) > 1e-3


# Which dictionary fits


def test_a_dictionary_of_the_same_generation_fits(any_model):
    theirs = "google/gemma-2-2b" if any_model.config.model_type == "gemma2" else "google/gemma-3-4b-it"
    for text in ("embed", "attn_out.6", "resid_mid.3", "mlp_in_normalized.3", "resid_post.6"):
        (warning,) = check_fit(any_model, random_sae(any_model, text, model_name=theirs))
        assert f"was trained on {theirs}, not on" in warning


def test_a_dictionary_of_the_other_generation_is_refused(any_model):
    other = "google/gemma-3-270m" if any_model.config.model_type == "gemma2" else "google/gemma-2-2b"
    with pytest.raises(MismatchError, match="is of another generation"):
        check_fit(any_model, random_sae(any_model, "resid_post.2", model_name=other))
    with pytest.raises(MismatchError, match=r"attn_out\.7 does not exist"):
        check_fit(any_model, random_sae(any_model, "attn_out.7"))
