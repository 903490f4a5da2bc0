"""Items in groups: of a size (``itertools.batched``, which Python 3.11 does not have yet), of like length; and work on
them that runs ahead."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeVar

__all__ = ["ahead", "batched", "of_like_length"]

T = TypeVar("T")
R = TypeVar("R")


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield lists of ``size`` items, the last one shorter."""
    iterator = iter(items)
    while group := list(islice(iterator, size)):
        yield group


def ahead(do: Callable[[T], R], items: Iterable[T], *, threads: int = 4) -> Iterator[tuple[T, R]]:
    """Each item with what ``do`` makes of it, in order; a few are under way while one is worked on."""
    from concurrent.futures import Future, ThreadPoolExecutor

    pool = ThreadPoolExecutor(threads)
    waiting: deque[tuple[T, Future[R]]] = deque()
    try:
        for item in items:
            waiting.append((item, pool.submit(do, item)))
            if len(waiting) > threads:
                first, found = waiting.popleft()
                yield first, found.result()
        while waiting:
            first, found = waiting.popleft()
            yield first, found.result()
    finally:
        # Whoever stops early, by Ctrl-C or an error, does not wait for the others' answers.
        pool.shutdown(wait=False, cancel_futures=True)


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
