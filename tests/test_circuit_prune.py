"""Influence, pruning, scores and paths: by hand on twelve nodes, by plain linear algebra on random graphs."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from gemlens.errors import InputError, NotFoundError
from gemlens.records.graph import GraphTarget
from gemlens.study.circuit.influence import ERROR, TOKEN, flow_of, influence, scores
from gemlens.study.circuit.paths import strongest_paths
from gemlens.study.circuit.prune import _cutoff, prune, prune_flow
from graph_sample import random_graph, twelve


def square(graph):
    """The graph as circuit-tracer keeps it: [nodes, nodes], row = target, in float64."""
    n, t = len(graph.features), len(graph.targets)
    size = graph.edges.shape[1] + t
    matrix = np.zeros((size, size))
    matrix[:n, : size - t], matrix[size - t :, : size - t] = graph.edges[:n], graph.edges[n:]
    weights = np.zeros(size)
    weights[size - t :] = [target.probability for target in graph.targets]
    return matrix, weights


def by_inverse(matrix, weights):
    """w ((I - A)^-1 - I)"""
    sizes = np.abs(matrix)
    shares = sizes / np.maximum(sizes.sum(1, keepdims=True), 1e-300)
    return weights @ (np.linalg.inv(np.eye(len(matrix)) - shares) - np.eye(len(matrix))), shares


def test_influence_of_twelve_nodes_by_hand():
    graph = twelve()
    found = influence(flow_of(graph))
    f4 = 0.6 * 0.75 + 0.2 * 0.5  # of target 10, of target 11
    f3 = 0.2 * 0.5 + f4 * 0.25
    f2 = f4 * 0.5
    f1, f0 = f2 * 0.5, f2 * 0.5
    errors = [f3 * 0.25, f4 * 0.125, 0.6 * 0.25]
    tokens = [f0 + f1 * 0.25, f1 * 0.75 + f3 * 0.75 + f4 * 0.125]
    np.testing.assert_allclose(found, [f0, f1, f2, f3, f4, *errors, *tokens, 0, 0], rtol=1e-12)
    got = scores(flow_of(graph))
    assert got.replacement == pytest.approx(sum(tokens) / (sum(tokens) + sum(errors)))
    # 0.8 enters the targets in all; whatever influence does not stop at an error stops at a token.
    assert sum(tokens) + sum(errors) == pytest.approx(0.8)
    whole = found.sum() + 0.8
    assert got.completeness == pytest.approx(1 - sum(errors) / whole)


@pytest.mark.parametrize("seed", range(3))
def test_one_pass_from_the_targets_is_the_sum_over_all_ways(seed):
    graph = random_graph(seed=seed)
    expected, shares = by_inverse(*square(graph))
    found = influence(flow_of(graph))
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-15)
    flow = flow_of(graph)
    tokens, errors = expected[flow.kinds == TOKEN].sum(), expected[flow.kinds == ERROR].sum()
    reach = expected + flow.weights
    complete = ((1 - shares[:, flow.kinds == ERROR].sum(1)) * reach).sum() / reach.sum()
    np.testing.assert_allclose(scores(flow), [tokens / (tokens + errors), complete], rtol=1e-9)


def test_targets_without_probabilities_count_the_same():
    graph = twelve()
    targets = (graph.targets[0], GraphTarget("a - b", None, None))
    found = influence(flow_of(dataclasses.replace(graph, targets=targets)))
    assert found[4] == pytest.approx(0.5 * 0.75 + 0.5 * 0.5)


def test_cutoff_is_that_of_sorting_everything():
    random = np.random.default_rng(0)
    scored = (random.random(5000) ** 8).astype(np.float32)
    scored[::7] = 0
    scored[5:50] = scored[5]  # ties
    ordered = np.sort(scored)[::-1].astype(np.float64)
    for share in (0, 0.1, 0.5, 0.8, 0.98, 0.9999):
        index = np.searchsorted(np.cumsum(ordered), share * ordered.sum())
        assert _cutoff(lambda: iter(np.array_split(scored, 7)), share) == np.float32(ordered[index])
    assert _cutoff(lambda: iter([scored]), 1) == 0
    assert _cutoff(lambda: iter([np.zeros(4, np.float32)]), 0.5) == np.inf


def slow_prune(graph, node_threshold, edge_threshold):
    """The three steps on a square matrix, as the paper's appendix has them."""
    matrix, weights = square(graph)
    n, t, tokens = len(graph.features), len(graph.targets), len(graph.tokens)
    found, _ = by_inverse(matrix, weights)

    def least(values, share):
        ordered = np.sort(values)[::-1]
        return ordered[min(np.searchsorted(np.cumsum(ordered), share * ordered.sum()), len(ordered) - 1)]

    kept = found >= least(found, node_threshold)
    kept[-t - tokens :] = True
    inner = matrix * kept[:, None] * kept[None]
    again, shares = by_inverse(inner, weights)
    link_scores = shares * (again + weights)[:, None]
    edges = (link_scores >= least(link_scores.ravel(), edge_threshold)) & (inner != 0)
    free = len(matrix) - t - tokens
    while True:
        before = kept.copy()
        kept[:free] &= edges[:, :free].any(0)
        kept[:n] &= edges[:n].any(1)
        edges &= kept[:, None] & kept[None]
        if np.array_equal(before, kept):
            return kept, edges


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("node_threshold", "edge_threshold"), [(0.8, 0.98), (0.5, 0.6), (0.95, 0.9), (0.3, 0.999)])
def test_pruning_keeps_what_the_plain_square_matrix_keeps(node_threshold, edge_threshold, seed):
    graph = random_graph(seed=seed)
    kept, edges = slow_prune(graph, node_threshold, edge_threshold)
    pruned = prune_flow(flow_of(graph), node_threshold, edge_threshold)
    np.testing.assert_array_equal(pruned.kept, kept)
    assert set(zip(pruned.links.targets.tolist(), pruned.links.sources.tolist(), strict=True)) == set(
        map(tuple, np.argwhere(edges).tolist())
    )
    matrix, _ = square(graph)
    np.testing.assert_array_equal(pruned.links.weights, matrix[pruned.links.targets, pruned.links.sources])


def test_everything_and_next_to_nothing():
    graph = random_graph()
    whole = prune(graph, node_threshold=1, edge_threshold=1)
    nodes = len(whole.nodes)
    # What leads nowhere goes even then; every link that is not zero between the others stays.
    kept, edges = slow_prune(graph, 1, 1)
    assert (nodes, len(whole.weights)) == (kept.sum(), edges.sum())
    least = prune(graph, node_threshold=0, edge_threshold=0)
    kinds = [node.kind for node in least.nodes]
    assert kinds.count("token") == 4
    assert kinds.count("target") == 3
    assert kinds.count("feature") <= 1
    for wrong in (-0.1, 1.2, float("nan")):
        with pytest.raises(InputError, match=r"--node-threshold .* from 0 to 1"):
            prune(graph, node_threshold=wrong)
        with pytest.raises(InputError, match="--edge-threshold"):
            prune(graph, edge_threshold=wrong)


def test_nodes_of_a_circuit_say_what_they_are():
    circuit = prune(twelve(), node_threshold=1, edge_threshold=1)
    assert [node.id for node in circuit.nodes] == [
        "0_7_0", "0_3_1", "1_2_1", "1_9_1", "2_5_1", "0_-1_1", "1_-1_1", "2_-1_1", "E_2_0", "E_3_1",
        "4_100_1", "4_101_1",
    ]  # fmt: skip
    assert circuit.n_layers == 3
    assert circuit.tokens == ("<bos>", " the")
    influences = [node.influence for node in circuit.nodes]
    assert influences[10:] == [None, None]
    order = np.argsort(-influence(flow_of(twelve()))[:10], kind="stable")
    assert sorted(range(10), key=lambda index: influences[index]) == order.tolist()
    assert max(influences[:10]) == pytest.approx(1)
    feature, target = circuit.nodes[4], circuit.nodes[10]
    assert feature.activation == 2
    assert feature.extra["input_total"] == 8
    assert (target.label, target.probability, target.first_target) == ('Output " t0" (p=0.600)', 0.6, True)
    assert circuit.metadata["gemlens"]["completeness_score"] == scores(flow_of(twelve())).completeness
    assert (circuit.metadata["scan"], circuit.metadata["slug"]) == ("gemma-3-270m", "the-capital-of")


def test_pruning_a_circuit_goes_by_its_own_influences():
    whole = prune(random_graph(), node_threshold=1, edge_threshold=1)
    half = prune(whole, node_threshold=0.5, edge_threshold=1)
    inner = [node for node in half.nodes if node.kind in ("feature", "error")]
    assert inner
    assert all(node.influence <= 0.5 for node in inner)
    assert {node.id: node.influence for node in half.nodes}.items() <= {n.id: n.influence for n in whole.nodes}.items()
    bare = dataclasses.replace(whole, nodes=tuple(dataclasses.replace(node, influence=None) for node in whole.nodes))
    again = prune(bare, node_threshold=0.8)
    assert all((node.influence is None) == (node.kind == "target") for node in again.nodes)
    assert 0 < len(again.nodes) < len(whole.nodes)


def test_links_in_a_ring_are_refused():
    circuit = prune(twelve(), node_threshold=1, edge_threshold=1)
    back = dataclasses.replace(
        circuit,
        sources=np.append(circuit.sources, circuit.number("2_5_1")).astype(np.int32),
        targets=np.append(circuit.targets, circuit.number("1_2_1")).astype(np.int32),
        weights=np.append(circuit.weights, 1.0),
    )
    with pytest.raises(InputError, match=r"ring at node .* 'links'"):
        prune(back)


def test_a_subgraph_holds_the_pins_and_the_links_among_them():
    circuit = prune(twelve(), node_threshold=1, edge_threshold=1)
    pins = ["2_5_1", "4_100_1", "1_2_1"]
    part = circuit.subgraph(pins)
    assert [node.id for node in part.nodes] == ["1_2_1", "2_5_1", "4_100_1"]
    assert part.view.pinned == tuple(pins)
    links = [
        (part.nodes[s].id, part.nodes[t].id, w)
        for s, t, w in zip(part.sources, part.targets, part.weights, strict=True)
    ]
    assert links == [("1_2_1", "2_5_1", 4), ("2_5_1", "4_100_1", 3)]
    assert part.subgraph().nodes == part.nodes
    with pytest.raises(NotFoundError, match=r"no node '2_5_2' .* did you mean 2_5_1"):
        circuit.subgraph(["2_5_2"])


def every_path(circuit, target):
    """All ways by recursion: share and nodes."""
    into = {}
    for s, t, w in zip(circuit.sources.tolist(), circuit.targets.tolist(), circuit.weights.tolist(), strict=True):
        into.setdefault(t, []).append((s, w))

    def ways(node):
        if node not in into:
            return [(1.0, (node,))]
        whole = sum(abs(weight) for _, weight in into[node])
        return [
            (share * weight / whole, (*nodes, node)) for source, weight in into[node] for share, nodes in ways(source)
        ]

    return ways(target)


@pytest.mark.parametrize("least", [0, 2])
def test_strongest_paths_are_the_largest_of_all(least):
    circuit = prune(random_graph(features=25, density=0.4), node_threshold=1, edge_threshold=1)
    target = circuit.number("6_101_3")
    known = every_path(circuit, target)
    assert sum(abs(share) for share, _ in known) == pytest.approx(1)
    features = [sum(circuit.nodes[node].kind == "feature" for node in nodes) for _, nodes in known]
    long = [way for way, passed in zip(known, features, strict=True) if passed >= least]
    expected = sorted(long, key=lambda way: -abs(way[0]))[:8]
    found = strongest_paths(circuit, 8, target=target, least=least)
    assert [path.nodes for path in found] == [nodes for _, nodes in expected]
    np.testing.assert_allclose([path.share for path in found], [share for share, _ in expected])


def test_paths_end_at_the_first_target_where_none_is_named():
    circuit = prune(twelve(), node_threshold=1, edge_threshold=1)
    first = strongest_paths(circuit, 1)[0]
    # token 1 -> feature 3 -> feature 4 -> target 10: 3/4, 2/8 negative, 3/4; but error 7 -> target 10 is 1/4.
    assert [circuit.nodes[node].id for node in first.nodes] == ["2_-1_1", "4_100_1"]
    assert first.share == 0.25
    second = strongest_paths(circuit, 3, least=1)[0]
    assert (second.share, circuit.nodes[second.nodes[0]].id) == (pytest.approx(0.75 * 0.5 * 0.5), "E_2_0")
    with pytest.raises(InputError, match="0 paths"):
        strongest_paths(circuit, 0)
    with pytest.raises(InputError, match="no targets"):
        strongest_paths(circuit.subgraph(["2_5_1"]))


def test_links_of_a_graph_come_from_the_targets_down():
    graph = random_graph()
    layers = np.concatenate([graph.features[:, 0], np.full(len(graph.errors) + len(graph.tokens), -1), np.full(3, 99)])
    seen = [layers[links.targets] for links in flow_of(graph).chunks()]
    assert all(len(set(each.tolist())) == 1 for each in seen)
    assert [each[0] for each in seen] == sorted((each[0] for each in seen), reverse=True)
    for a, b in itertools.pairwise(seen):
        assert a[0] > b[0]
