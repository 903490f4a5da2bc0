"""How well a number tells two groups apart: the area under the ROC curve, and how far it can be trusted.

    auc = P(x > y) + P(x = y) / 2        for x of the first group, y of the second; Mann and Whitney 1947

The interval is the fifth method of Newcombe 2006 (Statistics in Medicine 25:559): all areas a with
``|a - auc| <= z sqrt(V(a))``, where V is Hanley and McNeil's variance at a, with the mean of both sizes for each.
Unlike the plain ``auc ± z s`` it does not shrink to a point at 0 and 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import sqrt

__all__ = ["auc", "interval"]

_Z = 1.959964
_STEPS = 60


def auc(first: Sequence[float], second: Sequence[float]) -> float:
    """Probability that one of ``first`` is larger than one of ``second``, ties counted half; 0.5 without any."""
    if not first or not second:
        return 0.5
    both = sorted([(value, 0) for value in second] + [(value, 1) for value in first])
    total, start = 0.0, 0
    while start < len(both):
        end = start
        while end < len(both) and both[end][0] == both[start][0]:
            end += 1
        # Ranks are from 1; equal values share the middle one of theirs.
        total += (start + 1 + end) / 2 * sum(group for _, group in both[start:end])
        start = end
    n = len(first)
    return (total - n * (n + 1) / 2) / (n * len(second))


def interval(area: float, first: int, second: int) -> tuple[float, float]:
    """Of 95 %, for groups of ``first`` and ``second``; all of 0 to 1 where one is empty."""
    if not first or not second:
        return 0.0, 1.0

    def inside(a: float) -> bool:
        n = (first + second) / 2 - 1
        variance = a * (1 - a) * (1 + n * (1 - a) / (2 - a) + n * a / (1 + a)) / (first * second)
        return abs(a - area) <= _Z * sqrt(variance)

    return _edge(area, 0.0, inside), _edge(area, 1.0, inside)


def _edge(within: float, beyond: float, inside: Callable[[float], bool]) -> float:
    for _ in range(_STEPS):
        middle = (within + beyond) / 2
        if inside(middle):
            within = middle
        else:
            beyond = middle
    return within
