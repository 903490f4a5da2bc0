"""What a decoder row says by itself, against the plain formulas."""

import pytest
import torch
from torch.nn import functional as F

from gemlens.study import decoder_rows as module
from gemlens.study.decoder_rows import directions, extremes
from tiny import random_sae, random_transcoders, tiny_gemma


def decoder(sae):
    return torch.cat([block for _, block in sae.decoder.blocks()])


def test_logits_go_through_the_norms_weight_and_the_head_centred(model):
    sae = random_sae(model, "resid_post.2")
    found = directions(model, sae, logits=10)
    effect = decoder(sae) * (1 + model.backbone.norm.weight) @ model.module.lm_head.weight.T
    effect = effect - effect.mean(dim=1, keepdim=True)
    best, worst = effect.topk(10), (-effect).topk(10)
    assert torch.allclose(found["top_logits"], best.values, atol=1e-4)
    assert torch.allclose(found["bottom_logits"], -worst.values, atol=1e-4)
    assert torch.equal(effect.gather(1, found["top_tokens"].long()).argsort(descending=True)[:, 0], torch.zeros(40))
    assert torch.allclose(effect.gather(1, found["bottom_tokens"].long()), -worst.values, atol=1e-4)


def test_a_transcoder_is_read_by_what_it_writes_and_attention_by_what_its_projection_makes_of_it(model):
    transcoder = random_transcoders(model)[3]
    effect = decoder(transcoder) * (1 + model.backbone.norm.weight) @ model.module.lm_head.weight.T
    expected = (effect - effect.mean(dim=1, keepdim=True)).topk(10).indices
    assert torch.equal(directions(model, transcoder)["top_tokens"].long(), expected)
    attention = directions(model, random_sae(model, "attn_out.2"))
    assert "top_tokens" in attention and "neurons" not in attention  # rows of heads, as no neuron writes


def test_what_is_read_by_an_mlp_alone_has_no_logits(model):
    assert "top_tokens" not in directions(model, random_sae(model, "mlp_in.2"))


def test_bases_neurons_and_neighbours(model):
    sae = random_sae(model, "resid_post.4")
    found = directions(model, sae, near=5, entries=3)
    unit = F.normalize(decoder(sae), dim=1)
    at = unit.abs().argsort(dim=1, descending=True)[:, :3]
    assert torch.equal(found["basis"].long(), at)
    assert torch.allclose(found["basis_weight"], unit.gather(1, at))
    neurons = F.normalize(model.blocks[4].mlp.down_proj.weight.T, dim=1)
    cosine = unit @ neurons.T
    at = cosine.abs().argsort(dim=1, descending=True)[:, :3]
    assert torch.equal(found["neurons"].long(), at)
    assert torch.allclose(found["neuron_cosine"], cosine.gather(1, at), atol=1e-6)
    cosine = unit @ unit.T
    cosine.fill_diagonal_(-2)
    assert torch.equal(found["neighbours"].long(), cosine.argsort(dim=1, descending=True)[:, :5])
    assert torch.allclose(found["neighbour_cosine"], cosine.sort(dim=1, descending=True).values[:, :5], atol=1e-6)


def test_neighbours_are_the_same_however_many_are_compared_at_a_time(model, monkeypatch):
    sae = random_sae(model, "resid_post.4")
    whole = directions(model, sae, logits=0)["neighbours"]
    monkeypatch.setattr(module, "_COMPARED", 3 * 40)
    assert torch.equal(directions(model, sae, logits=0)["neighbours"], whole)
    monkeypatch.setattr(module, "NEIGHBOUR_WIDTH", 39)
    assert (directions(model, sae, logits=0)["neighbours"] == -1).all()


@pytest.mark.parametrize(("columns", "run"), [(1000, 64), (1024, 64), (64 * 11 + 1, 64), (9, 4), (5, 4)])
def test_extremes_are_those_of_a_sort(columns, run, monkeypatch):
    monkeypatch.setattr(module, "_RUN", run)
    rows = torch.randn(20, columns, generator=torch.Generator().manual_seed(columns))
    rows[0] = rows[0].sort().values  # all the largest in one run
    found = extremes(rows, 10)
    k = min(10, columns)
    assert torch.equal(found.top, rows.topk(k).values)
    assert torch.equal(found.bottom, rows.topk(k, largest=False).values)
    assert torch.equal(rows.gather(1, found.top_at), found.top)
    assert torch.equal(rows.gather(1, found.bottom_at), found.bottom)


def test_a_row_of_zeros_is_near_nothing():
    own = tiny_gemma()
    sae = random_sae(own, "resid_post.1")
    sae.decoder.weight[3] = 0
    found = directions(own, sae)
    assert all(tensor.isfinite().all() for tensor in found.values())
    assert (found["neighbour_cosine"][3] == 0).all()
