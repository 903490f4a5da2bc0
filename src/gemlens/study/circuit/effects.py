"""What a graph says of interventions: effects added up over all paths through feature nodes.

A node's activation changes by what it reads, at the rate of its edges, as long as it keeps firing; a node that is held
changes by what it is told. Edges lead from lower layers to higher ones, so one pass over the layers adds up all paths.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from gemlens.errors import InputError
from gemlens.records.graph import Graph
from gemlens.records.intervention import Edit

__all__ = ["held_nodes", "predicted", "total_effects"]


def total_effects(graph: Graph) -> NDArray[np.float64]:
    """[t, n], what each feature node gives to each target over all paths: what is lost when it alone is ablated."""
    n = len(graph.features)
    total = graph.edges[n:, :n].astype(np.float64)
    for rows in reversed(list(_layers(graph))):
        through = total[:, rows] / graph.activations[rows]
        total[:, : rows.start] += through @ graph.edges[rows, : rows.start]
    return total


def predicted(graph: Graph, several: Sequence[Sequence[Edit]]) -> NDArray[np.float64]:
    """[len(several), t], the change of each target for each set of edits.

    Raises:
        InputError: an edit of what is no node.
    """
    n = len(graph.features)
    # By node, the change of its activation over the activation.
    change = np.zeros((len(several), n))
    held = np.zeros((len(several), n), dtype=bool)
    for row, edits in enumerate(several):
        for node, scale in held_nodes(graph, edits).items():
            change[row, node], held[row, node] = scale - 1, True
    for rows in _layers(graph):
        answer = change[:, : rows.start] @ graph.edges[rows, : rows.start].T / graph.activations[rows]
        change[:, rows] = np.where(held[:, rows], change[:, rows], answer)
    return change @ graph.edges[n:, :n].T


def held_nodes(graph: Graph, edits: Sequence[Edit]) -> dict[int, float]:
    """Each node that some edits hold, and at how many times its activation; of several edits the last one counts.

    Raises:
        InputError: an edit of what is no node.
    """
    return {node: edit.scale for edit in edits for node in _nodes_of(graph, edit)}


def _nodes_of(graph: Graph, edit: Edit) -> list[int]:
    layers, positions, features = graph.features.T
    hit = (layers == edit.layer) & (features == edit.feature)
    if edit.position is not None:
        hit &= positions == edit.position
    if not hit.any():
        elsewhere = positions[(layers == edit.layer) & (features == edit.feature)].tolist()
        where = "" if edit.position is None else f" at position {edit.position}"
        there = f"it is one at {', '.join(map(str, elsewhere))}" if elsewhere else f"layer {edit.layer} has others"
        raise InputError(f"feature {edit.feature} of layer {edit.layer} is no node{where}; {there}")
    return hit.nonzero()[0].tolist()


def _layers(graph: Graph) -> Iterator[slice]:
    """Nodes of each layer, lowest first."""
    bounds = np.searchsorted(graph.features[:, 0], np.arange(graph.n_layers + 1))
    for start, stop in pairwise(bounds.tolist()):
        if stop > start:
            yield slice(start, stop)
