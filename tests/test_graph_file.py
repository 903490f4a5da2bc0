"""Graph files: what is read is written again, old numbering and shared ids are understood, broken files say where."""

from __future__ import annotations

import copy
import dataclasses
import gzip
import json
import os
from pathlib import Path

import numpy as np
import pytest

from gemlens.errors import InputError, NotFoundError
from gemlens.report.graph_file import (
    circuit_from_dict,
    circuit_from_json,
    circuit_to_dict,
    circuit_to_json,
    read_circuit,
)
from gemlens.report.graph_nodes import pair, unpair
from gemlens.report.graph_store import read_graph, write_graph
from gemlens.study.circuit.prune import prune
from graph_sample import random_graph, twelve


def real_path() -> Path:
    shared = os.environ.get("GEMLENS_SHARED")
    if not shared:
        pytest.skip("the real graph is in given data: set GEMLENS_SHARED to its folder")
    return Path(shared) / "data/neuronpedia/gemma-2-2b_clt-hp_dallas.json"


def node(layer, feature, position, /, **changes):
    made = {
        "node_id": f"{layer}_{feature}_{position}", "feature": pair(layer, feature), "layer": str(layer),
        "ctx_idx": position, "feature_type": "cross layer transcoder", "token_prob": 0.0, "is_target_logit": False,
        "run_idx": 0, "reverse_ctx_idx": 0, "jsNodeId": f"{layer}_{feature}-0", "clerp": "", "influence": 0.25,
        "activation": 1.5,
    }  # fmt: skip
    return made | changes


def error(layer, position):
    """As circuit-tracer 0.5.0 writes it."""
    changes = {"feature": -1, "layer": str(layer), "feature_type": "mlp reconstruction error", "activation": None}
    return node(0, layer, position, **changes, jsNodeId=f"{layer}_{position}-0")


def file(nodes, links, **metadata):
    return {
        "metadata": {"slug": "a-graph", "scan": "gemma-2-2b", "prompt": "<bos>a", "prompt_tokens": ["<bos>", "a"],
                     "schema_version": 1} | metadata,
        "qParams": {"pinnedIds": [], "supernodes": [], "linkType": "both", "clickedId": "", "sg_pos": ""},
        "nodes": nodes,
        "links": [{"source": s, "target": t, "weight": w} for s, t, w in links],
    }  # fmt: skip


def logit(layer=4, vocabulary=9, position=1):
    name = f"{layer}_{vocabulary}_{position}"
    return node(
        layer, vocabulary, position, node_id=name, feature=vocabulary, feature_type="logit", token_prob=0.5,
        is_target_logit=True,
        clerp='Output "x" (p=0.500)', influence=None, activation=None, jsNodeId=f"L_{vocabulary}-1",
    )  # fmt: skip


def test_pairing_is_cantors_and_exact():
    assert pair(1, 57794) == 1670217704  # as published
    assert unpair(1670217704) == (1, 57794)
    for layer, feature in [(0, 0), (25, 16383), (61, 262143), (3, 2**40)]:
        assert unpair(pair(layer, feature)) == (layer, feature)
    assert sorted(pair(a, b) for a in range(20) for b in range(20 - a)) == list(range(210))


@pytest.mark.parametrize("make", [twelve, random_graph])
def test_a_circuit_of_ours_comes_back_whole(make):
    circuit = prune(make(), node_threshold=0.9)
    text = circuit_to_json(circuit)
    again = circuit_from_json(text)
    assert circuit_to_json(again) == text
    for field in ("metadata", "nodes", "view", "link_extra"):
        assert getattr(again, field) == getattr(dataclasses.replace(circuit, view=again.view), field), field
    for field in ("sources", "targets", "weights"):
        np.testing.assert_array_equal(getattr(again, field), getattr(circuit, field))
    said = json.loads(text)
    assert len({each["node_id"] for each in said["nodes"]}) == len(said["nodes"])
    assert said["metadata"]["schema_version"] == 1


def test_fields_that_nobody_knows_are_kept():
    graph = file([node(0, 5, 1, mystery=[1, {"a": None}], run_idx=3), logit()], [("0_5_1", "4_9_1", 2)], ours={"x": 1})
    graph["links"][0]["note"] = "strong"
    graph["qk_only_nodes"] = {"q": 1}
    graph["qParams"]["clerps"] = [["0_5_1", "mine"]]
    graph["nodes"].append(node(2, 7, 1, feature_type="lorsa", qk_tracing_results={"top": []}))
    graph["nodes"].append(node(2, 8, 1, feature_type="bias", feature=-1, layer="2"))
    circuit = circuit_from_dict(graph)
    assert circuit_to_dict(circuit) == graph
    assert [each.kind for each in circuit.nodes] == ["feature", "target", "feature", "other"]
    moved = circuit.only(np.array([True, True, False, True]))
    assert circuit_to_dict(moved)["links"] == graph["links"]


def test_features_of_files_without_a_version_are_numbered_anew():
    graph = file([node(3, 15589, 1, feature=3 * 100_000 + 15589), logit()], [("3_15589_1", "4_9_1", 2.0)])
    for version in ("missing", None, 0):
        old = copy.deepcopy(graph)
        old["metadata"]["schema_version"] = version
        if version == "missing":
            del old["metadata"]["schema_version"]
        circuit = circuit_from_dict(old)
        assert circuit.nodes[0].feature == 15589
        written = circuit_to_dict(circuit)
        assert written["metadata"]["schema_version"] == 1
        assert unpair(written["nodes"][0]["feature"]) == (3, 15589)


def test_an_error_that_shares_the_id_of_a_feature_gets_its_own():
    """Error of layer 2 at position 1 and feature 2 of layer 0 there: both ``0_2_1``."""
    nodes = [node(0, 2, 1), node(1, 8, 1), node(3, 4, 1), node(3, 5, 1), error(1, 1), error(2, 1), logit()]
    feature, early, late, last, other, target = "0_2_1", "1_8_1", "3_4_1", "3_5_1", "0_1_1", "4_9_1"
    links = [
        (feature, early, 1.0),  # layer 1 is below the error: the feature
        (feature, late, 2.0), (early, late, 1.0), (other, late, 1.0), (feature, late, 3.0),  # once before, once after
        (other, last, 1.0), (feature, last, 4.0),  # behind another error: the error
        (feature, target, 5.0), (feature, target, 6.0),  # two alike: feature, then error
    ]  # fmt: skip
    circuit = circuit_from_dict(file(nodes, links))
    assert [each.id for each in circuit.nodes].count("0_2_1") == 1
    assert circuit.nodes[5].id == "2_-1_1"
    by_weight = {w: circuit.nodes[s].kind for s, w in zip(circuit.sources, circuit.weights, strict=True) if s in (0, 5)}
    assert by_weight == {1: "feature", 2: "feature", 3: "error", 4: "error", 5: "feature", 6: "error"}
    assert "1 error nodes had the id of a feature" in circuit.warnings[0]
    written = circuit_to_dict(circuit)
    assert len({each["node_id"] for each in written["nodes"]}) == 7
    assert circuit_from_dict(written).warnings == ()


def test_the_real_graph_loses_nothing_and_prunes():
    path = real_path()
    raw = json.loads(path.read_text("utf-8"))
    circuit = read_circuit(path)
    assert (len(circuit.nodes), len(circuit.weights)) == (322, 3506)
    assert circuit_to_dict(circuit) == raw
    assert json.loads(circuit_to_json(circuit)) == raw
    assert circuit.n_layers == 26
    features = [each for each in circuit.nodes if each.kind == "feature"]
    assert all(each.id == f"{each.layer}_{each.feature}_{each.position}" for each in features)
    smaller = prune(circuit, node_threshold=0.6, edge_threshold=0.9)
    assert 50 < len(smaller.nodes) < 322
    named = {each["node_id"]: each for each in raw["nodes"]}
    assert all(named[each["node_id"]] == each for each in circuit_to_dict(smaller)["nodes"])
    assert {tuple(link.items()) for link in circuit_to_dict(smaller)["links"]} <= {
        tuple(link.items()) for link in raw["links"]
    }


def changed(path, value):
    """The good file with one place overwritten; ``...`` takes it out."""
    graph = file([node(0, 5, 1), logit()], [("0_5_1", "4_9_1", 2.0)])
    at = graph
    for step in path[:-1]:
        at = at[step]
    if value is ...:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return graph


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (["nodes"], ..., "no 'nodes'"),
        (["links"], {}, "links is {}"),
        (["metadata"], 3, "metadata is 3"),
        (["metadata", "prompt_tokens"], ..., "metadata has no 'prompt_tokens'"),
        (["metadata", "prompt_tokens", 1], 7, r"metadata.prompt_tokens\[1\] is 7"),
        (["metadata", "schema_version"], 2, "metadata.schema_version is 2"),
        (["metadata", "slug"], [], r"metadata.slug is \[\]"),
        (["nodes", 0], "x", r"nodes\[0\] is 'x'"),
        (["nodes", 1, "node_id"], ..., r"nodes\[1\] has no 'node_id'"),
        (["nodes", 0, "node_id"], 5, r"nodes\[0\].node_id is 5"),
        (["nodes", 0, "ctx_idx"], "1", r"nodes\[0\].ctx_idx is '1'"),
        (["nodes", 0, "ctx_idx"], -1, r"nodes\[0\].ctx_idx is -1"),
        (["nodes", 0, "ctx_idx"], True, r"nodes\[0\].ctx_idx is True"),
        (["nodes", 0, "layer"], "top", r"nodes\[0\].layer is 'top'"),
        (["nodes", 0, "layer"], None, r"nodes\[0\].layer is None"),
        (["nodes", 0, "feature"], ..., r"nodes\[0\] has no 'feature'"),
        (["nodes", 0, "feature"], 1.5, r"nodes\[0\].feature is 1.5"),
        (["nodes", 0, "activation"], "much", r"nodes\[0\].activation is 'much'"),
        (["nodes", 0, "influence"], [], r"nodes\[0\].influence is \[\]"),
        (["nodes", 0, "clerp"], 3, r"nodes\[0\].clerp is 3"),
        (["nodes", 0, "node_id"], "4_9_1", r"2 have the node_id '4_9_1'"),
        (["links", 0, "source"], "0_5_2", r"links\[0\].source is '0_5_2', .* did you mean 0_5_1"),
        (["links", 0, "target"], None, r"links\[0\].target is None"),
        (["links", 0, "weight"], ..., r"links\[0\] has no 'weight'"),
        (["links", 0, "weight"], None, r"links\[0\].weight is null"),
        (["links", 0, "weight"], "2", r"links\[0\].weight is '2'"),
        (["qParams"], [], r"qParams is \[\]"),
        (["qParams", "pinnedIds"], [1], r"qParams.pinnedIds\[0\] is 1"),
        (["qParams", "supernodes"], ["x"], r"qParams.supernodes\[0\] is 'x'"),
    ],
)  # fmt: skip
def test_a_broken_file_names_the_field(path, value, said):
    with pytest.raises(InputError, match=said) as raised:
        circuit_from_dict(changed(path, value))
    assert "\n" not in str(raised.value)


def test_files_that_are_no_graphs(tmp_path):
    def read(content):
        path = tmp_path / "x.json"
        path.write_bytes(content)
        return read_circuit(path)

    for content, said in [
        (b"", "line 1 is not JSON"), (b"\xff\xfe{}", "not UTF-8"), (b"[]", "no JSON object"), (b"{}", "no 'metadata'"),
        (b'{"a": NaN}', "NaN"), (b"[" * 100_000, "not a graph file"), (b"\x1f\x8bxx", "packed, and damaged"),
        (b'{"metadata": 1' + b"0" * 5000 + b"}", "not a graph file"), (b'{"nodes": [], "a\\n": 1}', "no 'metadata'"),
    ]:  # fmt: skip
        with pytest.raises(InputError, match=said) as raised:
            read(content)
        assert "x.json" in str(raised.value)
        assert len(str(raised.value)) < 300
    with pytest.raises(NotFoundError, match="no file"):
        read_circuit(tmp_path / "none.json")
    with pytest.raises(InputError, match="is a folder"):
        read_circuit(tmp_path)


def test_packed_files_are_read_and_reading_is_reported(tmp_path):
    text = circuit_to_json(prune(twelve(), node_threshold=1)).encode()
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(text))
    (tmp_path / "b.json").write_bytes(text)
    steps = []
    packed = read_circuit(tmp_path / "a.json.gz", report=lambda *step: steps.append(step))
    assert circuit_to_dict(packed) == circuit_to_dict(read_circuit(tmp_path / "b.json"))
    assert steps
    assert steps[-1][0] <= steps[-1][1]


def test_what_json_cannot_say_becomes_null():
    circuit = prune(twelve(), node_threshold=1)
    odd = dataclasses.replace(circuit.nodes[0], activation=float("nan"), label="a\ud800b\u2028")
    text = circuit_to_json(dataclasses.replace(circuit, nodes=(odd, *circuit.nodes[1:])))
    first = json.loads(text.encode())["nodes"][0]
    assert (first["activation"], first["clerp"]) == (None, "a\ud800b\u2028")


def test_a_whole_graph_comes_back_from_its_own_file(tmp_path):
    graph = random_graph()
    path = tmp_path / "graph.safetensors"
    write_graph(graph, path)
    again = read_graph(path)
    for field in dataclasses.fields(graph):
        a, b = getattr(again, field.name), getattr(graph, field.name)
        if isinstance(b, np.ndarray):
            np.testing.assert_array_equal(a, b)
            assert a.dtype == b.dtype
        else:
            assert a == b, field.name
    assert isinstance(again.edges, np.memmap)
    assert circuit_to_json(prune(again)) == circuit_to_json(prune(graph))
    from safetensors import safe_open

    with safe_open(path, "np") as others:  # the format is the known one
        np.testing.assert_array_equal(others.get_tensor("edges"), graph.edges)
    everything = path.read_bytes()
    path.write_bytes(everything[:-8])
    with pytest.raises(InputError, match=r"graph.safetensors: field 'edges' .* cut off"):
        read_graph(path)
    for content, said in [
        (b"", "no safetensors"),
        (b"\x02" + b"\0" * 7 + b"{}", "no field 'gemlens'"),
        (b"\xff" * 64, "cut off"),
    ]:
        path.write_bytes(content)
        with pytest.raises(InputError, match=said):
            read_graph(path)
    path.write_bytes(everything.replace(b"gemlens-graph-1", b"gemlens-graph-9"))
    with pytest.raises(InputError, match="field 'kind'"):
        read_graph(path)
    path.write_bytes(everything.replace(b"n_active", b"n_passive"[:8]))
    with pytest.raises(InputError, match="field 'n_active'"):
        read_graph(path)
    with pytest.raises(NotFoundError):
        read_graph(tmp_path / "none")
