"""The Pareto plot of a ``Sweep`` as SVG: active features against cost, a line a width, the front underlaid.

It follows the reader's light or dark theme, and needs neither a script nor a plotting library.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from gemlens.records import Sweep, SweepPoint, width_name
from gemlens.report.axes import COLOURS, Axis, axis, line, safe

__all__ = ["to_svg"]

_WIDTH, _HEIGHT = 720, 460
_LEFT, _RIGHT, _TOP, _BOTTOM = 72, 96, 84, 64

_STYLE = """
svg { --sheet: #fffefb; --ink: #1e1b16; --soft: #665f54; --line: #e9e4da; --front: #d9cfba; %s
  font: 13px system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; }
@media (prefers-color-scheme: dark) {
  svg { --sheet: #1b1d21; --ink: #ece9e2; --soft: #a39d92; --line: #2b2e34; --front: #4a4740; %s } }
.sheet { fill: var(--sheet); } text { fill: var(--soft); } .title, .named { fill: var(--ink); }
.title { font-size: 16px; font-weight: 600; } .grid { stroke: var(--line); }
.front { stroke: var(--front); stroke-width: 12; fill: none; stroke-linecap: round; stroke-linejoin: round; }
.width { fill: none; stroke-width: 1.5; } .error { stroke-width: 1.5; opacity: 0.55; }
.point { stroke-width: 2; } .beaten { fill: var(--sheet); } .named { font-size: 12px; paint-order: stroke;
  stroke: var(--sheet); stroke-width: 4px; stroke-linejoin: round; }
"""


def to_svg(sweep: Sweep) -> str:
    """Return one SVG file."""
    points = sweep.points
    costs = [point.figures.spliced for point in points]
    # Room on the left for the names of the sparsest.
    across = axis([point.figures.l0 for point in points], _LEFT, _WIDTH - _RIGHT, before=0.18)
    up = axis(
        [cost.above_clean + sign * cost.standard_error for cost in costs for sign in (-1, 0, 1)],
        _HEIGHT - _BOTTOM,
        _TOP,
    )
    widths = sorted({point.figures.dictionary.width for point in points})
    colours = {width: f"w{index % len(COLOURS)}" for index, width in enumerate(widths)}
    body: list[str] = [
        *_frame(sweep, across, up),
        line("front", [_place(point, across, up) for point in sorted(points, key=_l0) if point.on_front]),
    ]
    for width in widths:
        mine = sorted((point for point in points if point.figures.dictionary.width == width), key=_l0)
        body += _series(mine, colours[width], across, up)
    body += [*_names(points, across, up), *_key(colours)]
    palettes = [" ".join(f"--w{i}: {pair[theme]};" for i, pair in enumerate(COLOURS)) for theme in (0, 1)]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
            f'width="{_WIDTH}" height="{_HEIGHT}" role="img">',
            f"<title>{safe(_title(sweep))}</title>",
            f"<style>{_STYLE % tuple(palettes)}</style>",
            f'<rect class="sheet" width="{_WIDTH}" height="{_HEIGHT}" rx="8"/>',
            *body,
            "</svg>\n",
        ]
    )


def _frame(sweep: Sweep, across: Axis, up: Axis) -> Iterable[str]:
    middle, bottom = (_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - _BOTTOM
    yield f'<text class="title" x="24" y="34">{safe(_title(sweep))}</text>'
    tokens = sweep.points[0].figures.ce_tokens
    said = f"on {sweep.model_id}, {tokens:,} tokens; filled and underlaid: the Pareto front"
    yield f'<text x="24" y="56">{safe(said)}</text>'
    for tick in up.ticks:
        yield f'<path class="grid" d="M{_LEFT} {up(tick):.1f}H{_WIDTH - _RIGHT}"/>'
        yield f'<text x="{_LEFT - 10}" y="{up(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>'
    for tick in across.ticks:
        yield f'<path class="grid" d="M{across(tick):.1f} {_TOP}V{bottom}"/>'
        yield f'<text x="{across(tick):.1f}" y="{bottom + 20}" text-anchor="middle">{tick:g}</text>'
    yield f'<text x="{middle}" y="{_HEIGHT - 18}" text-anchor="middle">active features a token (L0, measured)</text>'
    yield (
        f'<text transform="translate(22 {(_TOP + bottom) / 2}) rotate(-90)" text-anchor="middle">'
        "nats above clean, spliced in</text>"
    )


def _series(points: Sequence[SweepPoint], colour: str, across: Axis, up: Axis) -> Iterable[str]:
    """The dictionaries of one width, by L0."""
    stroke = f"var(--{colour})"
    yield line("width", [_place(point, across, up) for point in points], f' style="stroke: {stroke}"')
    for point in points:
        (x, y), cost = _place(point, across, up), point.figures.spliced
        top, bottom = up(cost.above_clean + cost.standard_error), up(cost.above_clean - cost.standard_error)
        fill = f"; fill: {stroke}" if point.on_front else ""
        yield f'<path class="error" style="stroke: {stroke}" d="M{x:.1f} {top:.1f}V{bottom:.1f}"/>'
        yield (
            f'<circle class="point{"" if point.on_front else " beaten"}" style="stroke: {stroke}{fill}" '
            f'cx="{x:.1f}" cy="{y:.1f}" r="5"><title>{safe(_tip(point))}</title></circle>'
        )


def _names(points: Sequence[SweepPoint], across: Axis, up: Axis) -> Iterable[str]:
    """Points of the front by name, below and to the left: there, by the front's definition, no other point can lie."""
    taken: list[tuple[float, float, float]] = []
    for point in sorted((point for point in points if point.on_front), key=_l0):
        x, y = _place(point, across, up)
        name = " ".join(filter(None, [width_name(point.figures.dictionary.width), point.l0_named]))
        right, base = max(x - 6, _LEFT + 6.5 * len(name)), y + 19
        left = right - 6.5 * len(name)
        if all(right < start or left > stop or abs(base - y0) > 13 for start, stop, y0 in taken):
            taken.append((left, right, base))
            yield f'<text class="named" x="{right:.1f}" y="{base:.1f}" text-anchor="end">{safe(name)}</text>'


def _key(colours: dict[int, str]) -> Iterable[str]:
    """Which colour is which width."""
    x = _WIDTH - _RIGHT + 22
    yield f'<text x="{x - 6}" y="{_TOP + 6}">features</text>'
    for row, (width, colour) in enumerate(sorted(colours.items()), 1):
        y = _TOP + 8 + 20 * row
        yield f'<circle style="fill: var(--{colour})" cx="{x}" cy="{y - 4}" r="5"/>'
        yield f'<text class="named" x="{x + 12}" y="{y}">{width_name(width)}</text>'


def _place(point: SweepPoint, across: Axis, up: Axis) -> tuple[float, float]:
    return across(point.figures.l0), up(point.figures.spliced.above_clean)


def _l0(point: SweepPoint) -> float:
    return point.figures.l0


def _title(sweep: Sweep) -> str:
    return f"{sweep.site} of {sweep.release}"


def _tip(point: SweepPoint) -> str:
    figures, cost = point.figures, point.figures.spliced
    return (
        f"{figures.dictionary.path or figures.dictionary.id}: L0 {figures.l0:.1f}, {cost.above_clean:.3f} ± "
        f"{cost.standard_error:.3f} nats, variance explained {figures.variance_explained:.3f}"
    )
