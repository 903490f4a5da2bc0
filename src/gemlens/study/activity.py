"""How often each feature of a dictionary fires over a lot of text, and how strongly at most."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from gemlens.files import told, whole
from gemlens.records import DENSITY_DECADES, DENSITY_STEPS, Density
from gemlens.scope.sae import SAE
from gemlens.sites import Site
from gemlens.study.outputs import Dictionary, outputs

__all__ = ["Activity", "activities", "activity", "density", "write_activity"]


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
    dictionaries: Sequence[Dictionary],
    stream: Iterable[Mapping[Site, Tensor]],
    tokens: int,
    *,
    report: Callable[[int], None] = lambda _done: None,
) -> list[Activity]:
    """The same of several dictionaries on one stream of activations by site; of a CLT, of each layer."""
    parts = [part for dictionary in dictionaries for part in outputs(dictionary)]
    fired = [torch.zeros(part.info.width, dtype=torch.int64) for part in parts]
    strongest = [torch.zeros(part.info.width) for part in parts]
    done = 0
    for found in stream:
        for index, part in enumerate(parts):
            features = part.encode(found[part.reads][: tokens - done])
            ids, values = features.ids.cpu(), features.values.float().cpu()
            fired[index] += torch.bincount(ids, minlength=part.info.width)
            strongest[index].scatter_reduce_(0, ids, values, "amax")
        done += min(tokens - done, len(next(iter(found.values()))))
        report(done)
        if done >= tokens:
            break
    return [Activity(done, *each) for each in zip(fired, strongest, strict=True)]


def density(fired: Tensor, tokens: int) -> Density:
    """How many features fire how often, of ``fired`` int64 [width] of so many ``tokens``."""
    share = fired[fired > 0].double() / tokens
    bins = DENSITY_DECADES * DENSITY_STEPS
    at = ((share.log10() + DENSITY_DECADES) * DENSITY_STEPS).floor().long().clamp(0, bins - 1)
    counts = torch.bincount(at, minlength=bins)
    return Density(tokens=tokens, never=int((fired == 0).sum()), counts=tuple(counts.tolist()))


def write_activity(seen: Activity, path: Path) -> None:
    """Write ``max_activation`` float32 and ``tokens_active`` int64, both [width], as safetensors.

    Raises:
        OutputError: it cannot be written.
    """
    from safetensors.torch import save

    with whole(path) as file, told(path):
        file.write(save({"max_activation": seen.max_activation, "tokens_active": seen.fired}))
