"""Do gemlens and circuit-tracer prune a graph to the same nodes and links, and give it the same scores?

Run in the peers' environment: PYTHONPATH=src:tests:benchmarks PYTHON benchmarks/circuit_prune_equal.py

Random graphs, and with --starter a real one of the starter's, as circuit-tracer keeps it: a square matrix, here in
float64, since float32 sums of many shares decide differently which link is the last one kept.
"""

from __future__ import annotations

import sys
from types import SimpleNamespace

import torch
from circuit_tracer.graph import compute_graph_scores, prune_graph

from gemlens.records.graph import Graph
from gemlens.study.circuit.influence import flow_of, scores
from gemlens.study.circuit.prune import prune_flow
from graph_sample import random_graph

THRESHOLDS = ((0.8, 0.98), (0.5, 0.9), (0.95, 0.8), (0.99, 0.999))


def theirs_of(graph: Graph) -> SimpleNamespace:
    """What circuit-tracer's functions read of a graph."""
    n, t = len(graph.features), len(graph.targets)
    size = graph.edges.shape[1] + t
    matrix = torch.zeros((size, size), dtype=torch.float64)
    matrix[:n, : size - t] = torch.from_numpy(graph.edges[:n]).double()
    matrix[size - t :, : size - t] = torch.from_numpy(graph.edges[n:]).double()
    odds = torch.tensor([target.probability for target in graph.targets], dtype=torch.float64)
    return SimpleNamespace(
        adjacency_matrix=matrix,
        input_tokens=torch.zeros(len(graph.tokens)),
        logit_targets=list(graph.targets),
        selected_features=torch.arange(n),
        logit_probabilities=odds,
        cfg=SimpleNamespace(n_layers=graph.n_layers),
    )


def compare(name: str, graph: Graph) -> bool:
    torch.set_default_dtype(torch.float64)
    theirs, flow = theirs_of(graph), flow_of(graph)
    good = True
    for thresholds in THRESHOLDS:
        nodes, edges, cumulative = prune_graph(theirs, *thresholds)  # type: ignore[arg-type]
        ours = prune_flow(flow, *thresholds)
        links = set(zip(ours.links.targets.tolist(), ours.links.sources.tolist(), strict=True))
        # It keeps links of weight 0 where the threshold lands among them.
        there = set(map(tuple, (edges & (theirs.adjacency_matrix != 0)).nonzero().tolist()))
        inner = ours.kept & (flow.weights == 0)
        gap = float(abs(torch.from_numpy(ours.cumulative) - cumulative)[inner].max()) if inner.any() else 0.0
        other = int((torch.from_numpy(ours.kept) != nodes).sum()), len(links ^ there)
        good &= other[0] == 0 and other[1] <= 2 and gap < 1e-6
        print(
            f"{name} {thresholds}: {int(ours.kept.sum())} nodes, {other[0]} differ; "
            f"{len(links)} links, {other[1]} differ; "
            f"cumulative influence to {gap:.1e}"
        )
    ours, known = scores(flow), compute_graph_scores(theirs)  # type: ignore[arg-type]
    gap = max(abs(a - b) for a, b in zip(ours, known, strict=True))
    print(f"{name}: replacement {ours[0]:.6f}, completeness {ours[1]:.6f}, equal to {gap:.1e}")
    return good and gap < 1e-6


def main() -> int:
    graphs = [(f"random {seed}", random_graph(seed=seed, layers=8, positions=9, features=400)) for seed in range(3)]
    if "--starter" in sys.argv:
        import gemlens
        from circuits import transcoders
        from gemlens.study.circuit.trace import circuit

        torch.set_default_dtype(torch.float32)
        model = gemlens.load_model("starter", device="cpu")
        graphs.append(("starter", circuit(model, transcoders(skip=True), "The capital of France is")))
    good = [compare(name, graph) for name, graph in graphs]
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
