"""What was predicted against what happened, as a plot in SVG inside a page: points on the diagonal were right."""

from __future__ import annotations

from collections.abc import Sequence

from gemlens.records.attribution import Removal
from gemlens.report.attribution import signed
from gemlens.report.axes import axis, safe

__all__ = ["scatter"]

_WIDTH, _HEIGHT = 420, 340
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 12, 44


def scatter(removed: Sequence[Removal]) -> str:
    """Draw every removal; one scale on both axes, so that the diagonal is a diagonal."""
    values = [value for each in removed for value in (each.predicted, each.actual)]
    # 0 belongs to it: what has no effect.
    across = axis([*values, 0.0], _LEFT, _WIDTH - _RIGHT)
    up = axis([*values, 0.0], _HEIGHT - _BOTTOM, _TOP)
    low, high = across.low, across.high
    ticks = [
        f'<path class="grid{" zero" if abs(tick) < 1e-12 else ""}" d="M{across(tick):.1f} {_TOP}V{_HEIGHT - _BOTTOM}'
        f'M{_LEFT} {up(tick):.1f}H{_WIDTH - _RIGHT}"/>'
        f'<text x="{across(tick):.1f}" y="{_HEIGHT - _BOTTOM + 17}" text-anchor="middle">{tick:.4g}</text>'
        f'<text x="{_LEFT - 7}" y="{up(tick) + 4:.1f}" text-anchor="end">{tick:.4g}</text>'
        for tick in across.ticks
    ]
    points = [
        f'<circle class="point" cx="{across(each.predicted):.1f}" cy="{up(each.actual):.1f}" r="4">'
        f"<title>{safe(_said(each))}</title></circle>"
        for each in removed
    ]
    label = f"{len(removed)} features removed one at a time: predicted against actual change of the target"
    return "\n".join(
        [
            f'<svg class="plot" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{safe(label)}">',
            *ticks,
            f'<path class="diagonal" d="M{across(low):.1f} {up(low):.1f}L{across(high):.1f} {up(high):.1f}"/>',
            *points,
            f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2}" y="{_HEIGHT - 6}" text-anchor="middle">predicted</text>',
            f'<text transform="translate(13 {(_TOP + _HEIGHT - _BOTTOM) / 2}) rotate(-90)" '
            'text-anchor="middle">actual</text>',
            "</svg>",
        ]
    )


def _said(each: Removal) -> str:
    return (
        f"feature {each.feature} at token {each.position}: "
        f"predicted {signed(each.predicted)}, actual {signed(each.actual)}"
    )
