"""What the benchmark of training stands on: the same tokens for all sides, others to judge by, and a fair judgement."""

import numpy as np
import pytest
import torch

import training
from gemlens.sites import parse_site
from gemlens.train.stored import StoredStream
from peers_training import Lookup
from tiny import random_sae, tiny_gemma

ROW = 9


@pytest.fixture
def small(monkeypatch, tmp_path):
    text = tmp_path / "abc.txt"
    text.write_text(" ".join(f"{number} is a number" for number in range(400)), encoding="utf-8")
    sizes = {"ROW": ROW, "STORED": 48, "HELD_OUT": 16, "BATCH": 8, "FOLDER": tmp_path}
    for name, value in sizes.items():
        monkeypatch.setattr(training, name, value)
    monkeypatch.setattr(training, "SITE", parse_site("resid_post.2"))
    monkeypatch.setattr(training, "_text", lambda: text)
    monkeypatch.setattr(training, "starter_bfloat16", tiny_gemma)


def test_no_token_that_is_held_out_is_trained_on(small):
    trained = torch.cat([batch[training.SITE] for batch in StoredStream(training.stored(), batch=8)])
    held_out = training.held_out()
    assert training.stored().tokens == 48
    whole = training._all_stored().read(0, 0, 64, [training.SITE])[training.SITE]
    assert torch.equal(held_out, whole[48:].float())
    # The others, in another order.
    assert torch.equal(trained.sort(dim=0).values, whole[:48].sort(dim=0).values)
    assert torch.equal(held_out, training.held_out())  # from disk, the second time


def test_rows_hold_the_tokens_that_were_asked_for_and_follow_the_seed(small):
    model = tiny_gemma()
    found = training.rows(model, 48, seed=1)
    assert found.shape == (6, ROW) and (found[:, 0] == model.bos).all()
    assert np.array_equal(found, training.rows(model, 48, seed=1))


@pytest.mark.parametrize("activation", ["topk", "batchtopk"])
def test_a_dictionary_is_judged_by_as_many_features_as_it_was_trained_with(activation):
    sae = random_sae(tiny_gemma(), "resid_post.2")
    x = torch.randn(6, sae.d_in, generator=torch.Generator().manual_seed(0))
    pre = x @ torch.cat([block for _, block in sae.encoder.blocks()]).T + sae.b_enc
    if activation == "topk":
        kept = torch.zeros_like(pre).scatter(1, pre.topk(3, dim=1).indices, 1.0)
    else:
        kept = torch.zeros(pre.numel()).scatter(0, pre.flatten().topk(3 * 6).indices, 1.0).view_as(pre)
    assert (pre[kept > 0] > 0).all()  # or fewer would do
    expected = (pre * kept) @ torch.cat([block for _, block in sae.decoder.blocks()]) + sae.b_dec
    torch.testing.assert_close(training.largest(sae, activation, l0=3)(x), expected)


def test_what_is_left_unexplained_is_a_share_of_the_variance_of_all_batches(monkeypatch):
    monkeypatch.setattr(training, "BATCH", 4)
    x = torch.randn(10, 5, generator=torch.Generator().manual_seed(0)) + 3
    assert training.fvu(lambda part: part, x) == 0
    assert training.fvu(lambda part: x.mean(dim=0).expand_as(part), x) == pytest.approx(1)


def test_a_peer_without_a_store_reads_one_through_a_model():
    x = torch.randn(6, 4)
    model = Lookup(x)
    ids = torch.tensor([[5, 0], [2, 2]])
    assert torch.equal(model(ids), x[ids])
    assert not any(parameter.requires_grad for parameter in model.parameters())
