"""The mean of a gradient on the way from one point to another, by as few gradients as it takes.

1. Simpson's rule over equal stretches takes the gradient at the ends and in the middle of each.
2. What the target changes by over a stretch is known without any gradient, from its values at the two ends. A stretch
   over which the gradients do not add up to that is halved, the worst first; of its halves only the two middles are
   new. So there are more points where a model turns sharply, as where a token's residual passes close by zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gemlens.sites import Site

__all__ = ["LEAST_STEPS", "mean_gradient"]

LEAST_STEPS = 5
# Of the change over the whole way, what may be missing in the end: then steps are left over.
_ENOUGH = 1e-4
# Simpson's, of start, middle and stop.
_WEIGHTS = 1 / 6, 4 / 6, 1 / 6

Gradients = Callable[[Tensor], dict[Site, Tensor]]
"""Of shares of the way, float64 [points]: the gradient at each, [points, n, d] by site."""
Values = Callable[[Tensor], Tensor]
"""Of shares of the way: the target at each, [points]."""


class _Stretch(NamedTuple):
    start: float
    stop: float

    @property
    def points(self) -> tuple[float, float, float]:
        return self.start, (self.start + self.stop) / 2, self.stop


class _Way:
    """What is known at points of the way."""

    def __init__(self, gradients: Gradients, values: Values, way: dict[Site, Tensor]) -> None:
        self._gradients, self._values, self._way = gradients, values, way
        self.gradient: dict[float, dict[Site, Tensor]] = {}
        self._along: dict[float, float] = {}
        """The gradient times the way: the target's slope."""
        self._value: dict[float, float] = {}

    def visit(self, stretches: Sequence[_Stretch]) -> None:
        """Take what is missing at the points of some stretches."""
        points = sorted({point for each in stretches for point in each.points} - set(self.gradient))
        found = self._gradients(torch.tensor(points, dtype=torch.float64))
        for index, point in enumerate(points):
            here = {site: each[index] for site, each in found.items()}
            self.gradient[point] = here
            self._along[point] = float(
                sum((here[site].double() * each.double()).sum() for site, each in self._way.items())
            )
        ends = sorted({end for each in stretches for end in each} - set(self._value))
        values = self._values(torch.tensor(ends, dtype=torch.float64))
        self._value.update(zip(ends, values.tolist(), strict=True))

    def change(self, stretch: _Stretch) -> float:
        return self._value[stretch.stop] - self._value[stretch.start]

    def missing(self, stretch: _Stretch) -> float:
        """What the gradients over a stretch are short of the target's change, in size."""
        slopes = zip(_WEIGHTS, stretch.points, strict=True)
        mean = sum(weight * self._along[point] for weight, point in slopes)
        return abs(self.change(stretch) - (stretch.stop - stretch.start) * mean)


def mean_gradient(gradients: Gradients, values: Values, way: dict[Site, Tensor], steps: int) -> dict[Site, Tensor]:
    """[n, d] for each site.

    Args:
        way: [n, d] by site, from the first point to the last.
        steps: gradients to take at most, ``LEAST_STEPS`` or more; half of them on equal stretches.
    """
    first = max(2, steps // 4)
    stretches = [_Stretch(index / first, (index + 1) / first) for index in range(first)]
    known = _Way(gradients, values, way)
    known.visit(stretches)
    whole = abs(known.change(_Stretch(0.0, 1.0)))
    while (left := steps - len(known.gradient)) >= 2 and sum(map(known.missing, stretches)) > _ENOUGH * whole:
        stretches.sort(key=known.missing)
        # Not all that is left at once, so that what this round finds can be looked into.
        worst = [stretches.pop() for _ in range(min(max(1, left // 8), len(stretches)))]
        halves = [_Stretch(*ends) for start, middle, stop in (each.points for each in worst)
                  for ends in ((start, middle), (middle, stop))]  # fmt: skip
        known.visit(halves)
        stretches += halves
    total = {site: torch.zeros_like(each, dtype=torch.float64) for site, each in way.items()}
    for each in stretches:
        for weight, point in zip(_WEIGHTS, each.points, strict=True):
            for site, gradient in known.gradient[point].items():
                total[site] += (each.stop - each.start) * weight * gradient
    return {site: each.float() for site, each in total.items()}
