"""How often each feature of a dictionary fires over a lot of text, and how strongly at most."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from gemlens.scope.sae import SAE

__all__ = ["Activity", "activity"]


class Activity(NamedTuple):
    tokens: int
    """BOS not counted."""
    fired: Tensor
    """int64 [width], tokens on which the feature fired."""
    max_activation: Tensor
    """float32 [width], 0 where it never fired."""

    @property
    def dead(self) -> float:
        """Share of features that never fired."""
        return float((self.fired == 0).float().mean())


def activity(
    dictionary: SAE, stream: Iterable[Tensor], tokens: int, *, report: Callable[[int], None] = lambda _done: None
) -> Activity:
    """Count over the first ``tokens`` activations of a stream of [n, d_in] ones, BOS left out of it.

    ``dead`` in a dictionary's card is measured on 1,000,000 tokens of the mix it was trained on.
    """
    fired = torch.zeros(dictionary.width, dtype=torch.int64)
    strongest = torch.zeros(dictionary.width)
    done = 0
    for x in stream:
        features = dictionary.encode(x[: tokens - done])
        fired += torch.bincount(features.ids, minlength=dictionary.width)
        strongest.scatter_reduce_(0, features.ids, features.values.float(), "amax")
        done += len(features)
        report(done)
        if done >= tokens:
            break
    return Activity(done, fired, strongest)
