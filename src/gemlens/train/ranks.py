"""Several processes, and the one place where those that hold slices of a dictionary's features have to agree.

Everything that sums over features (reconstruction, L0, the gradient's norm) or looks for the largest of them goes
through here, so that features can be spread over processes without another line of arithmetic. Each process holds a
run of neighbouring features; what is not of a feature (b_dec, the skip) each holds whole, and since all see the same
batches and the same sums, it stays the same on each.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

from gemlens.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Alone", "Place", "Ranks", "dealt", "mine", "place_from_environment", "share"]

T = TypeVar("T")


class Place(NamedTuple):
    """Which of several processes one is. They need not know one another."""

    rank: int = 0
    """The number of the process, from 0."""
    size: int = 1
    """How many there are."""


def place_from_environment() -> Place:
    """Which of ``torchrun``'s processes this one is; the only one without it.

    Raises:
        InputError: the environment speaks of several processes, and not of which this one is.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size < 2:
        return Place()
    if "RANK" not in os.environ:
        raise InputError(f"WORLD_SIZE is {size}, and RANK is not set; start with torchrun")
    return Place(int(os.environ["RANK"]), size)


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


def mine(things: Sequence[T], place: Place | Ranks) -> list[T]:
    """Of whole dictionaries, or their configs, those of this process; none if there are more processes.

    They are dealt out in the order given, so that each process gets as many, but for one.
    """
    return list(things[place.rank :: place.size])


def dealt(configs: Mapping[str, T], place: Place) -> dict[str, T]:
    """The same by path.

    Raises:
        InputError: more processes than dictionaries.
    """
    if len(configs) < place.size:
        raise InputError(
            f"{place.size} processes for {len(configs)} dictionaries: some would have nothing to train; start fewer, "
            "or have them share the features"
        )
    return dict(mine(list(configs.items()), place))
