"""What two circuits do not have in common: two prompts, a model and its ``-it`` sibling, before and after steering.

Tokens of the two are aligned as texts are by a diff: equal ones, ones that stand in place of one another where the
stretches are as long, and those of one side alone. Nodes are matched by kind, layer, feature and aligned position,
targets by their token. The result is a circuit again, of the nodes of both, in which a link's weight is the second's
minus the first's. What became of a node is in its ``extra``, so that it is kept in files.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable
from difflib import SequenceMatcher
from typing import Any

import numpy as np

from gemlens.records.circuit import Circuit, CircuitNode, CircuitView

__all__ = ["difference"]

Key = tuple[Hashable, ...]


def difference(first: Circuit, second: Circuit) -> Circuit:
    """The circuit of both. ``extra`` of its nodes has ``difference`` (``both``, ``gained`` by the second, or ``lost``),
    and ``first`` and ``second`` with activation, influence and probability there; ``link_extra`` has both weights.

    Influence is the smaller of the two, so that what matters in either is shown.
    """
    texts, places = _aligned(first.tokens, second.tokens)
    keys = [_keys(circuit, place) for circuit, place in zip((first, second), places, strict=True)]
    found: dict[Key, list[CircuitNode | None]] = {}
    for side, (circuit, named) in enumerate(zip((first, second), keys, strict=True)):
        for node, key in zip(circuit.nodes, named, strict=True):
            found.setdefault(key, [None, None])[side] = node
    n_layers = max(first.n_layers, second.n_layers)
    order = sorted(found, key=lambda key: _order(found[key], key))
    number = {key: index for index, key in enumerate(order)}
    nodes = tuple(_node(found[key], _place(key), n_layers) for key in order)
    links = _links((first, second), keys, number)
    pairs = np.array(sorted(links), dtype=np.int32).reshape(-1, 2)
    weights = [links[source, target] for source, target in pairs.tolist()]
    slugs = [str(circuit.metadata.get("slug", "")) for circuit in (first, second)]
    return Circuit(
        metadata={
            **second.metadata,
            "slug": f"{slugs[0][:40]}-vs-{slugs[1][:40]}",
            "prompt_tokens": texts,
            "prompt": "".join(texts),
            "difference": {
                "first": {"slug": slugs[0], "prompt": str(first.metadata.get("prompt", ""))},
                "second": {"slug": slugs[1], "prompt": str(second.metadata.get("prompt", ""))},
            },
            "gemlens": {},
        },
        nodes=nodes,
        sources=pairs[:, 0].copy(),
        targets=pairs[:, 1].copy(),
        weights=np.array([b - a for a, b in weights], dtype=np.float64),
        view=CircuitView(),
        link_extra={i: {"first": a, "second": b} for i, (a, b) in enumerate(weights)},
        warnings=tuple(dict.fromkeys([*first.warnings, *second.warnings])),
    )


def _aligned(a: tuple[str, ...], b: tuple[str, ...]) -> tuple[list[str], tuple[list[int], list[int]]]:
    """Texts of the columns of both, and the column of each token of the first and of the second."""
    texts: list[str] = []
    places: tuple[list[int], list[int]] = ([], [])
    for what, a1, a2, b1, b2 in SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        if what == "equal" or (what == "replace" and a2 - a1 == b2 - b1):
            for one, other in zip(a[a1:a2], b[b1:b2], strict=True):
                for own in places:
                    own.append(len(texts))
                texts.append(one if one == other else f"{one} |{other}")
            continue
        for side, part in ((0, a[a1:a2]), (1, b[b1:b2])):
            for text in part:
                places[side].append(len(texts))
                texts.append(text)
    return texts, places


def _keys(circuit: Circuit, places: list[int]) -> list[Key]:
    """Of each node; a node that has the key of another in its own circuit gets a number, and is matched by that too."""
    seen: dict[Key, int] = {}
    keys = []
    for node in circuit.nodes:
        place = places[node.position] if node.position < len(places) else len(places)
        if node.kind == "target":
            key: Key = ("target", node.feature, node.label if node.probability is None else "", place)
        elif node.kind == "token":
            key = ("token", place)
        else:
            key = (node.kind, node.feature_type, node.layer, node.feature, place)
        times = seen[key] = seen.get(key, 0) + 1
        keys.append((times, *key))
    return keys


def _place(key: Key) -> int:
    place = key[-1]
    assert isinstance(place, int)
    return place


def _order(pair: list[CircuitNode | None], key: Key) -> tuple[int, int, int, int]:
    """Features, errors, tokens, targets; by layer and place."""
    node = pair[1] or pair[0]
    assert node is not None
    kinds = ("feature", "error", "other", "token", "target")
    return kinds.index(node.kind), node.layer or 0, _place(key), node.feature or 0


def _node(pair: list[CircuitNode | None], place: int, n_layers: int) -> CircuitNode:
    first, second = pair
    node = second or first
    assert node is not None
    influences = [each.influence for each in pair if each is not None and each.influence is not None]
    extra: dict[str, Any] = {
        "difference": "both" if first and second else "gained" if second else "lost",
        "first": _values(first),
        "second": _values(second),
    }
    layer = n_layers + 1 if node.kind == "target" else node.layer
    named = "E" if layer is None else layer
    number = -1 if node.feature is None else node.feature
    return dataclasses.replace(
        node,
        id=f"{named}_{number}_{place}",
        layer=layer,
        position=place,
        influence=min(influences, default=None),
        extra=extra,
    )


def _values(node: CircuitNode | None) -> dict[str, Any] | None:
    if node is None:
        return None
    return {"activation": node.activation, "influence": node.influence, "probability": node.probability}


def _links(
    circuits: tuple[Circuit, Circuit], keys: list[list[Key]], number: dict[Key, int]
) -> dict[tuple[int, int], list[float]]:
    """Weights in the first and in the second, 0 where there is no such link, by source and target."""
    found: dict[tuple[int, int], list[float]] = {}
    for side, (circuit, named) in enumerate(zip(circuits, keys, strict=True)):
        for source, target, weight in zip(
            circuit.sources.tolist(), circuit.targets.tolist(), circuit.weights.tolist(), strict=True
        ):
            found.setdefault((number[named[source]], number[named[target]]), [0.0, 0.0])[side] += weight
    return found
