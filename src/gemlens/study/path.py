"""The mean of a gradient on the way from one point to another, by as few gradients as it takes.

What the target changes by over a stretch of the way is known without any gradient, from its values at the two ends. So
a stretch over which the gradients do not add up to that is halved and taken again, the worst first: where a model
turns sharply, as where a token's residual passes close by zero, there are more points. Each stretch has four of them,
those of Gauss and Legendre.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from gemlens.sites import Site

__all__ = ["mean_gradient"]

_POINTS = 4
_AT, _WEIGHT = np.polynomial.legendre.leggauss(_POINTS)
# Of the change over the whole way, what may be missing in the end: then steps are left over.
_ENOUGH = 1e-4

Gradients = Callable[[Tensor], dict[Site, Tensor]]
"""Of shares of the way, [points]: the gradient at each, [points, n, d] by site."""
Values = Callable[[Tensor], Tensor]
"""Of shares of the way: the target at each, [points]."""


@dataclass(frozen=True, eq=False)
class _Stretch:
    start: float
    stop: float
    gradient: dict[Site, Tensor]
    """[n, d], the mean over it."""
    missing: float
    """What the gradient is short of the target's change over it, in size."""


def mean_gradient(gradients: Gradients, values: Values, way: dict[Site, Tensor], steps: int) -> dict[Site, Tensor]:
    """[n, d] for each site.

    Args:
        way: [n, d] by site, from the first point to the last.
        steps: gradients to take at most; rounded up to ``_POINTS``.
    """
    first = max(1, steps // (2 * _POINTS))
    ends = np.linspace(0, 1, first + 1).tolist()
    stretches = _taken(gradients, values, way, list(pairwise(ends)))
    left = steps - first * _POINTS
    whole = abs(float(values(torch.tensor([0.0, 1.0])).diff()))
    while left >= 2 * _POINTS and sum(each.missing for each in stretches) > _ENOUGH * whole:
        stretches.sort(key=lambda each: each.missing)
        # Half of what is left, so that what this round finds can be looked into.
        count = min(max(1, left // (4 * _POINTS)), len(stretches))
        worst = [stretches.pop() for _ in range(count)]
        halves = [
            (start, stop)
            for each in worst
            for start, stop in ((each.start, (each.start + each.stop) / 2), ((each.start + each.stop) / 2, each.stop))
        ]
        stretches += _taken(gradients, values, way, halves)
        left -= 2 * count * _POINTS
    total = {site: torch.zeros_like(each) for site, each in way.items()}
    for each in stretches:
        for site, gradient in each.gradient.items():
            total[site] += (each.stop - each.start) * gradient
    return total


def _taken(
    gradients: Gradients, values: Values, way: dict[Site, Tensor], parts: Sequence[tuple[float, float]]
) -> list[_Stretch]:
    spans = torch.tensor(parts, dtype=torch.float64)
    start, length = spans[:, :1], spans[:, 1:] - spans[:, :1]
    points = start + length * torch.tensor((_AT + 1) / 2)
    weights = torch.tensor(_WEIGHT / 2)
    changes = values(spans.flatten()).view(-1, 2).diff()[:, 0]
    means: list[dict[Site, Tensor]] = [{} for _ in parts]
    for site, found in gradients(points.flatten()).items():
        by_part = found.view(len(parts), _POINTS, *found.shape[1:])
        for index, each in enumerate(by_part):
            means[index][site] = torch.einsum("p,pnd->nd", weights.to(each), each)
    return [
        _Stretch(*part, mean, abs(float(change) - (stop - begin) * _dot(mean, way)))
        for part, mean, change, (begin, stop) in zip(parts, means, changes, parts, strict=True)
    ]


def _dot(gradient: dict[Site, Tensor], way: dict[Site, Tensor]) -> float:
    return float(sum((gradient[site].double() * each.double()).sum() for site, each in way.items()))
