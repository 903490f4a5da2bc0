"""Items in groups (``itertools.batched``, which Python 3.11 does not have yet), and work on them that runs ahead."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TypeVar

__all__ = ["ahead", "batched"]

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
