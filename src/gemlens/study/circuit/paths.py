"""The strongest ways through a circuit, from tokens and errors to a target."""

from __future__ import annotations

import heapq
from collections import defaultdict

import numpy as np

from gemlens.errors import InputError
from gemlens.records.circuit import Circuit, CircuitPath
from gemlens.study.circuit.influence import FEATURE, OTHER, flow_of, shares

__all__ = ["strongest_paths"]


def strongest_paths(
    circuit: Circuit, count: int = 5, *, target: int | None = None, least: int = 0
) -> list[CircuitPath]:
    """The ``count`` paths of largest share, each from a node that nothing enters to a target.

    From the target down, each node keeps its ``count`` best ways on: no better path can use a worse one.

    Args:
        target: index of the node where paths end; the first target where none is given.
        least: features that a path has to pass.

    Raises:
        InputError: the circuit has no targets, or ``count`` is below 1.
    """
    if count < 1:
        raise InputError(f"{count} paths: ask for 1 or more")
    end = _first_target(circuit) if target is None else target
    flow = flow_of(circuit)
    passed = np.isin(flow.kinds, (FEATURE, OTHER))
    # By how many features were passed, up to ``least``: a long way must not be crowded out by short ones.
    ways: dict[int, list[list[tuple[float, tuple[int, ...]]]]] = {end: [[] for _ in range(least + 1)]}
    ways[end][0] = [(1.0, (end,))]
    for links in flow.chunks():
        found: dict[int, list[list[tuple[float, tuple[int, ...]]]]] = defaultdict(
            lambda: [[] for _ in range(least + 1)]
        )
        signed = shares(links) * np.sign(links.weights)
        for above, below, share in zip(links.targets.tolist(), links.sources.tolist(), signed.tolist(), strict=True):
            for features, known in enumerate(ways.get(above, ())):
                more = min(features + int(passed[below]), least)
                found[below][more] += [(share * value, (below, *nodes)) for value, nodes in known]
        for below, lists in found.items():
            before = ways.get(below, [[] for _ in range(least + 1)])
            ways[below] = [
                heapq.nlargest(count, old + new, key=lambda way: abs(way[0]))
                for old, new in zip(before, lists, strict=True)
            ]
    starts = set(ways) - set(circuit.targets.tolist())
    best = heapq.nlargest(count, (way for start in starts for way in ways[start][least]), key=lambda way: abs(way[0]))
    return [CircuitPath(nodes, share) for share, nodes in best if len(nodes) > 1]


def _first_target(circuit: Circuit) -> int:
    ends = [index for index, node in enumerate(circuit.nodes) if node.kind == "target"]
    if not ends:
        raise InputError("the circuit has no targets; paths end at one: look for nodes of type 'logit' in the file")
    return next((index for index in ends if circuit.nodes[index].first_target), ends[0])
