"""Nucleus sampling keeps what transformers keeps, without sorting the vocabulary."""

from __future__ import annotations

import pytest
import torch
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

from gemlens.lm import sampling
from gemlens.lm.sampling import Nucleus


def scores(spread, vocab=5000):
    return spread * torch.randn(3, vocab, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("spread", [0.01, 1, 5, 40], ids=lambda spread: f"spread{spread}")
@pytest.mark.parametrize("temperature", [1e-6, 0.3, 0.7, 2.0])
@pytest.mark.parametrize("top_p", [1e-4, 0.5, 0.95, 0.999])
def test_the_tokens_and_logits_of_transformers(spread, temperature, top_p):
    theirs = LogitsProcessorList([TemperatureLogitsWarper(temperature), TopPLogitsWarper(top_p)])
    logits = scores(spread)
    found, expected = Nucleus(temperature, top_p)(None, logits), theirs(None, logits)
    # The last of the nucleus hangs on the rounding of a sum of thousands of probabilities.
    differs = found.isinf() != expected.isinf()
    chance = logits.div(temperature).softmax(dim=-1)
    assert (differs * chance).sum() <= 1e-5
    torch.testing.assert_close(found[~differs], expected[~differs])
    assert found.isfinite().any(dim=-1).all()


def test_all_tokens_of_a_whole_nucleus():
    logits = scores(40)
    torch.testing.assert_close(Nucleus(0.5, 1.0)(None, logits), 2 * logits)


def test_only_the_largest_are_sorted(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "sort", lambda *_, **__: pytest.fail("sorted the vocabulary"))
    assert Nucleus(0.7, 0.95)(None, scores(5)).isfinite().any()


def test_all_are_where_the_largest_do_not_suffice(monkeypatch):
    monkeypatch.setattr(sampling, "_LARGEST", 10)
    flat = torch.zeros(1, 1000)
    kept = int(Nucleus(1.0, 0.5)(None, flat).isfinite().sum())
    assert abs(kept - 500) <= 1
