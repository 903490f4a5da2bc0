"""Which nodes the links of a graph file mean, also where two nodes share one id.

circuit-tracer up to 0.5.0 calls the error of layer L at position P ``0_L_P``, which is also feature L of layer 0 there.
Such an error gets the id ``L_-1_P`` that newer versions write. A link that starts at the shared id is told apart, in
turn, by what it can reach (the error of layer L enters only layers above L), by being the second of two between the
same ends, and by its place in the file: those versions write, for each target, its features before its errors.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gemlens.errors import InputError, nearest
from gemlens.records.circuit import CircuitNode

__all__ = ["resolve"]

Resolved = tuple[tuple[CircuitNode, ...], NDArray[np.int32], NDArray[np.int32], tuple[str, ...]]


def resolve(nodes: Sequence[CircuitNode], links: Sequence[tuple[str, str]]) -> Resolved:
    """Nodes with ids of their own, and sources and targets of links as indices into them; warnings.

    Raises:
        InputError: two nodes of one id that are not such a pair, or a link to a node that is not there.
    """
    places: dict[str, list[int]] = defaultdict(list)
    for index, node in enumerate(nodes):
        places[node.id].append(index)
    shared = {name: _pair(nodes, name, found) for name, found in places.items() if len(found) > 1}
    named = list(nodes)
    for _, error in shared.values():
        named[error] = _renamed(nodes[error])
    taken = [node.id for node in named]
    if len(set(taken)) < len(taken):
        twice = next(name for name in taken if taken.count(name) > 1)
        raise InputError(f"nodes: two have the node_id {twice!r}")
    sources, targets = np.empty(len(links), np.int32), np.empty(len(links), np.int32)
    guesses = 0
    for index, (source, target) in enumerate(links):
        for name, end in (("source", source), ("target", target)):
            if end not in places:
                raise InputError(
                    f"links[{index}].{name} is {end!r:.60}, which no node is called; {nearest(end, places)}"
                )
        # Nothing enters an error: of a pair the feature is meant.
        targets[index] = shared[target][0] if target in shared else places[target][0]
        if source not in shared:
            sources[index] = places[source][0]
            continue
        sources[index], sure = _source(nodes, links, places, shared[source], index)
        guesses += not sure
    warnings = []
    if shared:
        warnings.append(
            f"{len(shared)} error nodes had the id of a feature and were given one of their own"
            + (f"; {guesses} of their links were told apart by their order in the file" if guesses else "")
        )
    return tuple(named), sources, targets, tuple(warnings)


def _pair(nodes: Sequence[CircuitNode], name: str, found: Sequence[int]) -> tuple[int, int]:
    features = [index for index in found if nodes[index].kind == "feature"]
    errors = [index for index in found if nodes[index].kind == "error"]
    if len(features) != 1 or len(errors) != 1 or len(found) != 2:
        raise InputError(f"nodes: {len(found)} have the node_id {name!r}; ids tell nodes apart, give each its own")
    return features[0], errors[0]


def _renamed(node: CircuitNode) -> CircuitNode:
    extra = {name: value for name, value in node.extra.items() if name != "jsNodeId"}
    return dataclasses.replace(node, id=f"{node.layer}_-1_{node.position}", extra=extra)


def _source(
    nodes: Sequence[CircuitNode],
    links: Sequence[tuple[str, str]],
    places: dict[str, list[int]],
    pair: tuple[int, int],
    index: int,
) -> tuple[int, bool]:
    """Feature or error, and whether it can only be that."""
    feature, error = pair
    source, target = links[index]
    above, below = nodes[places[target][0]].layer, nodes[error].layer
    if above is not None and below is not None and above <= below:
        return feature, True
    if index and links[index - 1] == (source, target):
        return error, True
    if index + 1 < len(links) and links[index + 1] == (source, target):
        return feature, True
    before = index - 1
    while before >= 0 and links[before][1] == target:
        kinds = {nodes[place].kind for place in places[links[before][0]]}
        if kinds <= {"error", "token"}:
            return error, False
        before -= 1
    after = index + 1
    while after < len(links) and links[after][1] == target:
        kinds = {nodes[place].kind for place in places[links[after][0]]}
        if kinds == {"feature"}:
            return feature, False
        after += 1
    # Features of layer 0 come first of all: behind another feature, it is the error.
    return (error if before != index - 1 else feature), False
