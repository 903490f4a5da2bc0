"""The one place where processes that hold slices of a dictionary's features have to agree.

Everything that sums over features (reconstruction, L0, the gradient's norm) or looks for the largest of them goes
through here, so that features can be spread over processes without another line of arithmetic.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

__all__ = ["Alone", "Ranks"]


class Ranks(Protocol):
    """What all processes together hold, of what each gives."""

    def sum(self, part: Tensor) -> Tensor:
        """The sum of ``part`` over processes, of the same shape on each."""

    def gather(self, part: Tensor) -> Tensor:
        """The ``part`` of every process, one after the other along dimension 0; lengths may differ."""


class Alone:
    """One process, which holds every feature."""

    def sum(self, part: Tensor) -> Tensor:
        return part

    def gather(self, part: Tensor) -> Tensor:
        return part
