"""Attribution graphs made by hand: one of twelve nodes whose influences a reader can check, and random ones."""

from __future__ import annotations

from typing import Any

import numpy as np

from gemlens.records.analysis import DictionaryInfo, Provenance
from gemlens.records.circuit import Circuit, CircuitNode
from gemlens.records.graph import Graph, GraphTarget, GraphToken

__all__ = ["PROVENANCE", "big_circuit", "dictionary", "random_graph", "twelve"]

PROVENANCE = Provenance(
    gemlens_version="0.1.0",
    torch_version="2.9.0",
    transformers_version="4.57.1",
    model_revision=None,
    dtype="float32",
    device="cpu",
    seed=0,
    temperature=None,
    top_p=None,
    created="2026-01-02T03:04:05Z",
)


def dictionary(layer: int, *, release: str = "starter", neuronpedia: str | None = None) -> DictionaryInfo:
    name = f"layer_{layer}_width_2k_l0_small_affine"
    return DictionaryInfo(
        release, "transcoder_all", name, f"mlp_in.{layer}", layer, 2048, neuronpedia, "google/gemma-3-270m"
    )


def graph_of(features: Any, errors: Any, edges: Any, **changes: Any) -> Graph:
    """A graph over three layers and as many tokens as its columns leave room for."""
    features, errors = np.asarray(features, dtype=np.int32), np.asarray(errors, dtype=np.int32)
    edges = np.asarray(edges, dtype=np.float32)
    n, t = len(features), len(edges) - len(features)
    tokens = edges.shape[1] - n - len(errors)
    texts = ["<bos>", " the", " capital", *" of" * tokens]
    odds = (0.6, 0.2, 0.1)
    made: dict[str, Any] = {
        "prompt": "the capital of",
        "model_id": "starter",
        "tokens": tuple(GraphToken(2 + i, texts[i]) for i in range(tokens)),
        "dictionaries": tuple(map(dictionary, range(3))),
        "n_layers": 3,
        "features": features,
        "activations": np.linspace(1, 2, n, dtype=np.float32),
        "errors": errors,
        "targets": tuple(GraphTarget(f" t{i}", 100 + i, odds[i]) for i in range(min(t, 3))),
        "target_values": edges[n:].sum(1),
        "edges": edges,
        "biases": np.zeros(n + t, dtype=np.float32),
        "pre_activations": edges[:n].sum(1),
        "n_active": n + 3,
        "provenance": PROVENANCE,
        "settings": {"batch": 64},
    }
    return Graph(**{**made, **changes})


def twelve() -> Graph:
    """5 features, 3 errors, 2 tokens, 2 targets; shares are halves and quarters.

    Numbers: features 0 to 4 (layers 0, 0, 1, 1, 2), errors 5 to 7 (layers 0, 1, 2), tokens 8 and 9, targets 10 and 11.
    """
    features = [[0, 0, 7], [0, 1, 3], [1, 1, 2], [1, 1, 9], [2, 1, 5]]
    errors = [[0, 1], [1, 1], [2, 1]]
    edges = np.zeros((7, 10))
    edges[0, 8] = 2.0  # token 0 -> feature 0
    edges[1, [8, 9]] = [1.0, -3.0]
    edges[2, [0, 1]] = [1.0, 1.0]
    edges[3, [5, 9]] = [-1.0, 3.0]
    edges[4, [2, 3, 6, 9]] = [4.0, -2.0, 1.0, 1.0]
    edges[5, [4, 7]] = [3.0, 1.0]  # target 10
    edges[6, [3, 4]] = [-1.0, 1.0]  # target 11
    return graph_of(features, errors, edges)


def random_graph(
    *, layers: int = 5, positions: int = 4, features: int = 60, targets: int = 3, seed: int = 0, density: float = 0.5
) -> Graph:
    """Links only lead up the layers and on to later positions."""
    random = np.random.default_rng(seed)
    places = {(int(random.integers(layers)), int(random.integers(1, positions)), int(random.integers(2048)))
              for _ in range(features)}  # fmt: skip
    nodes = np.array(sorted(places), dtype=np.int32)
    n, m = len(nodes), layers * positions
    errors = np.array([(layer, position) for layer in range(layers) for position in range(positions)], dtype=np.int32)
    layer_of = np.concatenate([nodes[:, 0], errors[:, 0], np.full(positions, -1)])
    place_of = np.concatenate([nodes[:, 1], errors[:, 1], np.arange(positions)])
    edges = random.standard_t(3, (n + targets, n + m + positions)).astype(np.float32)
    edges *= random.random(edges.shape) < density
    edges[:n] *= (layer_of[None] < nodes[:, :1]) & (place_of[None] <= nodes[:, 1:2])
    odds = tuple(float(p) for p in 0.5 * 0.5 ** np.arange(targets))
    return graph_of(
        nodes,
        errors,
        edges,
        n_layers=layers,
        dictionaries=tuple(map(dictionary, range(layers))),
        targets=tuple(GraphTarget(f" t{i}", 100 + i, p) for i, p in enumerate(odds)),
        activations=random.random(n).astype(np.float32) + 0.5,
        n_active=n,
    )


def big_circuit(
    *, nodes: int = 1500, links: int = 30_000, layers: int = 26, positions: int = 40, seed: int = 0
) -> Circuit:
    """As large as a page has to draw smoothly."""
    random = np.random.default_rng(seed)
    made = [
        CircuitNode(f"E_{100 + p}_{p}", "token", "embedding", None, p, 100 + p, influence=1.0) for p in range(positions)
    ]
    made += [
        CircuitNode(
            f"{layers + 1}_{t}_{positions - 1}", "target", "logit", layers + 1, positions - 1, t,
            f'Output " t{t}" (p={0.3 / (t + 1):.3f})', probability=0.3 / (t + 1), first_target=t == 0,
        )
        for t in range(8)
    ]  # fmt: skip
    seen: set[str] = set()
    while len(made) < nodes:
        layer, position, feature = (int(random.integers(top)) for top in (layers, positions, 16384))
        name = f"{layer}_{feature}_{position}"
        if position and name not in seen:
            seen.add(name)
            made.append(
                CircuitNode(
                    name, "feature", "cross layer transcoder", layer, position, feature, f"label {feature % 97}",
                    float(random.random() * 20), float(random.random()),
                )
            )  # fmt: skip
    row = np.array([-1 if node.layer is None else node.layer for node in made])
    place = np.array([node.position for node in made])
    found: set[tuple[int, int]] = set()
    while len(found) < links:
        source, target = random.integers(len(made), size=(2, links))
        good = (row[source] < row[target]) & (place[source] <= place[target])
        found |= set(zip(source[good].tolist(), target[good].tolist(), strict=True))
    ends = np.array(sorted(found)[:links], dtype=np.int32)
    texts = [" word", " the", " of", ",", " a longer word"]
    return Circuit(
        metadata={"slug": "big", "scan": "gemma-2-2b", "prompt": "big", "schema_version": 1,
                  "prompt_tokens": ["<bos>", *(texts[p % 5] for p in range(1, positions))]},
        nodes=tuple(made),
        sources=ends[:, 0].copy(),
        targets=ends[:, 1].copy(),
        weights=random.standard_t(3, len(ends)),
    )  # fmt: skip
