"""How much every node of a graph matters to its targets, and how much of it the features explain.

Ameisen et al. 2025, "Circuit Tracing" (transformer-circuits.pub/2025/attribution-graphs), section "Graph Pruning":

1. A link's share is its size, without sign, of all that enters its target.
2. A node's influence is the sum, over all ways from it to the targets, of the product of the shares on the way, the
   targets weighted by their probabilities: w (A + A^2 + ...). Layers order the nodes, so that one pass over the
   links, from the targets down, gives the whole sum: once a node is reached, all that it flows into is done.
3. Replacement score: of the influence that tokens and errors have together, the tokens'.
4. Completeness score: of all that enters nodes, weighted by their influence, what is not of errors. Tokens and
   errors, which nothing enters, count as complete, as in circuit-tracer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gemlens.errors import InputError
from gemlens.records.circuit import Circuit
from gemlens.records.graph import Graph, GraphTarget

__all__ = [
    "ERROR",
    "FEATURE",
    "OTHER",
    "TARGET",
    "TOKEN",
    "Flow",
    "Links",
    "Scores",
    "flow_of",
    "influence",
    "joined",
    "scores",
    "shares",
]

FEATURE, ERROR, TOKEN, TARGET, OTHER = range(5)
"""Kinds of nodes in ``Flow.kinds``."""

_ROWS = 256
_KINDS = {"feature": FEATURE, "error": ERROR, "token": TOKEN, "target": TARGET, "other": OTHER}


class Links(NamedTuple):
    """Some links of a graph: all that enter the nodes of one stretch of an order from the targets down."""

    targets: NDArray[np.int64]
    sources: NDArray[np.int64]
    weights: NDArray[np.float64]

    def where(self, which: NDArray[Any]) -> Links:
        """Those of a mask, or of indices in their order."""
        return Links(self.targets[which], self.sources[which], self.weights[which])


@dataclass(frozen=True, slots=True)
class Flow:
    """A graph as its links, read a stretch at a time, so that a large one is never in memory twice."""

    kinds: NDArray[np.uint8]
    """[nodes]"""
    weights: NDArray[np.float64]
    """[nodes], of targets: how much each counts; they sum to 1 where probabilities were not given. 0 elsewhere."""
    chunks: Callable[[], Iterator[Links]]
    """Gives all links, the last nodes first. No link is of weight 0."""

    def within(self, kept: NDArray[np.bool_]) -> Flow:
        """The links between the nodes of a mask; nodes keep their numbers."""
        chunks = self.chunks
        return replace(
            self, chunks=lambda: (links.where(kept[links.targets] & kept[links.sources]) for links in chunks())
        )


class Scores(NamedTuple):
    replacement: float
    completeness: float


def flow_of(graph: Graph | Circuit) -> Flow:
    """A graph's nodes are numbered features, errors, tokens, targets; a circuit's as they stand there.

    Raises:
        InputError: a circuit with a ring of links.
    """
    return _of_graph(graph) if isinstance(graph, Graph) else _of_circuit(graph)


def influence(flow: Flow) -> NDArray[np.float64]:
    """[nodes], see above; of targets 0 unless they flow into one another."""
    found = np.zeros(len(flow.kinds))
    for links in flow.chunks():
        reach = (found + flow.weights)[links.targets] * shares(links)
        found += np.bincount(links.sources, reach, minlength=len(found))
    return found


def scores(flow: Flow, found: NDArray[np.float64] | None = None) -> Scores:
    """Replacement and completeness, both from 0 to 1; ``found`` is the influence where it is known.

    Of a circuit, as far as its links go: what was pruned away is not there to be counted.
    """
    found = influence(flow) if found is None else found
    of_tokens, of_errors = found[flow.kinds == TOKEN].sum(), found[flow.kinds == ERROR].sum()
    reach = found + flow.weights
    unexplained = 0.0
    for links in flow.chunks():
        wrong = flow.kinds[links.sources] == ERROR
        unexplained += float((shares(links) * reach[links.targets])[wrong].sum())
    both, whole = of_tokens + of_errors, reach.sum()
    return Scores(float(of_tokens / both) if both else 1.0, 1 - unexplained / float(whole) if whole else 1.0)


def joined(parts: Sequence[Links]) -> Links:
    """All of them as one."""
    if not parts:
        return Links(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
    return Links(
        np.concatenate([part.targets for part in parts]),
        np.concatenate([part.sources for part in parts]),
        np.concatenate([part.weights for part in parts]),
    )


def shares(links: Links) -> NDArray[np.float64]:
    """[links], each link's size of all that enters its target."""
    if not len(links.targets):
        return np.zeros(0)
    sizes = np.abs(links.weights)
    return sizes / np.bincount(links.targets, sizes)[links.targets]


def _of_graph(graph: Graph) -> Flow:
    n, m, tokens, t = len(graph.features), len(graph.errors), len(graph.tokens), len(graph.targets)
    kinds = np.repeat(np.array([FEATURE, ERROR, TOKEN, TARGET], dtype=np.uint8), [n, m, tokens, t])
    weights = np.zeros(len(kinds))
    weights[n + m + tokens :] = _target_weights(graph.targets)
    layers = graph.features[:, 0]

    def chunks() -> Iterator[Links]:
        yield _rows(graph, np.arange(n, n + t), m + tokens)
        for layer in np.unique(layers)[::-1]:
            rows = np.flatnonzero(layers == layer)
            for start in range(0, len(rows), _ROWS):
                yield _rows(graph, rows[start : start + _ROWS], m + tokens)

    return Flow(kinds, weights, chunks)


def _rows(graph: Graph, rows: NDArray[np.int64], between: int) -> Links:
    """Links into some rows; a target's number as a node is its row and the ``between`` columns without a row."""
    block = np.asarray(graph.edges[rows])
    at, sources = np.nonzero(block)
    weights = block[at, sources].astype(np.float64)
    targets = rows[at]
    return Links(np.where(targets < len(graph.features), targets, targets + between), sources, weights)


def _target_weights(targets: tuple[GraphTarget, ...]) -> NDArray[np.float64]:
    """Probabilities; the same for all where one of them has none, as differences and features."""
    known = [target.probability for target in targets if target.probability is not None]
    if len(known) < len(targets) or not sum(known):
        return np.full(len(targets), 1 / max(len(targets), 1))
    return np.array(known, dtype=np.float64)


def _of_circuit(circuit: Circuit) -> Flow:
    kinds = np.array([_KINDS[node.kind] for node in circuit.nodes], dtype=np.uint8)
    ends = np.flatnonzero(kinds == TARGET)
    weights = np.zeros(len(kinds))
    weights[ends] = _target_weights(tuple(GraphTarget("", None, circuit.nodes[index].probability) for index in ends))
    depth = _depths(circuit, len(kinds))
    some = np.flatnonzero(circuit.weights != 0)
    order = some[np.argsort(depth[circuit.targets[some]], kind="stable")]
    links = Links(
        circuit.targets[order].astype(np.int64), circuit.sources[order].astype(np.int64), circuit.weights[order]
    )
    bounds = np.flatnonzero(np.diff(depth[links.targets], prepend=-1))

    def chunks() -> Iterator[Links]:
        for start, stop in zip(bounds, [*bounds[1:], len(order)], strict=True):
            yield links.where(np.arange(start, stop))

    return Flow(kinds, weights, chunks)


def _depths(circuit: Circuit, nodes: int) -> NDArray[np.int64]:
    """[nodes], links on the longest way from a node to one that flows nowhere."""
    depth = np.zeros(nodes, dtype=np.int64)
    for _ in range(nodes + 1):
        deeper = depth.copy()
        np.maximum.at(deeper, circuit.sources, depth[circuit.targets] + 1)
        if np.array_equal(deeper, depth):
            return depth
        depth = deeper
    ring = circuit.nodes[int(np.argmax(depth))].id
    raise InputError(f"the links form a ring at node {ring!r}; in an attribution graph they only lead up: mend 'links'")
