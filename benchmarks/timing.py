"""What a row of the benchmark is, and the arithmetic on its times.

A row is one file in ``rows/``: a docstring, and ``CASES``. A case has sides that do the same work. The first is
gemlens', and is held against the others. A side is a function of a seed that prepares a ``Work``; ``child.py`` calls it
in a process of its own, so rows import what is heavy inside functions.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Absent", "Aim", "Case", "Work", "judge", "spread", "summarise"]


class Absent(Exception):
    """This side cannot run here; the message says why. Without its first side a case is left out."""


@dataclass(frozen=True)
class Work:
    """What one side does in one process: everything is loaded, and ``run`` is timed once for each input."""

    run: Callable[[Any], Any]
    timed: Sequence[Any]
    warm: Any = None
    """Another input, run first and not timed; None: no warm-up."""
    holds: Sequence[Any] = ()
    """Modules, tensors and dictionaries that it works with, besides inputs and outputs."""
    facts: Callable[[Any], dict[str, Any]] = lambda _: {}
    """What to note of the last output."""
    in_children: bool = False
    """The work is done by processes that ``run`` starts: their memory counts, all of it."""


@dataclass(frozen=True)
class Aim:
    """What the first side should reach; one of the three."""

    faster: float | None = None
    """At least so many times as fast as the other."""
    longer: float | None = None
    """At most so many times its time."""
    seconds: float | None = None
    """At most that, against nobody."""

    def reached(self, ours: float, theirs: float) -> bool:
        """Of median seconds."""
        if self.faster is not None:
            return theirs / ours >= self.faster
        if self.longer is not None:
            return ours / theirs <= self.longer
        return self.seconds is None or ours <= self.seconds

    def __str__(self) -> str:
        if self.faster is not None:
            return f"≥ {self.faster:g} × as fast"
        return f"≤ {self.longer:g} × the time" if self.longer is not None else f"≤ {self.seconds:g} s"


@dataclass(frozen=True)
class Case:
    name: str
    sides: Mapping[str, Callable[[int], Work]]
    """By name, ours first."""
    aims: Mapping[str, Aim] = field(default_factory=dict)
    """By the side that ours is held against; by our own where it is held to seconds."""
    same: Callable[[int], dict[str, Any]] | None = None
    """Do the sides compute the same? Facts, ``holds`` among them. Runs once, apart from the timings."""
    repetitions: int | None = None
    """At most so many, of a case that takes minutes; its name should say so."""


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def summarise(case: Case, runs: Mapping[str, Sequence[dict[str, Any]]]) -> dict[str, Any]:
    """A case as its row's file keeps it: medians, ratios, verdicts, and every run as it came."""
    sides = {
        name: {
            "seconds": spread([run["seconds"] for run in each]),
            "tensor_bytes": _median(each, "tensor_bytes"),
            "peak_bytes": _median(each, "peak_bytes"),
            "runs": list(each),
        }
        for name, each in runs.items()
    }
    ours, *others = runs
    judged = [*([ours] if ours in case.aims else []), *others]
    return {
        "case": case.name,
        "sides": sides,
        "ratios": [judge(runs[ours], runs[name], name, case.aims.get(name)) for name in judged],
    }


def judge(
    ours: Sequence[dict[str, Any]], theirs: Sequence[dict[str, Any]], against: str, aim: Aim | None
) -> dict[str, Any]:
    """Our median against theirs; ``low`` and ``high`` are the ratios of single repetitions, which share a seed."""
    pairs = [their["seconds"] / our["seconds"] for our, their in zip(ours, theirs, strict=True)]
    medians = [statistics.median(run["seconds"] for run in side) for side in (ours, theirs)]
    return {
        "against": against,
        "faster": medians[1] / medians[0],
        "low": min(pairs),
        "high": max(pairs),
        "inverse": aim is not None and aim.longer is not None,
        "aim": None if aim is None else str(aim),
        "reached": None if aim is None else aim.reached(*medians),
    }


def _median(runs: Sequence[dict[str, Any]], key: str) -> float | None:
    """None where it could not be measured."""
    known = [run[key] for run in runs if run[key] is not None]
    return statistics.median(known) if known else None
