"""Edits while generating: positions count over the whole text, and the cache changes nothing."""

from __future__ import annotations

import pytest
import torch

from gemlens.errors import InputError
from gemlens.lm.gemma import activations, generate, logits
from gemlens.sites import SITES, Site, parse_site
from gemlens.study.directions import steer_direction
from gemlens.study.intervene import ablate, patch, steer
from gemlens.study.places import active, generated, last
from gemlens.study.splice import splice
from tiny import LAYERS, random_clt, random_sae, random_transcoders, some_tokens, tiny_gemma

PROMPT = some_tokens(7)
N, NEW = 7, 9
LAST = Site(LAYERS - 1, "resid_post")
SITE = parse_site("resid_post.3")
KINDS = ["gemma2", "gemma3", "multimodal"]


@pytest.fixture(scope="module", params=KINDS)
def any_model(request):
    model = tiny_gemma(kind=request.param)
    model.module.generation_config.eos_token_id = None  # so that every text is as long
    return model


def fires(model, text=PROMPT):
    """A feature of the SAE that is active on some tokens of the text and not on others, and a value between."""
    sae = random_sae(model, str(SITE))
    acts = sae.encode(activations(model, text, [SITE])[SITE][0, 1:]).dense()
    feature = int((acts > 0).float().mean(0).sub(0.5).abs().argmin())
    return active(sae, feature, above=float(acts[:, feature].max()) / 2)


def edits(model):
    """Name -> a with, of all kinds."""
    sae = random_sae(model, str(SITE))
    clt, crosscoder = random_clt(model), random_clt(model, crosscoder=True)
    return {
        "all": lambda: steer(model, sae, [3, 5], 4.0, prompt_tokens=N),
        "generated": lambda: steer(model, sae, [3, 5], 4.0, positions=generated, prompt_tokens=N),
        "last of the prompt": lambda: steer(model, sae, 3, 9.0, positions=last, prompt_tokens=N),
        "from the last on": lambda: steer(model, sae, 3, 9.0, positions=slice(-1, None), prompt_tokens=N),
        "each third": lambda: steer(model, sae, 3, 9.0, positions=slice(2, None, 3), prompt_tokens=N),
        "positions": lambda: steer(model, sae, 3, 9.0, positions=[3, 8, 12], prompt_tokens=N),
        "norm": lambda: steer(model, sae, 3, 0.5, relative_to="norm", prompt_tokens=N),
        "orthogonal": lambda: steer(model, sae, [3, 5], 2.0, mode="orthogonal", prompt_tokens=N),
        "set": lambda: steer(model, sae, [3, 5], 2.0, mode="set", prompt_tokens=N),
        "ablate": lambda: ablate(model, sae, range(40), prompt_tokens=N),
        "where": lambda: ablate(model, sae, range(40), where=fires(model), prompt_tokens=N),
        "patch": lambda: patch(model, sae, range(40), some_tokens(9, seed=4)[0], take=-1),
        "splice": lambda: splice(model, sae, prompt_tokens=N),
        "transcoder": lambda: ablate(model, random_transcoders(model)[2], range(40), prompt_tokens=N),
        "clt": lambda: ablate(model, clt, range(30), layer=2, prompt_tokens=N),
        "clt spliced": lambda: splice(model, clt, prompt_tokens=N),
        "crosscoder": lambda: ablate(model, crosscoder, range(30), layer=4, prompt_tokens=N),
        "direction": lambda: steer_direction(model, "resid_mid.2", torch.ones(16), 2.0, prompt_tokens=N),
    }


NAMES = list(edits(tiny_gemma()))


@pytest.mark.parametrize("name", NAMES)
def test_with_the_cache_everything_is_as_without(name, any_model):
    edit = edits(any_model)[name]
    with edit():
        ids, found = generate(any_model, PROMPT, [LAST], max_new_tokens=NEW, greedy=True)
    assert ids.shape == (1, N + NEW)
    # One pass over the whole text, which knows how much of it was the prompt.
    with edit():
        again = activations(any_model, ids, [LAST])[LAST]
    torch.testing.assert_close(logits(any_model, found[LAST]), logits(any_model, again), rtol=0, atol=1e-4)
    assert torch.equal(logits(any_model, again)[0, N - 1 : -1].argmax(-1), ids[0, N:])
    assert (again - activations(any_model, ids, [LAST])[LAST]).abs().max() > 1e-3


@pytest.mark.parametrize("name", sorted({*SITES} - {"embed"}))
def test_every_site_is_edited_in_each_step(name, any_model):
    sae = random_sae(any_model, f"{name}.3")
    with steer(any_model, sae, 3, 5.0):
        ids, found = generate(any_model, PROMPT, [LAST], max_new_tokens=NEW, greedy=True)
        torch.testing.assert_close(found[LAST], activations(any_model, ids, [LAST])[LAST], rtol=1e-4, atol=1e-4)


def test_which_tokens_are_touched_in_generation(model):
    sae = random_sae(model, str(SITE))
    for positions, touched in [
        (generated, range(N, N + NEW)),
        (last, [N - 1]),
        (-1, [N - 1]),
        (slice(-1, None), range(N - 1, N + NEW)),
        ([2, 10], [2, 10]),
        (slice(None, N), range(1, N)),
        (None, range(1, N + NEW)),
    ]:
        with steer(model, sae, 3, 9.0, positions=positions):
            ids, found = generate(model, PROMPT, [SITE], max_new_tokens=NEW, seed=3)
        with steer(model, sae, 3, 9.0, positions=list(touched)):
            expected = activations(model, ids, [SITE])[SITE]
        torch.testing.assert_close(found[SITE], expected, rtol=1e-4, atol=1e-4)


def test_a_position_beyond_the_prompt_waits_for_generation_and_is_refused_without(model):
    sae = random_sae(model, str(SITE))
    with ablate(model, sae, 3, positions=12):
        generate(model, PROMPT, [], max_new_tokens=NEW, greedy=True)
        with pytest.raises(InputError, match="position 12 does not exist: the text has 7 tokens"):
            activations(model, PROMPT, [SITE])


def test_an_aligned_patch_leaves_what_is_generated_alone(model):
    sae, other = random_sae(model, str(SITE)), some_tokens(N, seed=5)
    with patch(model, sae, range(40), other[0]):
        ids, found = generate(model, PROMPT, [SITE], max_new_tokens=NEW, greedy=True)
    with patch(model, sae, range(40), other[0]):
        start = activations(model, PROMPT, [SITE])[SITE]
    torch.testing.assert_close(found[SITE][:, :N], start)
    # The site is computed from what lies below it, which no edit of an earlier token reaches.
    torch.testing.assert_close(found[SITE][:, N:], activations(model, ids, [SITE])[SITE][:, N:], rtol=1e-4, atol=1e-4)


def test_a_sweep_of_strengths_is_one_batch_whose_rows_are_what_each_gives_alone(any_model):
    sae = random_sae(any_model, str(SITE))
    strengths = torch.tensor([[-2.0], [0.0], [3.0]])
    with steer(any_model, sae, 3, strengths, positions=slice(-1, None)):
        together, _ = generate(any_model, PROMPT.expand(3, -1), [], max_new_tokens=NEW, greedy=True)
    for row, strength in enumerate(strengths[:, 0].tolist()):
        with steer(any_model, sae, 3, strength, positions=slice(-1, None)):
            alone, _ = generate(any_model, PROMPT, [], max_new_tokens=NEW, greedy=True)
        assert torch.equal(together[row : row + 1], alone)
    assert torch.equal(together[1:2], generate(any_model, PROMPT, [], max_new_tokens=NEW, greedy=True)[0])
    assert not torch.equal(together[0], together[2])


def test_rows_that_are_alike_draw_the_same_and_by_the_model_s_probabilities(model):
    ids, _ = generate(model, PROMPT.expand(4, -1), [], max_new_tokens=NEW, temperature=3.0, alike=True, seed=5)
    assert (ids == ids[0]).all()
    apart, _ = generate(model, PROMPT.expand(4, -1), [], max_new_tokens=NEW, temperature=3.0, seed=5)
    assert not (apart == apart[0]).all()
    drawn = [
        int(generate(model, PROMPT, [], max_new_tokens=1, temperature=1.0, top_p=1.0, alike=True, seed=seed)[0][0, -1])
        for seed in range(300)
    ]
    probabilities = logits(model, activations(model, PROMPT, [LAST])[LAST])[0, -1].softmax(-1)
    # Mean log-probability of a sample is minus the entropy.
    mean = probabilities[drawn].log().mean()
    entropy = -(probabilities * probabilities.log()).sum()
    spread = (probabilities * (probabilities.log() + entropy) ** 2).sum().sqrt() / 300**0.5
    assert abs(mean + entropy) < 4 * spread


def test_a_text_that_was_begun_before_the_edit_counts_as_the_prompt(model):
    sae = random_sae(model, str(SITE))
    start = model.module(PROMPT[:, :5], use_cache=True).past_key_values
    with steer(model, sae, 3, 9.0, positions=generated), torch.no_grad():
        found = model.module(PROMPT[:, 5:], past_key_values=start, use_cache=True).logits
    with steer(model, sae, 3, 9.0, positions=[5, 6]), torch.no_grad():
        expected = model.module(PROMPT).logits[:, 5:]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
