"""The one place where processes that hold slices of a dictionary's features have to agree.

Everything that sums over features (reconstruction, L0, the gradient's norm) or looks for the largest of them goes
through here, so that features can be spread over processes without another line of arithmetic. Each process holds a
run of neighbouring features; what is not of a feature (b_dec, the skip) each holds whole, and since all see the same
batches and the same sums, it stays the same on each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from gemlens.errors import InputError
from gemlens.train.config import FitConfig

__all__ = ["Alone", "Ranks", "mine", "share"]


class Ranks(Protocol):
    """What all processes together hold, of what each gives. All of them call the same methods in the same order."""

    @property
    def rank(self) -> int:
        """The number of this process, from 0."""

    @property
    def size(self) -> int:
        """How many processes there are."""

    def sum(self, part: Tensor) -> Tensor:
        """The sum of ``part`` over processes, of the same shape on each and the same to the bit; may overwrite it."""

    def gather(self, part: Tensor) -> Tensor:
        """The ``part`` of every process, one after the other along dimension 0; lengths may differ."""


class Alone:
    """One process, which holds every feature."""

    rank = 0
    size = 1

    def sum(self, part: Tensor) -> Tensor:
        return part

    def gather(self, part: Tensor) -> Tensor:
        return part


def share(width: int, ranks: Ranks) -> slice:
    """The features of ``width`` that this process holds; sizes differ by 1 at most.

    Raises:
        InputError: fewer features than processes.
    """
    if width < ranks.size:
        raise InputError(f"width {width} over {ranks.size} processes: each needs a feature; start {width} or fewer")
    return slice(ranks.rank * width // ranks.size, (ranks.rank + 1) * width // ranks.size)


def mine(configs: Sequence[FitConfig], ranks: Ranks) -> list[FitConfig]:
    """Of whole dictionaries, those that this process trains, each by itself; none if there are more processes.

    They are dealt out in the order given, so that each process gets as many, but for one.
    """
    return list(configs[ranks.rank :: ranks.size])
