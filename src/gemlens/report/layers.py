"""One figure of several series by layer, as SVG inside a page: a line a series, a point a dictionary or layer.

Colours are classes (``c0``, ``c1``, …) that the page's style gives a meaning, since its policy allows no inline styles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from gemlens.records import Fidelity
from gemlens.report.axes import Axis, colour, line, safe

__all__ = ["Point", "by_layer", "plot"]

_WIDTH, _HEIGHT = 520, 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 14, 12, 46
_LOWEST = -0.5
"""Shares below it are drawn at the edge, as triangles."""


class Point(NamedTuple):
    """One value of one layer."""

    layer: int
    value: float
    error: float
    """Half the length of a bar through it; 0 for none."""
    where: str
    """What is pointed at, for the tip."""


def by_layer(
    groups: Sequence[Sequence[Fidelity]],
    value: Callable[[Fidelity], float],
    name: str,
    *,
    top: float | None = None,
    log: bool = False,
    error: Callable[[Fidelity], float] = lambda _figures: 0.0,
) -> str:
    """Draw ``value`` of each group in the group's colour, from 0 to ``top`` or to the largest.

    Args:
        log: on a scale of logarithms, where all are above 0.
        error: half the length of a bar through the point.
    """
    return plot(
        [
            [
                Point(
                    each.dictionary.layer,
                    value(each),
                    error(each),
                    f"{each.dictionary.path or each.dictionary.id}, {each.writes}",
                )
                for each in group
            ]
            for group in groups
        ],
        name,
        top=top,
        log=log,
        lowest=_LOWEST,
    )


def plot(
    groups: Sequence[Sequence[Point]],
    name: str,
    *,
    top: float | None = None,
    log: bool = False,
    lowest: float | None = None,
) -> str:
    """Draw each group in its colour, from 0 or below to ``top`` or to the largest.

    Args:
        lowest: what lies below is drawn at the edge, as a triangle.
    """
    members = [point for group in groups for point in group]
    last = max(point.layer for point in members)
    across = Axis(-0.5, last + 0.5, _LEFT, _WIDTH - _RIGHT, log=False)
    below = 0.0 if log or lowest is not None else 1.0
    least = min(point.value - below * point.error for point in members)
    most = max(point.value + point.error for point in members)
    if log and least > 0:
        up = Axis(least / 1.2, most * 1.2, _HEIGHT - _BOTTOM, _TOP, log=True)
    else:
        least = min(0.0, least if lowest is None else max(least, lowest))
        up = Axis(least, max(1.05 * most if top is None else top, least + 1e-9), _HEIGHT - _BOTTOM, _TOP, log=False)
    body = [each for index, group in enumerate(groups) for each in _series(group, index, across, up, name)]
    return "\n".join(
        [
            f'<svg class="plot" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{safe(name)} by layer">',
            *_frame(across, up),
            *body,
            "</svg>",
        ]
    )


def _frame(across: Axis, up: Axis) -> Iterable[str]:
    for tick in up.ticks:
        kind = "grid zero" if tick == 0 else "grid"
        yield f'<path class="{kind}" d="M{_LEFT} {up(tick):.1f}H{_WIDTH - _RIGHT}"/>'
        yield f'<text x="{_LEFT - 8}" y="{up(tick) + 4:.1f}" text-anchor="end">{tick:.6g}</text>'
    layers = round(across.high + 0.5)
    step = 1 if layers <= 10 else 2 if layers <= 20 else 5
    for layer in range(0, layers, step):
        yield f'<text x="{across(layer):.1f}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">{layer}</text>'
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    yield f'<text x="{middle}" y="{_HEIGHT - 4}" text-anchor="middle">layer</text>'


def _series(group: Sequence[Point], index: int, across: Axis, up: Axis, name: str) -> Iterable[str]:
    def height(amount: float) -> float:
        return up(min(max(amount, up.low), up.high))

    places = [(across(point.layer), height(point.value)) for point in group]
    yield f'<g class="{colour(index)}">'
    yield line("series", places)
    for point, (x, y) in zip(group, places, strict=True):
        amount, half = point.value, point.error
        if half:
            yield f'<path class="error" d="M{x:.1f} {height(amount - half):.1f}V{height(amount + half):.1f}"/>'
        said = f"{point.where}: {name} {amount:.3f}" + (f" ± {half:.3f}" if half else "")
        tip = f"<title>{safe(said)}</title>"
        if amount < up.low:
            yield f'<path class="point beyond" d="M{x - 5:.1f} {y - 8:.1f}h10l-5 8z">{tip}</path>'
        else:
            yield f'<circle class="point" cx="{x:.1f}" cy="{y:.1f}" r="3.5">{tip}</circle>'
    yield "</g>"
