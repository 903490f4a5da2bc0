"""The page of a circuit: one offline file to explore it in.

The script draws; here its data is gathered. The graph file itself goes along, its links as columns, so that the page
can save it again, with the reader's pins and labels, and nothing that the file said is lost.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gemlens.errors import InputError
from gemlens.records.circuit import Circuit, CircuitNode, CircuitPath, NodeEvidence, NodeGroup, shown_label
from gemlens.report.circuit_changes import Changes, changes_of, sides
from gemlens.report.graph_file import circuit_to_dict
from gemlens.report.page import render
from gemlens.report.visible import inline, one_line

__all__ = ["MOST_LINKS", "MOST_NODES", "SCRIPTS", "check_size", "page_data", "to_html"]

MOST_NODES, MOST_LINKS = 10_000, 250_000
"""That a page still draws without making its reader wait."""
SCRIPTS = (
    "circuit_model.js",
    "circuit_state.js",
    "circuit_layout.js",
    "circuit_canvas.js",
    "circuit_panel.js",
    "circuit_subgraph.js",
    "circuit_save.js",
)

_KINDS = {"feature": 0, "error": 1, "token": 2, "target": 3, "other": 4}
_SET = re.compile(r"https://(?:www\.)?neuronpedia\.org/([\w.-]+)/([\w.-]+)", re.ASCII)
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)


def to_html(
    circuit: Circuit,
    *,
    evidence: Mapping[tuple[int, int], NodeEvidence] | None = None,
    groups: Sequence[NodeGroup] = (),
    paths: Sequence[CircuitPath] = (),
) -> str:
    """Return one HTML file that works offline.

    Args:
        evidence: what is known of features, by layer and number.
        groups: supernodes to suggest.
        paths: strongest ways through the circuit, for the reader who wants a beginning.

    Raises:
        InputError: more nodes or links than a browser draws smoothly; says how to have fewer.
    """
    check_size(circuit)
    title = one_line("".join(circuit.tokens[1:]) or str(circuit.metadata.get("prompt", ""))) or "Circuit"
    both = sides(circuit)
    return render(
        "circuit",
        facts=_facts(circuit),
        scripts=SCRIPTS,
        data=page_data(circuit, evidence or {}, groups, paths),
        title=title,
        lead=_lead(circuit)
        if both is None
        else "What one graph has and the other has not, and what both have otherwise.",
        figures=_figures(circuit),
        warnings=list(circuit.warnings),
        difference=both,
    )


def check_size(circuit: Circuit) -> None:
    """Raise InputError for a circuit that a page cannot hold."""
    nodes, links = len(circuit.nodes), len(circuit.weights)
    if nodes > MOST_NODES or links > MOST_LINKS:
        raise InputError(
            f"this graph has {nodes:,} nodes and {links:,} links, a page draws {MOST_NODES:,} and {MOST_LINKS:,}; "
            f"prune it: lower --node-threshold ({_small_enough(circuit):g} is enough) or --edge-threshold"
        )


def _small_enough(circuit: Circuit) -> float:
    """A node threshold that leaves what a page draws; where influences are not known, one that mostly does."""
    always = ("token", "target")  # pruning keeps them
    own = np.array([0.0 if node.kind in always else node.influence for node in circuit.nodes], dtype=np.float64)
    if np.isnan(own).any():
        return 0.5
    of_links = np.maximum(own[circuit.sources], own[circuit.targets])
    steps = (step / 20 for step in range(19, 0, -1))
    fit = (t for t in steps if (own <= t).sum() <= MOST_NODES and (of_links <= t).sum() <= MOST_LINKS)
    return next(fit, 0.0)


def page_data(
    circuit: Circuit,
    evidence: Mapping[tuple[int, int], NodeEvidence],
    groups: Sequence[NodeGroup],
    paths: Sequence[CircuitPath],
) -> dict[str, Any]:
    """What the script finds."""
    file = circuit_to_dict(circuit)
    links = file.pop("links")
    known = {(node.layer, node.feature) for node in circuit.nodes if node.kind == "feature"}
    return {
        "file": file,
        "links": {
            "source": circuit.sources.tolist(),
            "target": circuit.targets.tolist(),
            "weight": [_finite(value) for value in circuit.weights.tolist()],
            "extra": {str(index): links[index] for index in circuit.link_extra},
        },
        "tokens": [inline(text) or "∅" for text in circuit.tokens],
        "layers": circuit.n_layers,
        "nodes": [_node(node, circuit) for node in circuit.nodes],
        "evidence": {f"{layer}_{feature}": _evidence(each) for (layer, feature), each in evidence.items()
                     if (layer, feature) in known},
        "pages": _pages(circuit),
        "difference": None if sides(circuit) is None else _difference(circuit, changes_of(circuit)),
        "groups": [{"label": group.label, "nodes": list(group.nodes), "reason": group.reason} for group in groups],
        "paths": [{"nodes": list(path.nodes), "share": _finite(path.share)} for path in paths],
    }  # fmt: skip


def _node(node: CircuitNode, circuit: Circuit) -> list[Any]:
    """Kind, layer (-1 at tokens), position, feature, label as it is shown."""
    label = (inline if node.kind == "target" else one_line)(shown_label(node))
    if node.kind == "token":
        place = node.position
        label = inline(circuit.tokens[place] if place < len(circuit.tokens) else node.label) or "∅"
    return [_KINDS[node.kind], -1 if node.layer is None else node.layer, node.position, node.feature, label]


def _evidence(each: NodeEvidence) -> dict[str, Any]:
    return {
        "label": one_line(each.label),
        "top": [[inline(text), _finite(value)] for text, value in each.top_tokens],
        "bottom": [[inline(text), _finite(value)] for text, value in each.bottom_tokens],
        "examples": [
            [[inline(text) for text in texts], [_finite(value) for value in values]] for texts, values in each.examples
        ],
    }


def _difference(circuit: Circuit, changes: Changes) -> dict[str, Any]:
    """What became of nodes and links: 0 in both, 1 gained, 2 lost; and the lists to read."""
    words = {"gained": 1, "lost": 2}
    ends = [circuit.link_extra.get(index, {}) for index in range(len(circuit.weights))]
    return {
        "nodes": [words.get(str(node.extra.get("difference")), 0) for node in circuit.nodes],
        "links": [1 if not each.get("first") else 2 if not each.get("second") else 0 for each in ends],
        "values": {str(index): ["First → second", said] for index, said in changes.changed},
        "gained": changes.gained,
        "lost": changes.lost,
        "changed": changes.changed,
    }


def _pages(circuit: Circuit) -> dict[str, str]:
    """Addresses that feature numbers are appended to, by layer, where features have pages on Neuronpedia.

    From ids of the dictionaries that gemlens wrote, the set that the file names, or the sources it lists. A name that
    is not plainly one gives no link: files come from other people.
    """
    said = circuit.metadata
    own, details, info = (said.get(name) for name in ("gemlens", "feature_details", "info"))
    if isinstance(own, dict) and isinstance(own.get("dictionaries"), list):
        found = {}
        for each in own["dictionaries"]:
            source = each.get("neuronpedia") if isinstance(each, dict) else None
            if isinstance(source, str) and re.fullmatch(rf"{_NAME.pattern}/{_NAME.pattern}", source, re.ASCII):
                found[str(each.get("layer"))] = f"https://www.neuronpedia.org/{source}/"
        return found
    name = details.get("neuronpedia_source_set") if isinstance(details, dict) else None
    model = said.get("scan")
    if not isinstance(name, str):
        urls = info.get("source_urls") if isinstance(info, dict) else None
        matches = [_SET.fullmatch(url) for url in urls if isinstance(url, str)] if isinstance(urls, list) else []
        first = next((match for match in matches if match), None)
        model, name = first.groups() if first else (None, None)
    if not isinstance(model, str) or not isinstance(name, str):
        return {}
    if not _NAME.fullmatch(model) or not _NAME.fullmatch(name):
        return {}
    return {str(layer): f"https://www.neuronpedia.org/{model}/{layer}-{name}/" for layer in range(circuit.n_layers)}


def _lead(circuit: Circuit) -> str:
    model = one_line(str(circuit.metadata.get("scan", ""))) or "the model"
    return f"What {model} makes its next token of: features of its layers, and the direct effects between them."


def _figures(circuit: Circuit) -> list[tuple[str, str]]:
    own = _object(circuit.metadata.get("gemlens"))
    found = []
    for name in ("replacement", "completeness"):
        value = own.get(f"{name}_score")
        if isinstance(value, (int, float)):
            found.append((f"{name.capitalize()} score", f"{value:.3f}"))
    return found


def _facts(circuit: Circuit) -> list[tuple[str, str]]:
    said = circuit.metadata
    own, info, thresholds = (_object(said.get(name)) for name in ("gemlens", "info", "pruning_settings"))
    made = _object(info.get("generator"))
    facts = [
        ("Model", own.get("model_id") or said.get("scan")),
        ("Transcoders", info.get("transcoder_set")),
        ("Name", said.get("slug")),
        ("Pruned", ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in thresholds.items())),
        ("Made with", " ".join(str(made.get(name, "")) for name in ("name", "version")).strip()),
        ("Made by", info.get("creator_name")),
    ]
    return [(name, one_line(str(value))) for name, value in facts if value]


def _object(value: Any) -> dict[str, Any]:
    """``value`` where it is one: files of other people hold what they like."""
    return value if isinstance(value, dict) else {}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
