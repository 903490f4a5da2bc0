"""Lenses held against the model's own modules and the formula written out."""

from __future__ import annotations

import pytest
import torch

from gemlens.errors import InputError, MismatchError
from gemlens.lm.gemma import activations, logits
from gemlens.lm.lens import feature_logits, logits_of, residual_rows
from gemlens.sites import Site
from gemlens.study.lens import lens, residual_lens
from tiny import LAYERS, VOCAB, random_clt, random_sae, random_tensors, random_transcoders, sae_of, tiny_gemma


@pytest.fixture(scope="module", params=["gemma3", "gemma2"])
def gemma(request):
    return tiny_gemma(kind=request.param)


def by_hand(model, row):
    scores = (row * (1 + model.backbone.norm.weight)) @ model.module.lm_head.weight.T
    return scores - scores.mean()


def test_what_a_direction_adds_to_the_logits(gemma):
    rows = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    for ours, row in zip(feature_logits(gemma, rows), rows, strict=True):
        torch.testing.assert_close(ours, by_hand(gemma, row))
    # Before the soft-cap and up to 1 / rms, which is one number for all tokens, it is the change of the logits.
    cap, gemma.module.config.final_logit_softcapping = gemma.module.config.final_logit_softcapping, None
    try:
        state, small = torch.randn(16, generator=torch.Generator().manual_seed(1)), rows[0] * 1e-3
        small = small - (small @ state) / (state @ state) * state  # keeps the rms to first order
        change = logits(gemma, state + small) - logits(gemma, state)
    finally:
        gemma.module.config.final_logit_softcapping = cap
    centred = change - change.mean()
    expected = by_hand(gemma, small) / state.pow(2).mean().sqrt()
    torch.testing.assert_close(centred, expected, rtol=0.02, atol=2e-4)


def test_without_the_norms_weight_the_top_tokens_are_others(gemma):
    rows = torch.randn(20, 16, generator=torch.Generator().manual_seed(0))
    ours = feature_logits(gemma, rows).topk(10).indices
    plain = (rows @ gemma.module.lm_head.weight.T).topk(10).indices
    kept = sum(len(set(a) & set(b)) for a, b in zip(ours.tolist(), plain.tolist(), strict=True)) / 200
    assert kept < 0.95


def test_logits_of_some_tokens_are_those_of_all(gemma):
    state = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(0))
    tokens = torch.tensor([7, 5, 300])
    torch.testing.assert_close(logits_of(gemma, state, tokens), logits(gemma, state)[..., tokens])
    torch.testing.assert_close(logits_of(gemma, state), logits(gemma, state))
    state.requires_grad_()
    logits_of(gemma, state, tokens).sum().backward()
    assert state.grad is not None


def test_rows_of_concatenated_heads_go_through_the_output_projection(gemma):
    rows = torch.randn(4, 24, generator=torch.Generator().manual_seed(0))
    block = gemma.blocks[3]
    expected = block.self_attn.o_proj(rows) * (1 + block.post_attention_layernorm.weight)
    torch.testing.assert_close(residual_rows(gemma, Site(3, "attn_out"), rows), expected)
    assert torch.equal(residual_rows(gemma, Site(3, "mlp_out"), expected), expected)


def test_top_and_bottom_tokens_of_features(gemma):
    sae = random_sae(gemma, "resid_post.2")
    found = lens(gemma, sae, [4, 9], top_k=5)
    assert [each.feature for each in found.features] == [4, 9]
    assert found.writes == ("resid_post.2",)
    for each in found.features:
        scores = by_hand(gemma, sae.decoder.weight[each.feature])
        order = scores.argsort(descending=True).tolist()
        assert [token.token_id for token in each.top] == order[:5]
        assert [token.token_id for token in each.bottom] == order[::-1][:5]
        assert [token.logit for token in each.top] == pytest.approx(scores[order[:5]].tolist(), rel=1e-4)
        assert each.agreement is None


def test_a_clt_adds_what_it_writes_and_a_crosscoder_ends_with_it(gemma):
    clt, crosscoder = random_clt(gemma), random_clt(gemma, crosscoder=True)
    rows = clt.layers[4].decoder.weight.view(30, 3, 16)[7]
    top = lens(gemma, clt, [7], layer=4)
    assert top.writes == ("mlp_out.4", "mlp_out.5", "mlp_out.6")
    assert top.features[0].top[0].logit == pytest.approx(float(by_hand(gemma, rows.sum(0)).max()), rel=1e-4)
    last = lens(gemma, crosscoder, [7], layer=4)
    assert last.writes == ("resid_post.6",)
    row = crosscoder.layers[4].decoder.weight.view(30, LAYERS, 16)[7, -1]
    assert last.features[0].top[0].logit == pytest.approx(float(by_hand(gemma, row).max()), rel=1e-4)
    transcoder = lens(gemma, random_transcoders(gemma)[3], [7])
    assert (transcoder.dictionary.site, transcoder.writes) == ("mlp_in.3", ("mlp_out.3",))


def test_agreement_with_what_was_shipped(model):
    sae = random_sae(model, "resid_post.2")
    ours = [token.token_id for token in lens(model, sae, [4]).features[0].top]
    others = sorted(set(range(VOCAB)) - set(ours))
    found = lens(model, sae, [4, 9], shipped={4: ours[:7] + others[:3]})
    assert found.features[0].agreement == pytest.approx(0.7)
    assert found.features[1].agreement is None
    assert found.agreement == pytest.approx(0.7)
    assert lens(model, sae, [9]).agreement is None


def test_the_residual_lens_ends_with_what_the_model_predicts(gemma):
    found = residual_lens(gemma, "hello the", top_k=4)
    ids = torch.tensor([[token.token_id for token in found.tokens]])
    with torch.no_grad():
        scores = gemma.module(ids, use_cache=False).logits[0].float()
    assert found.token_ids.shape == (LAYERS, ids.shape[1], 4)
    assert found.token_ids[-1].tolist() == scores.topk(4).indices.tolist()
    torch.testing.assert_close(torch.tensor(found.probability[-1]), scores.softmax(-1).topk(4).values)
    assert (found.rank[-1] == 0).all()
    assert found.final[-1] == pytest.approx(found.probability[-1, :, 0])
    middle = logits(gemma, activations(gemma, ids, [Site(3, "resid_post")]).popitem()[1][0])
    assert found.token_ids[3, :, 0].tolist() == middle.argmax(-1).tolist()
    own = scores.argmax(-1)
    assert found.final[3].tolist() == pytest.approx(middle.softmax(-1).gather(1, own[:, None])[:, 0].tolist(), rel=1e-4)
    place = (middle > middle.gather(1, own[:, None])).sum(1)
    assert found.rank[3].tolist() == place.tolist()
    assert set(found.texts) == set(found.token_ids.flatten().tolist())


def test_mistakes(model):
    sae = random_sae(model, "resid_post.2")
    with pytest.raises(InputError, match=r"feature 40 does not exist in handmade.* 0 to 39"):
        lens(model, sae, [3, 40])
    with pytest.raises(InputError, match="no feature was given"):
        lens(model, sae, [])
    with pytest.raises(InputError, match="top_k 0: list 1 to 367"):
        lens(model, sae, [3], top_k=0)
    with pytest.raises(InputError, match="top_k 400"):
        residual_lens(model, "a", top_k=400)
    with pytest.raises(InputError, match="say which they read"):
        lens(model, random_clt(model), [3])
    with pytest.raises(InputError, match="has no logit lens"):
        lens(model, random_sae(model, "mlp_in.2"), [3])
    with pytest.raises(MismatchError, match="expects 12 numbers"):
        lens(model, sae_of(random_tensors(12, 40), Site(2, "resid_post")), [3])


def test_on_the_starter_a_features_lens_is_what_adding_it_does(starter):
    """Largest logits of the lens are what a small push along the row at the last block raises most."""
    from gemlens.scope.load import load_sae

    sae = load_sae("starter", "resid_post/layer_15_width_4k_l0_medium")
    found = lens(starter, sae, range(0, 4096, 512))
    prompt = torch.tensor([[2, 818, 5279, 529, 7001, 563]])
    state = activations(starter, prompt, [Site(starter.n_layers - 1, "resid_post")]).popitem()[1][0, -1]
    for each in found.features:
        row = sae.decoder.rows(torch.tensor([each.feature]))[0]
        change = logits(starter, state + row * state.norm() * 1e-3) - logits(starter, state)
        scores = change - change.mean()
        top = [token.token_id for token in each.top]
        # The norm takes out what lies along the state; the rest is the lens.
        assert torch.corrcoef(torch.stack([scores, feature_logits(starter, row[None])[0]]))[0, 1] > 0.9
        assert scores[top].mean() > scores.std()
