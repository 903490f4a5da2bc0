"""A circuit and a graph in a notebook: a fragment of HTML with a picture in it, no script, style sheet or id.

As in ``notebook``: styles are inline, colours the notebook's own or such as are seen on light and on dark.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np

from gemlens.records.circuit import Circuit, CircuitNode
from gemlens.records.graph import Graph
from gemlens.report.circuit_table import node_name
from gemlens.report.visible import inline, number, one_line

if TYPE_CHECKING:
    from markupsafe import Markup

__all__ = ["circuit_view", "graph_view"]

WIDTH, ROW, FOOT, HEAD = 900, 22, 56, 70
LINKS = 400
STRONGEST = 8
PLUS, MINUS, PIN = "#1b8ca3", "#d2611c", "#8a5cd6"


def circuit_view(circuit: Circuit) -> str:
    """Return the circuit drawn, layers from the bottom up; names and values are titles of what the pointer is over."""
    from markupsafe import Markup

    said = [
        f"{sum(node.kind == kind for node in circuit.nodes)} {kind}s"
        for kind in ("feature", "error", "token", "target")
    ]
    head = Markup("<b>{}</b> · {} · {} links").format(
        one_line(str(circuit.metadata.get("prompt", ""))), ", ".join(said), len(circuit.weights)
    )
    html = Markup('<div style="font-size:14px;line-height:1.5">{}{}{}</div>').format(
        head, _warnings(circuit.warnings), _drawing(circuit)
    )
    return html.encode("utf-8", "replace").decode()


def graph_view(graph: Graph) -> str:
    """Return what the graph explains, and of each target the strongest direct inputs; pruned, it can be drawn."""
    from markupsafe import Markup

    head = Markup("<b>{}</b> · {}<br>{:,} features of {:,} active, {:,} errors, {:,} tokens").format(
        *map(one_line, (graph.prompt, graph.model_id)),
        *(len(graph.features), graph.n_active, len(graph.errors), len(graph.tokens)),
    )
    tables = Markup("").join(_inputs(graph, row) for row in range(min(len(graph.targets), 3)))
    html = Markup('<div style="font-size:14px;line-height:1.5">{}{}<div style="display:flex;gap:32px">{}</div></div>')
    return html.format(head, _warnings(graph.warnings), tables).encode("utf-8", "replace").decode()


def _warnings(warnings: tuple[str, ...]) -> Markup:
    from markupsafe import Markup

    return Markup("").join(Markup('<div style="margin-top:4px">⚠ {}</div>').format(one_line(text)) for text in warnings)


def _inputs(graph: Graph, row: int) -> Markup:
    from markupsafe import Markup

    target = graph.targets[row]
    effects = np.asarray(graph.edges[len(graph.features) + row])
    best = np.argsort(-np.abs(effects))[:STRONGEST].tolist()
    cell = 'style="text-align:right;padding:1px 12px 1px 0"'
    rows = [
        Markup(f"<tr><td {cell}>{{:+,.3g}}</td><td>{{}}</td></tr>").format(
            float(effects[column]), _source(graph, column)
        )
        for column in best
    ]
    odds = "" if target.probability is None else f" {target.probability:.3f}"
    whole = '<table style="color:inherit;font-size:inherit"><tr><th colspan="2">{}{}</th></tr>{}</table>'
    return Markup(whole).format(inline(target.label), odds, Markup("").join(rows))


def _source(graph: Graph, column: int) -> str:
    n, m = len(graph.features), len(graph.errors)
    if column < n:
        layer, position, feature = graph.features[column].tolist()
        return f"{layer}/{feature} at {inline(graph.tokens[position].text)} #{position}"
    if column < n + m:
        layer, position = graph.errors[column - n].tolist()
        return f"error {layer} at {inline(graph.tokens[position].text)} #{position}"
    return f"{inline(graph.tokens[column - n - m].text)} #{column - n - m}"


def _drawing(circuit: Circuit) -> Markup:
    from markupsafe import Markup

    height = HEAD + FOOT + ROW * (circuit.n_layers + 1)
    places, left, step = _places(circuit, height)
    shapes: list[Markup] = []
    strongest = np.sort(np.argsort(-np.abs(circuit.weights))[:LINKS])
    most = float(np.abs(circuit.weights).max(initial=1e-9))
    for index in strongest.tolist():
        (x1, y1), (x2, y2) = places[circuit.sources[index]], places[circuit.targets[index]]
        size, middle = abs(circuit.weights[index]) / most, (y1 + y2) / 2
        path = f"M{x1:.1f} {y1:.1f}C{x1:.1f} {middle:.1f} {x2:.1f} {middle:.1f} {x2:.1f} {y2:.1f}"
        colour = PLUS if circuit.weights[index] >= 0 else MINUS
        style = f'fill="none" stroke="{colour}" stroke-width="{0.5 + 3 * size:.2f}" opacity="{0.15 + 0.6 * size:.2f}"'
        shapes.append(Markup(f'<path d="{path}" {style}/>'))
    pinned = set(circuit.view.pinned)
    shapes += [_shape(circuit, node, places[k], node.id in pinned) for k, node in enumerate(circuit.nodes)]
    for position, text in enumerate(circuit.tokens):
        x = left + (position + 0.5) * step
        word = '<text x="{}" y="{}" font-size="11" fill="currentColor" transform="rotate(32 {} {})">{}</text>'
        shapes.append(
            Markup(word).format(f"{x:.1f}", height - FOOT + 18, f"{x:.1f}", height - FOOT + 18, inline(text)[:18])
        )
    size = f'viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" style="max-width:100%;height:auto;display:block"'
    return Markup(f"<svg {size}>{{}}</svg>").format(Markup("").join(shapes))


def _places(circuit: Circuit, height: int) -> tuple[list[tuple[float, float]], float, float]:
    """Of every node; and where the columns begin, and how wide they are."""
    left, step = 10.0, (WIDTH - 60.0) / max(len(circuit.tokens), 1)
    cells: dict[tuple[int, int], list[int]] = {}
    for index, node in enumerate(circuit.nodes):
        row = 0 if node.layer is None else circuit.n_layers + 1 if node.kind == "target" else node.layer + 1
        cells.setdefault((node.position, row), []).append(index)
    places = [(0.0, 0.0)] * len(circuit.nodes)
    for (position, row), inside in cells.items():
        gap = min(11.0, step / len(inside))
        for k, index in enumerate(inside):
            x = left + (position + 0.5) * step + (k - (len(inside) - 1) / 2) * gap
            places[index] = (x, height - FOOT - row * ROW)
    return places, left, step


def _shape(circuit: Circuit, node: CircuitNode, place: tuple[float, float], pinned: bool) -> Markup:
    from markupsafe import Markup

    x, y = place
    fill = PIN if pinned else "none" if node.kind == "error" else "currentColor"
    said = node_name(circuit, node)
    if node.activation is not None:
        said += f"\n{number(node.activation)}"
    if node.kind in ("token", "target"):
        corner = 2 if node.kind == "target" else 0
        drawn = f'<rect x="{x - 4:.1f}" y="{y - 4:.1f}" width="8" height="8" rx="{corner}" fill="{fill}">'
        end = "</rect>"
    else:
        drawn, end = (
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.4" fill="{fill}" stroke="currentColor" opacity="0.8">',
            "</circle>",
        )
    shape = Markup(f"{drawn}<title>{{}}</title>{end}").format(said)
    if node.kind == "target":
        word = '<text x="{}" y="{}" font-size="11" fill="currentColor" transform="rotate(-40 {} {})">{}</text>'
        shape += Markup(word).format(*itertools.chain((f"{x:.1f}", f"{y - 8:.1f}") * 2, (said[:14],)))
    return shape
