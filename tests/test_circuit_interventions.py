"""Edits of nodes: what a graph predicts of them, held against the frozen model and the model itself by plain hooks."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from frozen import Frozen
from gemlens.errors import InputError
from gemlens.records.intervention import Edit
from gemlens.scope.load import load_transcoder
from gemlens.study.circuit.effects import predicted, total_effects
from gemlens.study.circuit.intervene import intervene, verify
from gemlens.study.circuit.targets import difference, feature, salient, tokens
from gemlens.study.circuit.trace import circuit
from tiny import random_clt, random_transcoders, tiny_gemma

PROMPT = "the hen and the inn"
SETTINGS = {
    "gemma3": ({}, lambda model: random_transcoders(model, 12)),
    "gemma2": ({"kind": "gemma2"}, lambda model: random_transcoders(model, 12, reads="mlp_in_normalized", skip=False)),
    "CLT": ({}, lambda model: random_clt(model, 8)),
}


@pytest.fixture(scope="module", params=SETTINGS)
def scene(request):
    config, make = SETTINGS[request.param]
    model = tiny_gemma(**config)
    model.module.double()
    made = make(model)
    transcoders = [each.double() for each in made] if isinstance(made, list) else made.double()
    graph = circuit(model, transcoders, PROMPT, targets=salient(most=3))
    return model, transcoders, graph, Frozen(model, transcoders, torch.tensor([t.token_id for t in graph.tokens]))


def some_edits(graph, *, scale):
    """Two nodes of two layers, and a third feature at every position."""
    rows = [len(graph.features) // 8, len(graph.features) // 3]
    edits = [Edit(layer, index, position, scale) for layer, position, index in graph.features[rows].tolist()]
    layer, _, index = graph.features[len(graph.features) // 5].tolist()
    return [*edits, Edit(layer, index, None, scale)]


def held_by(graph, edits):
    held = {}
    for edit in edits:
        for (layer, position, index), value in zip(graph.features.tolist(), graph.activations, strict=True):
            if (layer, index) == (edit.layer, edit.feature) and edit.position in (None, position):
                held[layer, position, index] = float(value) * edit.scale
    return held


@pytest.mark.parametrize("scale", [0.0, 2.5])
def test_constrained_is_the_frozen_model_with_features_that_answer(scene, scale):
    model, transcoders, graph, frozen = scene
    edits = some_edits(graph, scale=scale)
    got = intervene(model, transcoders, graph, edits)
    _, final = frozen.run(held=held_by(graph, edits))
    ids = [target.token_id for target in graph.targets]
    expected = (frozen.logits(final) - frozen.logits(frozen.final))[0, -1, ids]
    np.testing.assert_allclose(got.constrained, expected, rtol=1e-4, atol=1e-5)
    assert np.abs(got.constrained).max() > 1e-2
    np.testing.assert_array_equal(got.before, graph.target_values)


@pytest.mark.parametrize("scale", [0.0, 2.5])
def test_free_is_the_model_with_more_or_less_written(scene, scale):
    model, transcoders, graph, frozen = scene
    edits = some_edits(graph, scale=scale)
    got = intervene(model, transcoders, graph, edits)
    added = {layer: torch.zeros_like(out) for layer, out in frozen.out.items()}
    for (layer, position, index), value in held_by(graph, edits).items():
        before = frozen.acts(layer, frozen.x[layer])[position, index]
        for target, rows in frozen.weights[layer]["decoders"].items():
            added[target][position] += (value - before) * rows[index]
    handles = [
        block.post_feedforward_layernorm.register_forward_hook(lambda _m, _i, y, more=added[layer]: y + more)
        for layer, block in enumerate(frozen.blocks)
    ]
    with torch.no_grad():
        final = model.backbone(input_ids=frozen.ids[None], use_cache=False).last_hidden_state
    for handle in handles:
        handle.remove()
    ids = [target.token_id for target in graph.targets]
    expected = (frozen.logits(final) - frozen.logits(frozen.final))[0, -1, ids]
    np.testing.assert_allclose(got.free, expected, rtol=1e-3, atol=1e-4)


def test_of_a_small_edit_the_graph_predicts_the_whole_change(scene):
    """Nothing switches on or off then, so all paths through features are the linear ones."""
    model, transcoders, graph, _ = scene
    edits = some_edits(graph, scale=1 - 1e-6)
    got = intervene(model, transcoders, graph, edits)
    np.testing.assert_allclose(got.predicted, got.constrained, rtol=1e-3, atol=1e-10)
    assert np.abs(got.predicted).max() > 1e-8


def test_total_effects_are_what_ablations_take_away(scene):
    *_, graph, _ = scene
    total = total_effects(graph)
    rows = range(0, len(graph.features), 7)
    several = [[Edit(layer, index, position)] for layer, position, index in graph.features[rows].tolist()]
    np.testing.assert_allclose(predicted(graph, several), -total[:, rows].T, rtol=1e-6, atol=1e-9)


def test_verify_takes_the_nodes_that_matter_most(scene):
    model, transcoders, graph, _ = scene
    found = verify(model, transcoders, graph, 20)
    weights = np.array([target.probability for target in graph.targets])
    sizes = [weights @ np.abs(node.predicted) for node in found.nodes]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == pytest.approx((weights @ np.abs(total_effects(graph))).max())
    one = found.nodes[3]
    alone = intervene(model, transcoders, graph, Edit(one.layer, one.feature, one.position))
    np.testing.assert_allclose(one.constrained, alone.constrained, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(one.free, alone.free, rtol=1e-3, atol=1e-5)
    assert -1 <= found.free_correlation <= found.constrained_correlation <= 1
    assert found.constrained_correlation > 0.8


def test_targets_that_are_not_in_the_graph_are_given_again(scene):
    model, transcoders, _, _ = scene
    wanted = [difference("t", "h"), feature(4, 2, position=5)]
    graph = circuit(model, transcoders, PROMPT, targets=wanted)
    with pytest.raises(InputError, match="give targets="):
        verify(model, transcoders, graph, 2)
    with pytest.raises(InputError, match="not the targets"):
        verify(model, transcoders, graph, 2, targets=tokens("t", "h"))
    again = verify(model, transcoders, graph, 2, targets=wanted)
    pair = circuit(model, transcoders, PROMPT, targets=tokens("t", "h"))
    edit = Edit(again.nodes[0].layer, again.nodes[0].feature, again.nodes[0].position)
    t, h = intervene(model, transcoders, pair, edit).free
    assert again.nodes[0].free[0] == pytest.approx(t - h, rel=1e-3, abs=1e-5)


def test_what_cannot_be_edited_is_refused(scene):
    model, transcoders, graph, _ = scene
    layer, _, index = graph.features[0].tolist()
    for edits, words in (
        ([], "no edit"),
        (Edit(layer, index, 0), "no node at position 0; it is one at"),
        (Edit(layer, 10_000), "no node; layer 0 has others"),
    ):
        with pytest.raises(InputError, match=words):
            intervene(model, transcoders, graph, edits)
    with pytest.raises(InputError, match="at least 1"):
        verify(model, transcoders, graph, 0)
    with pytest.raises(InputError, match="load the graph's own"):
        verify(tiny_gemma(layers=3), random_transcoders(tiny_gemma(layers=3), 12), graph, 1)


def capitals():
    shared = os.environ.get("GEMLENS_SHARED")
    if shared is None:
        pytest.skip("GEMLENS_SHARED names no folder with the given data")
    found = json.loads(Path(shared, "data/eval/country_capital_city.json").read_text("utf-8"))
    return [found["prompt_templates"][1].format(sample["subject"]) for sample in found["samples"][:2]]


def test_country_capitals_go_as_the_graph_predicts(starter):
    """Two of those that tools/verify_circuits.py measures."""
    correlations = [verified(starter, prompt).constrained_correlation for prompt in capitals()]
    assert min(correlations) >= 0.95


def test_a_prompt_of_ours_goes_as_the_graph_predicts(starter):
    assert verified(starter, "The capital of Italy is").constrained_correlation >= 0.95


def verified(starter, prompt):
    transcoders = [load_transcoder("starter", f"transcoder_all/layer_{n}_width_2k_l0_small_affine") for n in range(18)]
    graph = circuit(starter, transcoders, prompt, targets=salient(most=3), max_features=600)
    return verify(starter, transcoders, graph, 10)
