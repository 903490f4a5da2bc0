"""How often each feature of a dictionary fires over a lot of text, and how strongly at most."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from gemlens.files import told, whole
from gemlens.scope.sae import SAE
from gemlens.sites import Site

__all__ = ["Activity", "activities", "activity", "write_activity"]


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
    return activities([dictionary], ({dictionary.reads: x} for x in stream), tokens, report=report)[0]


def activities(
    dictionaries: Sequence[SAE],
    stream: Iterable[Mapping[Site, Tensor]],
    tokens: int,
    *,
    report: Callable[[int], None] = lambda _done: None,
) -> list[Activity]:
    """The same of several dictionaries on one stream of activations by site."""
    fired = [torch.zeros(each.width, dtype=torch.int64) for each in dictionaries]
    strongest = [torch.zeros(each.width) for each in dictionaries]
    done = 0
    for found in stream:
        for index, dictionary in enumerate(dictionaries):
            features = dictionary.encode(found[dictionary.reads][: tokens - done])
            ids, values = features.ids.cpu(), features.values.float().cpu()
            fired[index] += torch.bincount(ids, minlength=dictionary.width)
            strongest[index].scatter_reduce_(0, ids, values, "amax")
        done += min(tokens - done, len(next(iter(found.values()))))
        report(done)
        if done >= tokens:
            break
    return [Activity(done, *each) for each in zip(fired, strongest, strict=True)]


def write_activity(seen: Activity, path: Path) -> None:
    """Write ``max_activation`` float32 and ``tokens_active`` int64, both [width], as safetensors.

    Raises:
        OutputError: it cannot be written.
    """
    from safetensors.torch import save

    with whole(path) as file, told(path):
        file.write(save({"max_activation": seen.max_activation, "tokens_active": seen.fired}))
