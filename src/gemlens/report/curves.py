"""The course of a training as SVG: loss, FVU, L0 and dead share over tokens, a panel each.

It follows the reader's light or dark theme, and needs neither a script nor a plotting library.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from gemlens.records import CURVE_COLUMNS, Training
from gemlens.report.axes import COLOURS, axis, line, safe

__all__ = ["to_svg"]

_WIDTH, _HEIGHT = 360, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 14, 40, 34
_HEAD = 62
_PANELS = (
    ("loss", "loss"),
    ("fvu", "fraction of variance unexplained"),
    ("l0", "active features a token (L0)"),
    ("dead", "dead features, share"),
)
_STYLE = """
svg { --sheet: #fffefb; --ink: #1e1b16; --soft: #665f54; --line: #e9e4da; --curve: %s;
  font: 12px system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; }
@media (prefers-color-scheme: dark) {
  svg { --sheet: #1b1d21; --ink: #ece9e2; --soft: #a39d92; --line: #2b2e34; --curve: %s; } }
.sheet { fill: var(--sheet); } text { fill: var(--soft); } .title, .named { fill: var(--ink); }
.title { font-size: 16px; font-weight: 600; } .grid { stroke: var(--line); }
.curve { fill: none; stroke: var(--curve); stroke-width: 1.5; stroke-linejoin: round; }
"""


def to_svg(training: Training) -> str:
    """Return one SVG file."""
    info = training.dictionary
    name = "/".join(filter(None, [info.category, info.id]))
    width, height = 2 * _WIDTH + 20, _HEAD + 2 * _HEIGHT + 14
    said = f"{training.tokens:,} tokens; of the batches trained on"
    panels: list[str] = []
    for index, (column, title) in enumerate(_PANELS):
        x, y = index % 2 * _WIDTH, _HEAD + index // 2 * _HEIGHT
        panels += [f'<g transform="translate({x} {y})">', *_panel(training, column, title), "</g>"]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'width="{width}" height="{height}" role="img">',
            f"<title>{safe(name)}</title>",
            f"<style>{_STYLE % COLOURS[1]}</style>",
            f'<rect class="sheet" width="{width}" height="{height}" rx="8"/>',
            f'<text class="title" x="24" y="30">{safe(name)}</text>',
            f'<text x="24" y="50">{safe(said)}</text>',
            *panels,
            "</svg>\n",
        ]
    )


def _panel(training: Training, column: str, title: str) -> Iterable[str]:
    tokens, values = (training.curves[:, CURVE_COLUMNS.index(name)] for name in ("tokens", column))
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    across, up = axis([0.0, float(tokens[-1])], _LEFT, right), axis([*values.tolist()], bottom, _TOP)
    yield f'<text class="named" x="{_LEFT}" y="{_TOP - 12}">{safe(title)}</text>'
    for tick in up.ticks:
        yield f'<path class="grid" d="M{_LEFT} {up(tick):.1f}H{right}"/>'
        yield f'<text x="{_LEFT - 8}" y="{up(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>'
    for tick in across.ticks:
        yield f'<text x="{across(tick):.1f}" y="{bottom + 18}" text-anchor="middle">{_short(tick)}</text>'
    places = [(across(float(x)), up(float(y))) for x, y in zip(tokens, values, strict=True) if np.isfinite(y)]
    yield line("curve", places)


def _short(tokens: float) -> str:
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if tokens >= size:
            return f"{tokens / size:g}{unit}"
    return f"{tokens:g}"
