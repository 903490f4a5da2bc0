"""Prune a graph to the nodes and links that its targets hang on.

Ameisen et al. 2025, "Circuit Tracing", as circuit-tracer does it:

1. Keep the fewest nodes that hold ``node_threshold`` of all influence; tokens and targets always.
2. Among them, a link's score is its share of what enters its target times that node's influence, counted anew in the
   graph of the kept nodes. Keep the fewest links that hold ``edge_threshold`` of all scores.
3. Drop features and errors that lead nowhere, and features that nothing enters, until none are left.

Unlike there, a link of score 0 is never kept, nor, with a threshold of 1, one of a score above it dropped.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gemlens.errors import InputError
from gemlens.records.circuit import Circuit
from gemlens.records.graph import Graph
from gemlens.records.graph_circuit import circuit_of
from gemlens.study.circuit.influence import (
    ERROR,
    FEATURE,
    OTHER,
    TARGET,
    TOKEN,
    Flow,
    Links,
    Scores,
    flow_of,
    influence,
    joined,
    scores,
    shares,
)

__all__ = ["EDGE_THRESHOLD", "NODE_THRESHOLD", "Pruned", "check_thresholds", "prune", "prune_flow"]

NODE_THRESHOLD, EDGE_THRESHOLD = 0.8, 0.98
_BINS = 1 << 16


class Pruned(NamedTuple):
    kept: NDArray[np.bool_]
    """[nodes]"""
    links: Links
    """Between kept nodes, in order of target, then of source."""
    cumulative: NDArray[np.float64]
    """[nodes], share of all influence that a node and the more influential ones hold together."""
    scores: Scores
    """Of the graph before it was pruned."""


def prune(
    graph: Graph | Circuit, *, node_threshold: float = NODE_THRESHOLD, edge_threshold: float = EDGE_THRESHOLD
) -> Circuit:
    """The part of a graph, or of a circuit read from a file, that its targets hang on.

    Args:
        node_threshold: share of all influence that the kept nodes hold, from 0 to 1; of a circuit from a file by the
            influences that the file gives.
        edge_threshold: share of what flows between them that the kept links hold.

    Raises:
        InputError: a threshold outside 0 to 1, or a circuit whose links form a ring.
    """
    check_thresholds(node_threshold, edge_threshold)
    settings = {"node_threshold": node_threshold, "edge_threshold": edge_threshold}
    if isinstance(graph, Graph):
        pruned = prune_flow(flow_of(graph), node_threshold, edge_threshold)
        return circuit_of(
            graph, pruned.kept, pruned.links, cumulative=pruned.cumulative, scores=pruned.scores, settings=settings
        )
    known = np.array([np.nan if node.influence is None else node.influence for node in graph.nodes])
    pruned = prune_flow(flow_of(graph), node_threshold, edge_threshold, known=known)
    places = graph.targets.astype(np.int64) * len(graph.nodes) + graph.sources
    kept = np.isin(places, pruned.links.targets * len(graph.nodes) + pruned.links.sources)
    return _with_influence(graph, pruned.cumulative, settings).only(pruned.kept, kept)


def check_thresholds(node_threshold: float, edge_threshold: float) -> None:
    """Raise InputError for one outside 0 to 1."""
    for name, value in (("node", node_threshold), ("edge", edge_threshold)):
        if not 0 <= value <= 1:
            raise InputError(
                f"--{name}-threshold {value:g}: take a share of the influence to keep, from 0 to 1, such as 0.8"
            )


def prune_flow(
    flow: Flow, node_threshold: float, edge_threshold: float, *, known: NDArray[np.float64] | None = None
) -> Pruned:
    """The numbered steps above.

    Args:
        known: [nodes], cumulative influences that a file gives, of the whole graph before it was pruned, and NaN where
            it gives none: they say better what to keep than what can be counted in the part of it that is left.
    """
    found = influence(flow)
    least = _cutoff(lambda: iter([found.astype(np.float32)]), node_threshold)
    kept = (found > 0) & (found.astype(np.float32) >= least)
    if known is not None:
        kept = np.where(np.isnan(known), kept, known <= node_threshold)
    kept |= np.isin(flow.kinds, (TOKEN, TARGET))

    inner = flow.within(kept)
    reach = (influence(inner) + flow.weights).astype(np.float32)

    def link_scores() -> Iterator[tuple[Links, NDArray[np.float32]]]:
        for links in inner.chunks():
            yield links, shares(links).astype(np.float32) * reach[links.targets]

    least = _cutoff(lambda: (each for _, each in link_scores()), edge_threshold)
    parts = [links.where((each > 0) & (each >= least)) for links, each in link_scores()]
    links = _connected(flow.kinds, kept, joined(parts))
    links = links.where(np.lexsort((links.sources, links.targets)))
    return Pruned(kept, links, _cumulative(found), scores(flow, found))


def _with_influence(circuit: Circuit, cumulative: NDArray[np.float64], settings: Mapping[str, Any]) -> Circuit:
    """The circuit with influences where its file had none, and with the thresholds that it is pruned by."""
    nodes = tuple(
        node if node.influence is not None or node.kind == "target" else dataclasses.replace(node, influence=float(own))
        for node, own in zip(circuit.nodes, cumulative, strict=True)
    )
    return dataclasses.replace(circuit, nodes=nodes, metadata={**circuit.metadata, "pruning_settings": dict(settings)})


def _cutoff(chunks: Callable[[], Iterator[NDArray[np.float32]]], share: float) -> float:
    """The smallest of the fewest scores that sum to ``share`` of all.

    Bit patterns of positive floats sort as the floats do: a histogram of their upper halves says in which bin the
    smallest lies, a second reading sorts that bin alone. The scores are never in memory together.
    """
    if share == 1:
        return 0.0
    sums = np.zeros(_BINS)
    for each in chunks():
        sums += np.bincount(each.view(np.uint32) >> 16, each, minlength=_BINS)
    above = np.cumsum(sums[::-1])[::-1]
    if not above[0]:
        return math.inf
    bin_ = int(np.flatnonzero((above >= share * above[0]) & (sums > 0))[-1])
    inside = np.sort(np.concatenate([each[each.view(np.uint32) >> 16 == bin_] for each in chunks()]))[::-1]
    reached = above[bin_] - sums[bin_] + np.cumsum(inside, dtype=np.float64)
    return float(inside[min(int(np.searchsorted(reached, share * above[0])), len(inside) - 1)])


def _connected(kinds: NDArray[np.uint8], kept: NDArray[np.bool_], links: Links) -> Links:
    """Take out of ``kept``, until nothing changes, what leads nowhere and features that nothing enters."""
    leads = np.isin(kinds, (FEATURE, ERROR, OTHER))
    while True:
        out, into = (np.bincount(ends, minlength=len(kinds)) > 0 for ends in (links.sources, links.targets))
        lost = kept & ((leads & ~out) | ((kinds == FEATURE) & ~into))
        if not lost.any():
            return links
        kept &= ~lost
        links = links.where(kept[links.sources] & kept[links.targets])


def _cumulative(found: NDArray[np.float64]) -> NDArray[np.float64]:
    order = np.argsort(-found, kind="stable")
    out = np.ones(len(found))
    if total := found.sum():
        out[order] = np.minimum(np.cumsum(found[order]) / total, 1.0)
    return out
