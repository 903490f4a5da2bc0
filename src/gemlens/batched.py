"""Things in groups: of a size (``itertools.batched``, which Python 3.11 does not have yet), or of like length."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeVar

__all__ = ["batched", "of_like_length"]

T = TypeVar("T")


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield lists of ``size`` items, the last one shorter."""
    iterator = iter(items)
    while group := list(islice(iterator, size)):
        yield group


def of_like_length(lengths: Sequence[int], *, most: int, padding: int) -> list[list[int]]:
    """Group the indices of texts that are read together, the shortest first.

    Args:
        most: tokens of a group, padding counted; a longer text goes alone.
        padding: tokens of padding that a group may have.
    """
    groups: list[list[int]] = [[]]
    tokens = 0  # of the last group, without padding
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        n = lengths[index]
        padded = (len(groups[-1]) + 1) * n
        if groups[-1] and (padded > most or padded - (tokens + n) > padding):
            groups.append([])
            tokens = 0
        groups[-1].append(index)
        tokens += n
    return groups
