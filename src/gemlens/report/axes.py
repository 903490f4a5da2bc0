"""What pictures are drawn with: axes, colours, lines, text that SVG can carry."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from gemlens.report.visible import one_line

__all__ = ["COLOURS", "Axis", "axis", "colour", "line", "safe"]

COLOURS = [
    ("#b45309", "#f0a84a"),
    ("#0e7490", "#4cc3d9"),
    ("#7c3aed", "#b79bff"),
    ("#be185d", "#f582b5"),
    ("#4d7c0f", "#a3cf5a"),
    ("#1d4ed8", "#8fb0ff"),
    ("#57534e", "#b8b2a7"),
]
"""Light and dark. Of a sweep, narrow to wide."""


@dataclass(frozen=True)
class Axis:
    """Numbers to pixels, on a scale of logarithms where they span more than ``wide``."""

    low: float
    high: float
    start: float
    stop: float
    log: bool

    def __call__(self, value: float) -> float:
        low, high, at = (math.log(each) for each in (self.low, self.high, value)) if self.log else (
            self.low, self.high, value
        )  # fmt: skip
        return self.start + (at - low) / (high - low) * (self.stop - self.start)

    @property
    def ticks(self) -> list[float]:
        if self.log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            found = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
        else:
            rough = (self.high - self.low) / 5
            unit = 10.0 ** math.floor(math.log10(rough))
            step = unit * next(factor for factor in (1, 2, 5, 10) if factor * unit >= rough)
            found = [step * n for n in range(math.floor(self.low / step), math.ceil(self.high / step) + 1)]
        return [tick for tick in found if self.low <= tick <= self.high]


def axis(values: Sequence[float], start: float, stop: float, *, before: float = 0.07) -> Axis:
    """An axis over ``values``, with room around them in parts of their span."""
    low, high = min(values), max(values)
    if low > 0 and high / low > 4:
        return Axis(low * (low / high) ** before, high * (high / low) ** 0.07, start, stop, log=True)
    span = (high - low) or abs(high) or 1.0
    lowest = low - before * span
    return Axis(max(lowest, 0.0) if low >= 0 else lowest, high + 0.07 * span, start, stop, log=False)


def colour(index: int) -> str:
    """The class of a series of a page, to which the page's style gives one of as many colours."""
    return f"c{index % len(COLOURS)}"


def line(kind: str, places: Sequence[tuple[float, float]], more: str = "") -> str:
    return f'<path class="{kind}"{more} d="M{" L".join(f"{x:.1f} {y:.1f}" for x, y in places)}"/>'


def safe(text: str) -> str:
    """On one line, without what XML cannot carry."""
    return escape(one_line(text))
