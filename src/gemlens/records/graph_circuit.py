"""From a graph of arrays to the circuit that files hold and pages draw: nodes with names, links between them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemlens.errors import NotFoundError, nearest
from gemlens.records.analysis import DictionaryInfo
from gemlens.records.circuit import Circuit, CircuitNode, CircuitView
from gemlens.records.graph import Graph, GraphTarget

__all__ = ["circuit_of", "slug_of", "subgraph_of"]

# What targets that are no tokens are numbered from: above every vocabulary of Gemma.
_VIRTUAL = 1 << 20


def circuit_of(
    graph: Graph,
    kept: NDArray[np.bool_],
    links: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]],
    *,
    cumulative: NDArray[np.float64] | None = None,
    scores: tuple[float, float] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Circuit:
    """A part of a graph, whose nodes are numbered features, errors, tokens, targets.

    Args:
        kept: [nodes]
        links: numbers of targets and of sources, all kept, and weights.
        cumulative: [nodes], the influence of nodes as ``CircuitNode`` has it.
        scores: replacement and completeness of the whole graph.
        settings: thresholds that it was pruned by.
    """
    place = np.cumsum(kept) - 1
    inputs = _inputs(graph, kept)
    influences = [None] * len(kept) if cumulative is None else cumulative.tolist()
    targets, sources, weights = links
    return Circuit(
        metadata=_metadata(graph, scores, settings or {}),
        nodes=tuple(_node(graph, int(index), influences[index], inputs) for index in np.flatnonzero(kept)),
        sources=place[sources].astype(np.int32),
        targets=place[targets].astype(np.int32),
        weights=weights,
        warnings=graph.warnings,
    )


def subgraph_of(graph: Graph, pins: Iterable[str]) -> Circuit:
    """The nodes of these ids, all pinned, and every link among them.

    Raises:
        NotFoundError: an id that is not here.
    """
    wanted = list(dict.fromkeys(pins))
    number = {name: index for index, name in enumerate(_ids(graph))}
    if missing := [name for name in wanted if name not in number]:
        raise NotFoundError(
            f"no node {missing[0]!r} in this graph of {len(number):,} nodes; {nearest(missing[0], number)}"
        )
    chosen = np.array(sorted(number[name] for name in wanted), dtype=np.int64)
    n, between = len(graph.features), graph.edges.shape[1] - len(graph.features)
    rows = chosen[(chosen < n) | (chosen >= n + between)]
    columns = chosen[chosen < n + between]
    block = np.asarray(graph.edges[np.where(rows < n, rows, rows - between)])[:, columns]
    at, of = np.nonzero(block)
    kept = np.zeros(len(number), dtype=bool)
    kept[chosen] = True
    part = circuit_of(graph, kept, (rows[at], columns[of], block[at, of].astype(np.float64)))
    return dataclasses.replace(part, view=CircuitView(pinned=tuple(wanted)))


def _ids(graph: Graph) -> list[str]:
    top, last = graph.n_layers + 1, len(graph.tokens) - 1
    return [
        *(f"{layer}_{feature}_{position}" for layer, position, feature in graph.features.tolist()),
        *(f"{layer}_-1_{position}" for layer, position in graph.errors.tolist()),
        *(f"E_{token.token_id}_{position}" for position, token in enumerate(graph.tokens)),
        *(f"{top}_{_vocabulary_id(target, i)}_{last}" for i, target in enumerate(graph.targets)),
    ]


def _vocabulary_id(target: GraphTarget, number: int) -> int:
    return _VIRTUAL + number if target.token_id is None else target.token_id


def slug_of(prompt: str) -> str:
    """A file's name and a graph's on Neuronpedia: letters, digits and hyphens, from the last words of a prompt."""
    words = re.sub("[^a-z0-9]+", "-", prompt.lower()).strip("-")
    return words[-48:].strip("-") if len(words) > 1 else "circuit"


def _node(graph: Graph, index: int, influence: float | None, inputs: NDArray[np.float64]) -> CircuitNode:
    n, m = len(graph.features), len(graph.errors)
    if index < n:
        layer, position, feature = map(int, graph.features[index])
        extra = {
            "pre_activation": float(graph.pre_activations[index]),
            "bias": float(graph.biases[index]),
            "input_total": float(inputs[index]),
        }
        name, kind = f"{layer}_{feature}_{position}", "cross layer transcoder"
        active = float(graph.activations[index])
        return CircuitNode(name, "feature", kind, layer, position, feature, "", active, influence, extra=extra)
    if index < n + m:
        layer, position = map(int, graph.errors[index - n])
        name = f"{layer}_-1_{position}"
        return CircuitNode(name, "error", "mlp reconstruction error", layer, position, None, influence=influence)
    if index < n + m + len(graph.tokens):
        position = index - n - m
        token = graph.tokens[position]
        name = f"E_{token.token_id}_{position}"
        return CircuitNode(name, "token", "embedding", None, position, token.token_id, token.text, influence=influence)
    return _target(graph, index - n - m - len(graph.tokens), inputs)


def _target(graph: Graph, number: int, inputs: NDArray[np.float64]) -> CircuitNode:
    target, layer, position = graph.targets[number], graph.n_layers + 1, len(graph.tokens) - 1
    feature = _vocabulary_id(target, number)
    row = len(graph.features) + number
    return CircuitNode(
        f"{layer}_{feature}_{position}",
        "target",
        "logit",
        layer,
        position,
        feature,
        _label(target),
        probability=target.probability,
        first_target=number == 0,
        extra={
            "value": float(graph.target_values[number]),
            "bias": float(graph.biases[row]),
            "input_total": float(inputs[row]),
        },
    )


def _label(target: GraphTarget) -> str:
    """Tokens as other tools write and parse them; what has no probability goes by its own name."""
    if target.probability is None:
        return target.label
    return f'Output "{target.label}" (p={target.probability:.3f})'


def _inputs(graph: Graph, kept: NDArray[np.bool_]) -> NDArray[np.float64]:
    """[rows], the sizes of all that enters a kept row, pruned or not: a view can say how much it shows."""
    n = len(graph.features)
    rows = [*np.flatnonzero(kept[:n]), *range(n, n + len(graph.targets))]
    out = np.zeros(n + len(graph.targets))
    for row in rows:
        out[row] = np.abs(graph.edges[row]).sum(dtype=np.float64)
    return out


def _metadata(graph: Graph, scores: tuple[float, float] | None, settings: Mapping[str, Any]) -> dict[str, Any]:
    made = graph.provenance
    text = "".join(token.text for token in graph.tokens)
    metadata: dict[str, Any] = {
        "slug": slug_of(graph.prompt),
        "scan": _scan(graph),
        "transcoder_list": [],
        "prompt_tokens": [token.text for token in graph.tokens],
        "prompt": text,
        "node_threshold": settings.get("node_threshold"),
        "schema_version": 1,
    }
    if source_set := _source_set(graph.dictionaries):
        metadata["feature_details"] = {"neuronpedia_source_set": source_set}
    created = datetime.fromisoformat(made.created.replace("Z", "+00:00"))
    metadata["info"] = {
        "transcoder_set": graph.dictionaries[0].release if graph.dictionaries else "",
        "generator": {"name": "gemlens", "version": made.gemlens_version},
        "create_time_ms": int(created.timestamp() * 1000),
    }
    metadata["generation_settings"] = {**graph.settings}
    metadata["pruning_settings"] = dict(settings)
    metadata["gemlens"] = {
        "model_id": graph.model_id,
        "active_features": graph.n_active,
        "feature_nodes": len(graph.features),
        "replacement_score": None if scores is None else scores[0],
        "completeness_score": None if scores is None else scores[1],
        "dictionaries": [dataclasses.asdict(each) for each in graph.dictionaries],
        "provenance": dataclasses.asdict(made),
        "warnings": list(graph.warnings),
    }
    return metadata


def _scan(graph: Graph) -> str:
    """The model, as Neuronpedia calls it: the name without its owner, what dictionaries were trained on at best."""
    name = next((each.model_name for each in graph.dictionaries if each.model_name), None) or graph.model_id
    return name.replace("\\", "/").rstrip("/").rpartition("/")[2]


def _source_set(dictionaries: tuple[DictionaryInfo, ...]) -> str | None:
    """What Neuronpedia calls the dictionaries of all layers, where they all have one name there."""
    names = {(each.neuronpedia or "").rpartition("/")[2].partition("-")[2] for each in dictionaries}
    return names.pop() or None if len(names) == 1 else None
