"""How often the features of a dictionary fire, as a small histogram in SVG inside a page.

From left to right: features that never fire, apart from the rest, then by the logarithm of the share of tokens.
"""

from __future__ import annotations

from gemlens.records import DENSITY_DECADES, DENSITY_STEPS, Density
from gemlens.report.axes import safe

__all__ = ["histogram", "tallest"]

_WIDTH, _HEIGHT, _BASE = 150, 78, 62
_NEVER, _LEFT, _BAR = 4, 20, 5
"""Where the bar of those that never fire begins, where the others begin, and their width."""


def tallest(density: Density) -> float:
    """Share of the features in the fullest bar, of those that fire."""
    return max(density.counts) / (sum(density.counts) + density.never)


def histogram(density: Density, name: str, *, top: float) -> str:
    """Draw shares of the features; ``top`` is as high as there is room, and a bar of silent ones beyond it is cut."""
    features = sum(density.counts) + density.never
    bars = [_bar("never", _NEVER, density.never / features, top)]
    bars += [_bar("bar", _LEFT + index * _BAR, count / features, top) for index, count in enumerate(density.counts)]
    ticks = [
        f'<text x="{_LEFT + (power + DENSITY_DECADES) * DENSITY_STEPS * _BAR}" y="{_HEIGHT - 3}" '
        f'text-anchor="{"end" if power == 0 else "middle"}">{"1" if power == 0 else f"10{_superscript(power)}"}</text>'
        for power in range(-DENSITY_DECADES, 1, 2)
    ]
    tip = f"{name}: {density.never:,} of {features:,} features never fire on {density.tokens:,} tokens"
    return "\n".join(
        [
            f'<svg class="density" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{safe(tip)}">',
            f"<title>{safe(tip)}</title>",
            *filter(None, bars),
            f'<path class="grid zero" d="M0 {_BASE}H{_WIDTH}"/>',
            *ticks,
            "</svg>",
        ]
    )


def _bar(kind: str, x: float, share: float, top: float) -> str:
    """Empty where there are no features, but a single one of thousands is to be seen."""
    if not share:
        return ""
    height = max(min(1.0, share / top) * (_BASE - 4), 1.0)
    return f'<rect class="{kind}" x="{x}" y="{_BASE - height:.1f}" width="{_BAR - 1}" height="{height:.1f}"/>'


def _superscript(power: int) -> str:
    return str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
