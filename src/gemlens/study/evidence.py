"""From what was counted to files: which examples are shown, which rows of text they need, in which numbers they stand.

Examples are the strongest activations of a feature, or, some of them, spread over its quantiles: a sample of its
firings is drawn on the way (``Counted.sample``), sorted by activation, and every so manieth is taken. A feature that
fired no more often than the sample has room for is spread exactly.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gemlens.scope.features import Features
from gemlens.study.firing import Firing
from gemlens.study.strongest import Strongest

__all__ = ["Counted", "compacted", "examples_of", "kept_rows", "statistics_of"]

SAMPLE = 8
"""Firings in the sample for each example that is spread over quantiles."""
_FEATURES = 1024


class Counted:
    """Everything that is counted of one dictionary while text goes by.

    Args:
        examples: to be kept a feature.
        quantiles: how many of them are spread over the quantiles of its activations, the others being the strongest.
        seed: of the sample.
    """

    def __init__(
        self,
        width: int,
        examples: int,
        quantiles: int,
        *,
        seed: int = 0,
        coactivation: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        self.quantiles, self.seed = quantiles, seed
        self.strongest = Strongest(width, examples - quantiles, device=device)
        self.sample = Strongest(width, SAMPLE * quantiles, device=device)
        self.firing = Firing(width, coactivation=coactivation, device=device)

    def add(self, features: Features, places: Tensor, thirds: Tensor) -> None:
        """Count the features of some tokens: ``places`` int64 [tokens], ascending from call to call."""
        at = places[features.tokens]
        self.firing.add(features, thirds)
        self.strongest.add(features.ids, features.values, at)
        if self.quantiles:
            self.sample.add(features.ids, _lot(places, self.seed)[features.tokens], at, features.values)

    def examples(self) -> tuple[Tensor, Tensor]:
        """Activations float32 and places int64 [width, examples], strongest first; 0 and -1 in empty slots."""
        self.strongest.settle()
        self.sample.settle()
        values, places = self.strongest.keys, self.strongest.places
        if not self.quantiles:
            return values, places
        found = [
            _with_spread(
                values[start:stop],
                places[start:stop],
                self.sample.values[start:stop],
                self.sample.places[start:stop],
                self.quantiles,
            )
            for start, stop in ((start, start + _FEATURES) for start in range(0, len(values), _FEATURES))
        ]
        return torch.cat([value for value, _ in found]), torch.cat([place for _, place in found])

    def state(self) -> dict[str, Tensor | int]:
        parts: dict[str, Mapping[str, Any]] = {
            "strongest": self.strongest.state(),
            "sample": self.sample.state(),
            "firing": self.firing.state(),
        }
        return {f"{part} {name}": value for part, each in parts.items() for name, value in each.items()}

    def load(self, state: Mapping[str, Any]) -> None:
        for part in ("strongest", "sample", "firing"):
            own = {name.partition(" ")[2]: value for name, value in state.items() if name.startswith(f"{part} ")}
            getattr(self, part).load(own)


def _with_spread(
    values: Tensor, places: Tensor, sampled: Tensor, sampled_places: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    """The strongest, and ``count`` of the sample that are not among them, evenly by rank; all strongest first."""
    sampled_places, order = sampled_places.sort(dim=1)  # of equals, the first seen comes first
    sampled = sampled.gather(1, order)
    free = (sampled_places >= 0) & ~(sampled_places[:, :, None] == places[:, None, :]).any(dim=2)
    sampled, order = torch.where(free, sampled, 0).sort(dim=1, descending=True, stable=True)
    sampled_places = sampled_places.gather(1, order)
    there = free.sum(dim=1, keepdim=True)
    slot = torch.arange(count, device=values.device)[None]
    rank = torch.where(there >= count, (2 * slot + 1) * there // (2 * count), slot)
    some = rank < there
    rank = rank.clamp(max=sampled.shape[1] - 1)
    values = torch.cat([values, torch.where(some, sampled.gather(1, rank), 0)], dim=1)
    places = torch.cat([places, torch.where(some, sampled_places.gather(1, rank), -1)], dim=1)
    places, order = places.sort(dim=1)
    values, by_strength = values.gather(1, order).sort(dim=1, descending=True, stable=True)
    return values, places.gather(1, by_strength)


def _lot(places: Tensor, seed: int) -> Tensor:
    """A number in (0, 1] for each place, the same in every run, as if drawn at random (SplitMix64)."""
    x = places + _signed(seed * _GAMMA)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ _shifted(x, shift)) * _signed(factor)
    return (_shifted(x ^ _shifted(x, 31), 40) + 1).float() * 2.0**-24


_GAMMA = 0x9E3779B97F4A7C15


def _signed(number: int) -> int:
    """The same 64 bits as torch's int64 has them."""
    return (number + 2**63) % 2**64 - 2**63


def _shifted(x: Tensor, by: int) -> Tensor:
    """To the right, zeros filling in."""
    return x >> by & (1 << 64 - by) - 1


def kept_rows(rows: Iterable[NDArray[np.int64]], wanted: NDArray[np.int64]) -> Tensor:
    """int32 [wanted, row length]: the rows of a text whose numbers, ascending, are ``wanted``."""
    found: list[NDArray[np.int64]] = []
    for number, row in enumerate(rows):
        if len(found) == len(wanted):
            break
        if number == wanted[len(found)]:
            found.append(row)
    return torch.from_numpy(np.stack(found)).to(torch.int32)


def examples_of(
    activations: Tensor, places: Tensor, firing: Firing, *, row_length: int, rows: NDArray[np.int64]
) -> dict[str, Tensor]:
    """``activations``, ``positions``, ``seq_ids`` and ``feature_frequencies``, as ``scope.examples`` holds them.

    Args:
        places: row times ``row_length`` plus position.
        rows: the rows that are kept, ascending.
    """
    empty = places < 0
    row = torch.from_numpy(rows).to(places.device)
    return {
        "activations": activations,
        "positions": torch.where(empty, 0, places % row_length).to(torch.int32),
        "seq_ids": torch.where(empty, -1, torch.searchsorted(row, places // row_length)),
        "feature_frequencies": firing.fired.double() / max(1, firing.tokens),
    }


def statistics_of(firing: Firing, *, most: int = 5) -> dict[str, Tensor]:
    """What was counted, as ``scope.statistics`` holds it; a feature that never fired has a histogram of zeros."""
    together, share = firing.together(most)
    never = firing.fired == 0
    return {
        "histogram_top": torch.where(never, 0, firing.top).to(torch.int32),
        "histogram": firing.histogram,
        "position_profile": firing.profile,
        "coactive": together.to(torch.int32),
        "coactive_share": share,
    }


def compacted(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Integers in the smallest of int8, int16 and int32 that holds them, other numbers in float16 where that does.

    Frequencies are float32: once in a million tokens is next to nothing in float16.
    """
    exact = "feature_frequencies"
    return {name: tensor.float() if name == exact else _compacted(tensor) for name, tensor in tensors.items()}


def _compacted(tensor: Tensor) -> Tensor:
    if tensor.is_floating_point():
        return half if (half := tensor.to(torch.float16)).isfinite().all() else tensor.float()
    for dtype in (torch.int8, torch.int16, torch.int32):
        if not tensor.numel() or (tensor.min() >= torch.iinfo(dtype).min and tensor.max() <= torch.iinfo(dtype).max):
            return tensor.to(dtype)
    return tensor
