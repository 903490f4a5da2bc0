"""Differences of two circuits, groups to suggest, evidence of dictionaries, and what notebooks show."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
import torch

from gemlens.errors import NotFoundError
from gemlens.lm.gemma import logits
from gemlens.records.circuit import CircuitView, NodeEvidence
from gemlens.records.graph import GraphToken
from gemlens.report.circuit_changes import changes_of, sides
from gemlens.report.circuit_notebook import circuit_view, graph_view
from gemlens.report.graph_file import circuit_from_json, circuit_to_json
from gemlens.study.circuit.difference import difference
from gemlens.study.circuit.evidence import evidence_of
from gemlens.study.circuit.groups import suggest_groups
from gemlens.study.circuit.prune import prune
from gemlens.study.circuit.trace import circuit
from graph_sample import random_graph, twelve
from report_sample import PAYLOADS
from tiny import random_clt, random_transcoders, tiny_gemma


def whole(graph):
    return prune(graph, node_threshold=1, edge_threshold=1)


def retold(circuit, texts, places):
    """The same circuit of another prompt: its positions become ``places``."""
    nodes = tuple(dataclasses.replace(node, position=places[node.position]) for node in circuit.nodes)
    return dataclasses.replace(circuit, nodes=nodes, metadata={**circuit.metadata, "prompt_tokens": texts})


def test_a_circuit_and_itself_differ_in_nothing():
    circuit = whole(twelve())
    both = difference(circuit, circuit)
    assert [node.extra["difference"] for node in both.nodes] == ["both"] * 12
    assert both.tokens == circuit.tokens
    assert not both.weights.any()
    assert all(not each for each in changes_of(both))


def test_positions_are_aligned_as_texts_are():
    circuit = whole(random_graph())  # <bos> the capital of: four tokens
    texts = list(circuit.tokens)
    later = retold(circuit, [texts[0], " Look:", *texts[1:]], [0, 2, 3, 4])
    both = difference(circuit, later)
    assert both.tokens == (texts[0], " Look:", *texts[1:])
    assert {node.extra["difference"] for node in both.nodes} == {"both"}
    other = retold(circuit, [texts[0], " a", *texts[2:]], [0, 1, 2, 3])
    both = difference(circuit, other)
    assert both.tokens[1] == " the | a"
    assert {node.extra["difference"] for node in both.nodes} == {"both"}


def test_gained_lost_and_changed():
    first = whole(twelve())
    kept = np.ones(12, dtype=bool)
    kept[first.number("1_2_1")] = False
    second = first.only(kept)
    second = dataclasses.replace(
        second,
        nodes=tuple(dataclasses.replace(node, activation=5.0) if node.id == "2_5_1" else node for node in second.nodes),
        weights=second.weights * 2,
    )
    both = difference(first, second)
    found = {node.id: node.extra["difference"] for node in both.nodes}
    assert found.pop("1_2_1") == "lost"
    assert set(found.values()) == {"both"}
    assert difference(second, first).nodes[both.number("1_2_1")].extra["difference"] == "gained"
    ends = {
        (both.nodes[s].id, both.nodes[t].id): k for k, (s, t) in enumerate(zip(both.sources, both.targets, strict=True))
    }
    gone = ends["1_2_1", "2_5_1"]
    assert (both.weights[gone], both.link_extra[gone]) == (-4, {"first": 4.0, "second": 0.0})
    stayed = ends["2_5_1", "4_100_1"]
    assert (both.weights[stayed], both.link_extra[stayed]) == (3, {"first": 3.0, "second": 6.0})
    changes = changes_of(both)
    assert [both.nodes[k].id for k, _ in changes.lost] == ["1_2_1"]
    assert [(both.nodes[k].id, said) for k, said in changes.changed] == [("2_5_1", "2.00 → 5.00")]
    assert sides(both) == ("<bos> the", "<bos> the")
    again = circuit_from_json(circuit_to_json(both))
    assert changes_of(again) == changes


def test_features_that_are_alike_are_grouped_and_the_reason_is_said():
    circuit = whole(random_graph(features=30))
    features = [k for k, node in enumerate(circuit.nodes) if node.kind == "feature"]
    nodes = list(circuit.nodes)
    same, twin = features[0], features[1]
    nodes[twin] = dataclasses.replace(nodes[twin], layer=nodes[same].layer, feature=nodes[same].feature)
    circuit = dataclasses.replace(circuit, nodes=tuple(nodes))
    random = np.random.default_rng(0)
    known = {
        (nodes[k].layer, nodes[k].feature): NodeEvidence(
            f"thing {chr(97 + k)}{chr(97 + k)}x", decoder=random.normal(size=64)
        )
        for k in features
    }
    like = [features[5], features[9]]
    direction = random.normal(size=64)
    for k in like:
        key = (nodes[k].layer, nodes[k].feature)
        known[key] = NodeEvidence("days of the week", decoder=direction + 0.1 * random.normal(size=64))
    groups = {frozenset(group.nodes): group for group in suggest_groups(circuit, known)}
    assert groups[frozenset([same, twin])].reason == "one feature at 2 positions"
    week = groups[frozenset(like)]
    assert week.label == "days week"
    assert re.match(r"their decoders point the same way \(cosine 0\.9\d\); they share days, week", week.reason)
    assert len(groups) == 2  # nothing else is alike
    assert suggest_groups(circuit.subgraph([circuit.nodes[same].id])) == []


@pytest.mark.parametrize("kind", ["transcoders", "clt"])
def test_top_tokens_are_what_the_head_makes_of_the_decoder(kind):
    model = tiny_gemma()
    transcoders = random_transcoders(model) if kind == "transcoders" else random_clt(model)
    pruned = prune(circuit(model, transcoders, "the cat sat"))
    found = evidence_of(model, transcoders, pruned, labels={(0, 0): "first"})
    features = {(node.layer, node.feature) for node in pruned.nodes if node.kind == "feature"}
    assert set(found) == features
    (layer, feature), evidence = next((key, each) for key, each in found.items() if key[0] == 3)
    if kind == "transcoders":
        row = transcoders[layer].decoder.rows(torch.tensor([feature]))[0]
    else:
        part = transcoders.layer(transcoders.reads[layer])
        row = sum(part.decoder.rows(torch.tensor([feature * part.outputs + k]))[0] for k in range(part.outputs))
    np.testing.assert_allclose(evidence.decoder, row.numpy(), rtol=1e-5)
    # A large state along the row, through the model's own norm and head: the same order, whatever the norm divides by.
    scores = logits(model, 100 * row)
    if model.config.final_logit_softcapping is None:
        best = scores.topk(3).indices.tolist()
        from gemlens.lm.text import texts

        assert [text for text, _ in evidence.top_tokens[:3]] == [texts(model, [token])[0] for token in best]
    values = [value for _, value in evidence.top_tokens]
    assert values == sorted(values, reverse=True)


def test_graphs_and_circuits_show_themselves_in_a_notebook():
    graph = twelve()
    html = graph._repr_html_()
    assert html == graph_view(graph)
    assert html.index("2/5 at ·the #1") < html.index("error 2 at ·the #1")
    pruned = whole(graph)
    html = pruned._repr_html_()
    assert html.count("<circle") == 8
    assert html.count("<rect") == 4
    assert html.count("<path") == len(pruned.weights)
    assert "<script" not in html
    assert "style sheet" not in html


def test_text_in_a_notebook_is_never_markup():
    for evil in PAYLOADS:
        graph = dataclasses.replace(
            twelve(), prompt=evil, warnings=(evil,), model_id=evil, tokens=(GraphToken(2, evil), GraphToken(3, evil))
        )
        pruned = whole(graph)
        nodes = tuple(dataclasses.replace(node, label=evil) for node in pruned.nodes)
        for html in (graph_view(graph), circuit_view(dataclasses.replace(pruned, nodes=nodes))):
            assert "<script" not in html.lower()
            assert "<img" not in html.lower()
            html.encode()


def test_the_subgraph_of_a_graph_is_that_of_its_circuit():
    graph = twelve()
    pins = ["4_100_1", "1_2_1", "2_5_1", "E_3_1", "2_-1_1"]
    part, expected = graph.subgraph(pins), whole(graph).subgraph(pins)
    assert [node.id for node in part.nodes] == [node.id for node in expected.nodes]
    links = [
        sorted(zip(c.sources.tolist(), c.targets.tolist(), c.weights.tolist(), strict=True)) for c in (part, expected)
    ]
    assert links[0] == links[1]
    assert part.view == CircuitView(pinned=tuple(pins))
    with pytest.raises(NotFoundError, match=r"no node '9_9_9' in this graph of 12 nodes"):
        graph.subgraph(["9_9_9"])
