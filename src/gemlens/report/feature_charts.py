"""The two pictures of a feature's page, as SVG inside it: how strongly it fires, and where in a text."""

from __future__ import annotations

from gemlens.records.feature import Histogram, PositionProfile
from gemlens.report.axes import safe
from gemlens.report.visible import number

__all__ = ["histogram", "positions"]

_WIDTH, _HEIGHT, _BASE = 320, 112, 90


def histogram(found: Histogram) -> str:
    """Bars of equal width; of all activations on a square-root scale, since most are weak and few are strong."""
    most = max(found.counts)
    step = _WIDTH / len(found.counts)
    power = 0.5 if found.complete else 1.0
    bars = []
    for index, count in enumerate(found.counts):
        if not count:
            continue
        low, high = (number(edge) for edge in found.edges[index : index + 2])
        said = f"at most {high}" if found.all_below and index == 0 else f"{low} to {high}"
        height = max((count / most) ** power * (_BASE - 6), 1.5)
        bars.append(
            f'<rect class="bar" x="{index * step:.2f}" y="{_BASE - height:.1f}" width="{max(step - 1.5, 1):.2f}" '
            f'height="{height:.1f}" rx="1"><title>{count:,} with activation {said}</title></rect>'
        )
    ticks = []
    shown = sorted({0, len(found.counts) // 2, len(found.counts)})
    for index in shown:
        anchor = "start" if index == 0 else "end" if index == len(found.counts) else "middle"
        text = "0" if found.all_below and index == 0 else number(found.edges[index])
        ticks.append(f'<text x="{index * step:.1f}" y="{_HEIGHT - 5}" text-anchor="{anchor}">{text}</text>')
    whole = sum(found.counts)
    tip = f"{whole:,} activations, most of them in the bin of {most:,}"
    return _svg("activations", tip, [*bars, *ticks])


def positions(found: PositionProfile) -> str:
    """Three bars: first, middle and last third."""
    counts = (found.first, found.middle, found.last)
    whole = sum(counts) or 1
    most = max(counts) or 1
    names = ("first third", "middle", "last third")
    parts = []
    for index, (name, count) in enumerate(zip(names, counts, strict=True)):
        height = max(count / most * (_BASE - 24), 1.5)
        x, width = index * _WIDTH / 3 + 3, _WIDTH / 3 - 6
        middle = x + width / 2
        parts += [
            f'<rect class="bar" x="{x:.1f}" y="{_BASE - height:.1f}" width="{width:.1f}" height="{height:.1f}" rx="1">'
            f"<title>{count:,} in the {name}</title></rect>",
            f'<text class="value" x="{middle:.1f}" y="{_BASE - height - 6:.1f}" text-anchor="middle">'
            f"{100 * count / whole:.0f} %</text>",
            f'<text x="{middle:.1f}" y="{_HEIGHT - 5}" text-anchor="middle">{name}</text>',
        ]
    return _svg("positions", "Where in its sequences it fires", parts)


def _svg(kind: str, tip: str, parts: list[str]) -> str:
    return "\n".join(
        [
            f'<svg class="chart {kind}" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{safe(tip)}">',
            f'<path class="axis" d="M0 {_BASE + 0.5}H{_WIDTH}"/>',
            *parts,
            "</svg>",
        ]
    )
