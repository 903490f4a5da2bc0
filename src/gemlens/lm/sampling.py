"""Sampling at a temperature from the likeliest tokens: top-p, or nucleus sampling (Holtzman et al. 2020,
arXiv:1904.09751).

transformers sorts all 262,144 logits of Gemma for every token, which takes as long as its head. The nucleus is
nearly always a few of the largest, and only those need an order.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["Nucleus", "sampling_options"]

# Tokens that are sorted; where these do not add up to ``top_p``, all are.
_LARGEST = 1024


class Nucleus:
    """A logits processor: keeps the fewest likeliest tokens whose probabilities add up to ``top_p``, at least one."""

    def __init__(self, temperature: float, top_p: float) -> None:
        self.temperature, self.top_p = temperature, top_p

    def __call__(self, _ids: Tensor, scores: Tensor) -> Tensor:
        """[batch, vocab] logits over ``temperature``, -inf outside the nucleus."""
        scores = scores / self.temperature
        if self.top_p >= 1:
            return scores
        probabilities = scores.softmax(dim=-1)
        largest, ids = probabilities.topk(min(_LARGEST, scores.shape[-1]))
        if (largest.sum(dim=-1) < self.top_p).any():
            largest, ids = probabilities.sort(dim=-1, descending=True)
        # A token is kept where those before it do not suffice; nothing is before the first.
        kept = largest.cumsum(dim=-1) - largest < self.top_p
        kept[..., 0] = True
        return torch.full_like(scores, -torch.inf).scatter(
            -1, ids, scores.gather(-1, ids).masked_fill(~kept, -torch.inf)
        )


class _SameNoise:
    """A logits processor: adds Gumbel noise, the same for all rows, so that the largest is a sample of each row's
    distribution (Maddison et al. 2014, arXiv:1411.0030)."""

    def __call__(self, _ids: Tensor, scores: Tensor) -> Tensor:
        return scores - torch.empty_like(scores[:1]).exponential_().log()


def sampling_options(temperature: float, top_p: float, *, alike: bool = False) -> dict[str, Any]:
    """For transformers' ``generate``; temperature 0 is greedy. ``alike``: the same random numbers for all rows."""
    if temperature <= 0:
        return {"do_sample": False}
    # Logits divided by less than 1e-6 may overflow. top_k=0: no cut but the one that was asked for.
    nucleus = Nucleus(max(temperature, 1e-6), top_p)
    if alike:
        return {"do_sample": False, "logits_processor": [nucleus, _SameNoise()]}
    return {"do_sample": True, "logits_processor": [nucleus], "top_k": 0}
