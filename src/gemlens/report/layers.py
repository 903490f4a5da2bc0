"""One figure of several series of dictionaries by layer, as SVG inside a page: a line a series, a point a dictionary.

Colours are classes (``c0``, ``c1``, …) that the page's style gives a meaning, since its policy allows no inline styles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from gemlens.records import Fidelity
from gemlens.report.axes import Axis, colour, line, safe

__all__ = ["by_layer"]

_WIDTH, _HEIGHT = 520, 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 14, 12, 46
_LOWEST = -0.5
"""Shares below it are drawn at the edge, as triangles."""


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
    members = [figures for group in groups for figures in group]
    last = max(figures.dictionary.layer for figures in members)
    across = Axis(-0.5, last + 0.5, _LEFT, _WIDTH - _RIGHT, log=False)
    lowest, highest = min(map(value, members)), max(value(figures) + error(figures) for figures in members)
    if log and lowest > 0:
        up = Axis(lowest / 1.2, highest * 1.2, _HEIGHT - _BOTTOM, _TOP, log=True)
    else:
        lowest = min(0.0, max(lowest, _LOWEST))
        up = Axis(
            lowest, max(1.05 * highest if top is None else top, lowest + 1e-9), _HEIGHT - _BOTTOM, _TOP, log=False
        )
    body = [
        each for index, group in enumerate(groups) for each in _series(group, index, value, error, across, up, name)
    ]
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


def _series(
    group: Sequence[Fidelity],
    index: int,
    value: Callable[[Fidelity], float],
    error: Callable[[Fidelity], float],
    across: Axis,
    up: Axis,
    name: str,
) -> Iterable[str]:
    def height(amount: float) -> float:
        return up(min(max(amount, up.low), up.high))

    places = [(across(figures.dictionary.layer), height(value(figures))) for figures in group]
    yield f'<g class="{colour(index)}">'
    yield line("series", places)
    for figures, (x, y) in zip(group, places, strict=True):
        amount, half = value(figures), error(figures)
        if half:
            yield f'<path class="error" d="M{x:.1f} {height(amount - half):.1f}V{height(amount + half):.1f}"/>'
        tip = f"<title>{safe(_tip(figures, name, amount, half))}</title>"
        if amount < up.low:
            yield f'<path class="point beyond" d="M{x - 5:.1f} {y - 8:.1f}h10l-5 8z">{tip}</path>'
        else:
            yield f'<circle class="point" cx="{x:.1f}" cy="{y:.1f}" r="3.5">{tip}</circle>'
    yield "</g>"


def _tip(figures: Fidelity, name: str, amount: float, half: float) -> str:
    where = figures.dictionary.path or figures.dictionary.id
    return f"{where}, {figures.writes}: {name} {amount:.3f}" + (f" ± {half:.3f}" if half else "")
