"""What is read at a site is what the model computes there, however early the pass is stopped; and so it is when
the model generates.
"""

from __future__ import annotations

import warnings
from contextlib import contextmanager

import pytest
import torch
from transformers import GenerationConfig

from gemlens.errors import MismatchError, WeightsError
from gemlens.lm.gemma import activations, generate, logits, module_at, reading
from gemlens.sites import SITES, Site, parse_site
from tiny import HEAD_DIM, HEADS, LAYERS, some_tokens, tiny_gemma

ALL_SITES = [Site(layer, name) for layer in range(LAYERS) for name in SITES if name != "embed" or layer == 0]
PROMPT = some_tokens(9)


@contextmanager
def plain_hooks(model):
    """Everything that passes each block and its modules, by torch's own hooks: {(layer, module name): (in, out)}."""
    seen = {}

    def keep(key):
        def hook(_module, args, kwargs, output):
            first = args[0] if args else kwargs["hidden_states"]
            seen[key] = first, output[0] if isinstance(output, tuple) else output

        return hook

    handles = [
        module.register_forward_hook(keep((layer, name)), with_kwargs=True)
        for layer, block in enumerate(model.module.model.layers)
        for name, module in block.named_modules()
    ]
    yield seen
    for handle in handles:
        handle.remove()


@pytest.fixture(scope="module")
def seen(model):
    with plain_hooks(model) as found, torch.no_grad():
        model.module(PROMPT, use_cache=False)
    return found


@pytest.fixture(scope="module")
def read_out(model):
    return activations(model, PROMPT, ALL_SITES)


def hooks_left(model):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.module.modules())


# Sites


def test_the_model_has_both_kinds_of_attention_and_they_differ(model):
    assert set(model.config.layer_types) == {"sliding_attention", "full_attention"}
    wide = tiny_gemma(sliding_window=64)
    ours, theirs = (activations(m, PROMPT, [Site(0, "resid_post")]) for m in (model, wide))
    same = (ours[Site(0, "resid_post")] == theirs[Site(0, "resid_post")]).all(-1)[0]
    assert same[:4].all()
    assert not same[4:].any()


@pytest.mark.parametrize("layer", range(LAYERS))
def test_resid_post_is_the_output_of_the_block(layer, read_out, seen):
    assert torch.equal(read_out[Site(layer, "resid_post")], seen[layer, ""][1])


def test_output_hidden_states_is_another_thing_at_the_last_layer(read_out):
    model = tiny_gemma()  # of its own: transformers 5 leaves hooks behind
    with torch.no_grad():
        states = model.module(PROMPT, output_hidden_states=True).hidden_states
    for layer in range(LAYERS - 1):
        assert torch.equal(states[layer + 1], read_out[Site(layer, "resid_post")])
    last = read_out[Site(LAYERS - 1, "resid_post")]
    assert not torch.allclose(states[-1], last)
    assert torch.equal(states[-1], model.backbone.norm(last))


@pytest.mark.parametrize("layer", range(LAYERS))
def test_the_sites_of_a_block_add_up_to_its_output(layer, model, read_out, seen):
    block = model.blocks[layer]
    in_a_block = list(SITES)[1:]
    attn_out, resid_mid, normalized, mlp_in, mlp_out, resid_post = (read_out[Site(layer, name)] for name in in_a_block)
    if layer == 0:
        assert torch.equal(read_out[Site(0, "embed")], seen[0, ""][0])
    assert attn_out.shape[-1] == HEADS * HEAD_DIM != model.config.hidden_size
    assert torch.equal(block.self_attn.o_proj(attn_out), seen[layer, "self_attn"][1])
    middle = seen[layer, ""][0] + block.post_attention_layernorm(block.self_attn.o_proj(attn_out))
    # Written out: what the MLP is fed carries the norm's (1 + weight).
    rms = middle.pow(2).mean(-1, keepdim=True).add(model.config.rms_norm_eps).sqrt()
    assert torch.equal(resid_mid, middle)
    torch.testing.assert_close(normalized, middle / rms)
    torch.testing.assert_close(mlp_in, middle / rms * (1 + block.pre_feedforward_layernorm.weight))
    assert torch.equal(mlp_in, seen[layer, "mlp"][0])
    assert torch.equal(mlp_out, block.post_feedforward_layernorm(block.mlp(mlp_in)))
    assert torch.equal(resid_post, middle + mlp_out)


@pytest.mark.parametrize("site", ALL_SITES, ids=str)
def test_stopping_early_changes_nothing_and_runs_nothing_deeper(site, model, read_out):
    with plain_hooks(model) as seen:
        found = activations(model, PROMPT, [site])
    assert list(found) == [site]
    assert torch.equal(found[site], read_out[site])
    assert max((layer for layer, _ in seen), default=0) <= site.layer
    finished = {name for layer, name in seen if layer == site.layer}
    assert ("mlp" in finished) == (site.name in ("mlp_out", "resid_post"))
    assert ("self_attn" in finished) == (site.name not in ("embed", "attn_out"))
    assert ("pre_feedforward_layernorm" in finished) == (site.name in ("mlp_in", "mlp_out", "resid_post"))
    assert hooks_left(model) == 0


def test_the_head_and_the_final_norm_are_not_run(model):
    called = []
    handles = [
        module.register_forward_hook(lambda *_: called.append(1))
        for module in (model.module.lm_head, model.backbone.norm)
    ]
    activations(model, PROMPT, [Site(LAYERS - 1, "resid_post")])
    assert not called
    for handle in handles:
        handle.remove()


def test_sites_may_come_in_any_order_and_twice(model, read_out):
    sites = [parse_site(text) for text in ("resid_post.4", "mlp_in.1", "resid_post.4", "attn_out.4", "mlp_out.0")]
    found = activations(model, PROMPT, sites)
    assert set(found) == set(sites)
    assert all(torch.equal(found[site], read_out[site]) for site in sites)


def test_a_batch_reads_as_its_rows(model):
    batch, site = some_tokens(9, batch=3), parse_site("resid_post.3")
    together = activations(model, batch, [site])[site]
    assert together.shape == (3, 9, model.config.hidden_size)
    for row in range(3):
        torch.testing.assert_close(together[row], activations(model, batch[row : row + 1], [site])[site][0])


@pytest.mark.parametrize("name", [name for name in SITES if name != "embed"])
def test_a_layer_that_the_model_lacks(name, model):
    message = rf"{name}\.7 does not exist in google/gemma-3-tiny: its layers are 0 to 6"
    with pytest.raises(MismatchError, match=message):
        module_at(model, Site(LAYERS, name))
    with pytest.raises(MismatchError, match=message):
        activations(model, PROMPT, [Site(0, name), Site(LAYERS, name)])
    assert hooks_left(model) == 0


def test_hooks_are_gone_when_the_forward_pass_fails(model):
    with pytest.raises(IndexError):
        activations(model, torch.tensor([[2, 10**6]]), [Site(0, "resid_post")])
    assert hooks_left(model) == 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(bad):
    model = tiny_gemma()
    model.blocks[3].mlp.down_proj.weight[0, 0] = bad
    assert activations(model, PROMPT, [Site(2, "resid_post")])
    with pytest.raises(WeightsError, match=r"computes values at resid_post\.5 that are not finite; download it again"):
        activations(model, PROMPT, [Site(5, "resid_post")])
    with pytest.raises(WeightsError, match="not finite"):
        generate(model, PROMPT, [Site(5, "resid_post")], max_new_tokens=2, greedy=True)


def test_overflow_in_float16_names_the_dtypes_that_do_not():
    model = tiny_gemma()
    model.blocks[0].post_feedforward_layernorm.weight.fill_(60000.0)
    model.module.half()
    with pytest.raises(WeightsError, match="try --dtype bfloat16 or float32"):
        activations(model, PROMPT, [Site(3, "resid_post")])


# Logits


def test_logits_are_the_models_own(model, read_out):
    with torch.no_grad():
        expected = model.module(PROMPT).logits
    assert torch.equal(logits(model, read_out[Site(LAYERS - 1, "resid_post")]), expected)


def test_logits_are_capped_where_the_model_caps_them():
    model, last = tiny_gemma(final_logit_softcapping=2.0), Site(LAYERS - 1, "resid_post")
    with torch.no_grad():
        expected = model.module(PROMPT).logits
    found = logits(model, activations(model, PROMPT, [last])[last])
    assert torch.equal(found, expected)
    assert found.abs().max() <= 2
    assert found.abs().max() > 1.5


# Generation

SEVERAL = [parse_site(text) for text in ("resid_post.0", "resid_post.6", "attn_out.3", "mlp_in.1", "mlp_out.5")]


def run(model, *, sites=SEVERAL, max_new_tokens=10, **options):
    return generate(model, PROMPT, sites, max_new_tokens=max_new_tokens, **options)


@pytest.mark.parametrize("options", [{"greedy": True}, {"seed": 3, "temperature": 5.0}], ids=["greedy", "sampled"])
@pytest.mark.parametrize("max_new_tokens", [1, 2, 20])
def test_what_is_captured_while_generating_is_what_a_full_pass_gives(model, options, max_new_tokens):
    ids, found = run(model, max_new_tokens=max_new_tokens, **options)
    assert torch.equal(ids[:, : PROMPT.shape[1]], PROMPT)
    again = activations(model, ids, SEVERAL)
    for site in SEVERAL:
        assert found[site].shape == again[site].shape
        # The very last token included: nothing was generated from it.
        torch.testing.assert_close(found[site], again[site], rtol=1e-4, atol=1e-4)
    assert hooks_left(model) == 0


def test_generation_fills_the_context_to_the_brim():
    model = tiny_gemma(max_position_embeddings=16)
    ids, found = run(model, max_new_tokens=7, greedy=True)
    assert ids.shape == (1, 16)
    torch.testing.assert_close(found[SEVERAL[1]], activations(model, ids, SEVERAL)[SEVERAL[1]], rtol=1e-4, atol=1e-4)


def test_greedy_takes_the_most_likely_token_and_repeats_itself(model):
    ids, _ = run(model, greedy=True)
    with torch.no_grad():
        best = model.module(ids).logits.argmax(-1)
    n = PROMPT.shape[1]
    assert torch.equal(ids[0, n:], best[0, n - 1 : -1])
    assert torch.equal(ids, run(model, greedy=True, seed=1)[0])
    assert torch.equal(ids, run(model, temperature=0.0, seed=2)[0])


def test_the_same_seed_gives_the_same_text_and_another_seed_another(model):
    def text(seed):
        return run(model, temperature=50.0, top_p=1.0, seed=seed, sites=SEVERAL[:1])[0].tolist()

    assert text(1) == text(1)
    assert text(1) != text(2)


def test_temperature_and_top_p_do_what_they_say(model):
    greedy = run(model, greedy=True)[0]
    assert torch.equal(run(model, temperature=50.0, top_p=1e-9)[0], greedy)
    assert torch.equal(run(model, temperature=1e-4)[0], greedy)
    assert torch.equal(run(model, temperature=1e-42)[0], greedy)
    assert run(model, temperature=1)[0].shape == greedy.shape  # an int is a number too


def test_the_global_random_state_is_left_alone(model):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    run(model, temperature=2.0, seed=123)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("greedy", [True, False])
def test_the_models_own_settings_come_back_unchanged(greedy):
    model = tiny_gemma()
    settings = GenerationConfig(temperature=0.3, top_k=3, top_p=0.1, eos_token_id=[1, 5], do_sample=True)
    model.module.generation_config = settings
    before = settings.to_dict()
    run(model, greedy=greedy)
    assert model.module.generation_config is settings
    assert settings.to_dict() == before

    model.blocks[2].register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(model, greedy=greedy)
    assert model.module.generation_config is settings
    assert settings.to_dict() == before
    assert hooks_left(model) == 1


@pytest.mark.parametrize(
    "shipped",
    [
        {"cache_implementation": "hybrid"},
        {"cache_implementation": "static"},
        {"num_beams": 3},
        {"num_return_sequences": 2, "do_sample": True},
        {"use_cache": False},
        {"top_k": 1, "do_sample": True, "temperature": 0.1},
        {"repetition_penalty": 5.0},
        {"min_new_tokens": 30},
        {"max_length": 3},
    ],
    ids=str,
)
@pytest.mark.parametrize("options", [{"greedy": True}, {"temperature": 5.0}], ids=["greedy", "sampled"])
def test_settings_that_a_checkpoint_ships_do_not_interfere(shipped, options, model):
    """Gemma 3 ships ``cache_implementation: hybrid`` and ``top_k: 64``; what is asked for here is all that counts."""
    other = tiny_gemma()
    other.module.generation_config = GenerationConfig(eos_token_id=1, pad_token_id=0, bos_token_id=2, **shipped)
    ids, found = run(other, **options)
    assert torch.equal(ids, run(model, **options)[0])
    torch.testing.assert_close(found[SEVERAL[1]], activations(other, ids, SEVERAL)[SEVERAL[1]], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("listed", [False, True])
def test_an_end_token_ends_the_text_and_is_kept(listed):
    model = tiny_gemma()
    free = run(model, greedy=True)[0][0].tolist()
    n = PROMPT.shape[1]
    end = free[n + 2]
    model.module.generation_config.eos_token_id = [1, end] if listed else end
    ids, found = run(model, greedy=True)
    assert ids[0].tolist() == free[: n + 1 + free[n:].index(end)]
    assert found[SEVERAL[0]].shape[1] == ids.shape[1]
    torch.testing.assert_close(found[SEVERAL[1]], activations(model, ids, SEVERAL)[SEVERAL[1]], rtol=1e-4, atol=1e-4)


def test_generating_says_nothing(model, caplog, capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(model, greedy=True)
        run(model, seed=1)
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


def test_reading_collects_a_tensor_a_forward_call(model):
    site = parse_site("resid_post.1")
    with reading(model, [site]) as found, torch.no_grad():
        model.module(PROMPT)
        model.module(PROMPT[:, :3])
    assert [tensor.shape[1] for tensor in found[site]] == [9, 3]
