"""A figure of a ``Steering`` by strength, as SVG inside a page: the curve, a point a strength, the unsteered model."""

from __future__ import annotations

from collections.abc import Callable

from gemlens.records.edits import Dose, Steering
from gemlens.report.axes import Axis, axis, line, safe

__all__ = ["dose_plot"]

_WIDTH, _HEIGHT = 520, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 14, 12, 46


def dose_plot(steering: Steering, value: Callable[[Dose], float], name: str) -> str:
    """Draw ``value`` of each dose, on a scale of logarithms where it spans more than a factor of four."""
    strengths = [dose.strength for dose in steering.doses]
    values = [value(dose) for dose in steering.doses]
    span = (max(strengths) - min(strengths)) or 1.0
    low, high = min(strengths) - 0.04 * span, max(strengths) + 0.04 * span
    across = Axis(low, high, _LEFT, _WIDTH - _RIGHT, log=False)
    up = axis(values, _HEIGHT - _BOTTOM, _TOP)
    places = [(across(x), up(y)) for x, y in zip(strengths, values, strict=True)]
    body = [f'<path class="neutral" d="M{across(0):.1f} {_TOP}V{_HEIGHT - _BOTTOM}"/>'] if low < 0 < high else []
    body += _grid(across, up)
    body.append(line("series", places))
    for (x, y), strength, amount in zip(places, strengths, values, strict=True):
        tip = f"strength {strength:g}: {name} {amount:,.4g}"
        body.append(f'<circle class="point" cx="{x:.1f}" cy="{y:.1f}" r="4"><title>{safe(tip)}</title></circle>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    caption = safe(f"strength, in {steering.unit}")
    body.append(f'<text x="{middle}" y="{_HEIGHT - 4}" text-anchor="middle">{caption}</text>')
    head = f'<svg class="plot" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{safe(name)} by strength">'
    return "\n".join([head, *body, "</svg>"])


def _grid(across: Axis, up: Axis) -> list[str]:
    drawn = []
    for tick in up.ticks:
        drawn.append(f'<path class="grid" d="M{_LEFT} {up(tick):.1f}H{_WIDTH - _RIGHT}"/>')
        drawn.append(f'<text x="{_LEFT - 8}" y="{up(tick) + 4:.1f}" text-anchor="end">{tick:.4g}</text>')
    for tick in across.ticks:
        drawn.append(
            f'<text x="{across(tick):.1f}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">{tick:.4g}</text>'
        )
    return drawn
