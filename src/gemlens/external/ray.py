"""Ray: the same function of many items on the workers of a cluster, results in the order of the items.

    with everything a worker needs held by an actor:    ordered(make, items, workers=4)

Each actor calls ``make()`` once, say to load a model, and what that returns on one item after another. A worker that
dies is started again and its items are given out again, so that nothing is lost; what it returned before stays.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from gemlens.errors import GemlensError, InputError, MissingPackageError, NetworkError

__all__ = ["ordered"]

T = TypeVar("T")
R = TypeVar("R")

_AHEAD = 2
"""Items that each worker is given before the first of them is done."""


def ordered(
    make: Callable[[], Callable[[T], R]],
    items: Iterable[T],
    *,
    workers: int | None = None,
    threads: int = 1,
    gpus: float = 0,
) -> Iterator[R]:
    """Yield ``make()(item)`` of each item, in order; ``items`` is read only so far as workers are free.

    Uses the cluster that ``ray.init`` or ``RAY_ADDRESS`` connected to, else one of this machine's own for the time of
    the iteration.

    Args:
        make: found by workers by its name in an installed module, with picklable arguments.
        workers: as many as the cluster has room for where None.
        threads: CPUs of each; numbers of another thread count may differ in the last bit.
        gpus: of each.

    Raises:
        MissingPackageError: ray is not installed.
        InputError: the cluster has no room for a worker.
        NetworkError: the cluster cannot be reached, or workers die again and again.
        GemlensError: what ``make`` or its function raised there.
    """
    ray = _ray()
    own = not ray.is_initialized()
    if own:
        _connect(ray)
    actors: list[Any] = []
    try:
        count = _room(ray, workers, threads, gpus)
        options = {"num_cpus": threads, "num_gpus": gpus, "max_restarts": -1, "max_task_retries": -1}
        actors = [ray.remote(_Worker).options(**options).remote(make) for _ in range(count)]
        waiting: deque[Any] = deque()
        for number, item in enumerate(items):
            if len(waiting) == _AHEAD * count:
                yield _result(ray, waiting.popleft())
            waiting.append(actors[number % count].run.remote(item))
        while waiting:
            yield _result(ray, waiting.popleft())
    finally:
        for actor in actors:
            ray.kill(actor)
        if own:
            ray.shutdown()


class _Worker:
    """What an actor is; ``make`` is called with the first item, so that its errors come back as those of a task."""

    def __init__(self, make: Callable[[], Callable[[Any], Any]]) -> None:
        self._make = make
        self._run: Callable[[Any], Any] | None = None

    def run(self, item: Any) -> Any:
        if self._run is None:
            self._run = self._make()
        return self._run(item)


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # the default to come; else it warns
    try:
        import ray
    except ImportError as error:
        raise MissingPackageError("--engine ray needs the package ray: pip install 'gemlens[ray]'") from error
    return ray


def _connect(ray: Any) -> None:
    try:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise NetworkError(
            f"no Ray cluster answers at {os.environ.get('RAY_ADDRESS', 'this machine')} ({reason}); start one with "
            "ray start --head, or leave out --engine ray"
        ) from error


def _room(ray: Any, workers: int | None, threads: int, gpus: float) -> int:
    """How many workers to start: as asked, or as many as find room."""
    there = ray.cluster_resources()
    room = int(there.get("CPU", 0) // threads) if threads else 1 << 10
    if gpus:
        room = min(room, int(there.get("GPU", 0) // gpus))
    if room < (workers or 1):
        raise InputError(
            f"{workers or 1} workers of {threads} CPUs and {gpus:g} GPUs each were asked for; the Ray cluster has room "
            f"for {room}: ask for fewer, or add machines"
        )
    return workers or room


def _result(ray: Any, reference: Any) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause if isinstance(error.cause, GemlensError) else None
        if cause is not None:
            raise cause from None
        last = str(error).strip().splitlines()[-1][:300]
        raise GemlensError(f"a worker failed: {last}; try without --engine ray") from error
    except ray.exceptions.RayError as error:
        reason = " ".join(str(error).split())[:200]
        raise NetworkError(f"the Ray cluster lost its workers ({reason}); run the same command again") from error
