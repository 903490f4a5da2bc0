"""Attribution graphs, held against the frozen model by plain hooks (``frozen.py``), in float64 on tiny random Gemmas.

An edge is what its target changes by when the source is taken twice, all else frozen; the edges of a row and its bias
add up to the target's own value. How the sweep is cut into pieces, and how many features are nodes, changes nothing.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from frozen import Frozen
from gemlens.errors import InputError, MismatchError
from gemlens.study.circuit import sweep as sweeping
from gemlens.study.circuit import trace
from gemlens.study.circuit.targets import difference, direction, feature, salient, tokens
from gemlens.study.circuit.trace import circuit
from tiny import LAYERS, random_clt, random_sae, random_transcoders, tiny_gemma

PROMPT = "the hen and"
GQA = {"num_attention_heads": 4, "num_key_value_heads": 2}
SETTINGS = {
    "gemma3": ({}, lambda model: random_transcoders(model, 12)),
    "gemma3, no skip, two key heads": (GQA, lambda model: random_transcoders(model, 12, skip=False)),
    "gemma3, CLT": ({}, lambda model: random_clt(model, 10)),
    "gemma2, inside the norm": (
        {"kind": "gemma2"},
        lambda model: random_transcoders(model, 12, reads="mlp_in_normalized", skip=False),
    ),
    "gemma2, CLT, two key heads": ({"kind": "gemma2"} | GQA, lambda model: random_clt(model, 10, skip=False)),
    "multimodal": ({"kind": "multimodal"}, lambda model: random_transcoders(model, 12)),
}


def doubles(**config):
    model = tiny_gemma(**config)
    model.module.double()
    return model


def set_of(make, model):
    made = make(model)
    return [each.double() for each in made] if isinstance(made, list) else made.double()


@pytest.fixture(scope="module", params=SETTINGS, ids=lambda name: name.replace(", ", "-").replace(" ", "-"))
def scene(request):
    config, make = SETTINGS[request.param]
    model = doubles(**config)
    transcoders = set_of(make, model)
    graph = circuit(model, transcoders, PROMPT, targets=[salient(most=4), difference("t", "h")])
    return model, transcoders, graph, Frozen(model, transcoders, torch.tensor([t.token_id for t in graph.tokens]))


def values_of(graph, frozen, seen, final):
    """[batch, rows]: what each row of the graph measures."""
    pre = {layer: frozen.pre(layer, x) for layer, x in seen.items()}
    columns = [pre[layer][:, position, feature] for layer, position, feature in graph.features.tolist()]
    scores = frozen.logits(final)[:, -1]
    t, h = (frozen.model.tokenizer(text, add_special_tokens=False)["input_ids"][0] for text in "th")
    for target in graph.targets:
        columns.append(scores[:, target.token_id] if target.token_id is not None else scores[:, t] - scores[:, h])
    return torch.stack(columns, dim=1)


def close(got, expected, scale):
    """To 1e-4 of the largest entry of each row."""
    difference = np.abs(got - expected) / np.maximum(np.abs(scale), 1e-12)
    assert difference.max() < 1e-4, f"off by {difference.max():.1e} of the row's largest"


def test_an_edge_is_what_the_target_changes_by(scene):
    _, _, graph, frozen = scene
    n, d = len(graph.tokens), frozen.model.config.hidden_size
    clean = values_of(graph, frozen, *frozen.run(embedded=torch.zeros(1, n, d).double()))
    rng = np.random.default_rng(0)
    some = np.sort(rng.choice(len(graph.features), 120, replace=False))
    columns = [*some, *range(len(graph.features), graph.edges.shape[1])]
    written = {layer: torch.zeros(len(columns), n, d).double() for layer in range(LAYERS)}
    embedded = torch.zeros(len(columns), n, d).double()
    errors = errors_by_hand(frozen)
    for row, column in enumerate(columns):
        if column < len(graph.features):
            layer, position, index = graph.features[column].tolist()
            activation = frozen.pre(layer, frozen.x[layer])[position, index]
            for target, rows in frozen.weights[layer]["decoders"].items():
                written[target][row, position] = activation * rows[index]
        elif (at := column - len(graph.features)) < len(graph.errors):
            layer, position = graph.errors[at].tolist()
            written[layer][row, position] = errors[layer][position]
        else:
            position = at - len(graph.errors)
            embedded[row, position] = frozen.embedded[position]
    changed = values_of(graph, frozen, *frozen.run(written, embedded)) - clean
    largest = np.abs(graph.edges).max(axis=1)
    close(graph.edges[:, columns].T, changed.numpy(), largest)
    assert (np.abs(graph.edges[:, columns]) > 1e-3 * largest[:, None]).mean() > 0.1


def acts_by_hand(frozen, layer):
    pre = frozen.pre(layer, frozen.x[layer])
    return torch.relu(pre) * (pre > frozen.weights[layer]["threshold"]) * frozen.read[:, None]


def errors_by_hand(frozen):
    """MLP output minus features, biases and skip; at BOS all of it."""
    made = {layer: torch.zeros_like(out) for layer, out in frozen.out.items()}
    for layer, weights in frozen.weights.items():
        for target, rows in weights["decoders"].items():
            made[target] += acts_by_hand(frozen, layer) @ rows
        if weights["skip"] is not None:
            made[layer] += frozen.read_by(layer, frozen.x[layer]) @ weights["skip"] * frozen.read[:, None]
        made[layer] += weights["b_dec"] * frozen.read[:, None]
    return {layer: out - made[layer] for layer, out in frozen.out.items()}


def test_the_nodes_are_all_that_fires_and_the_inputs_of_each_add_up(scene):
    _, _, graph, frozen = scene
    firing = [
        (layer, position, index)
        for layer in range(LAYERS)
        for position, index in acts_by_hand(frozen, layer).nonzero().tolist()
    ]
    assert graph.features.tolist() == [list(each) for each in firing]
    assert graph.n_active == len(firing) > 100
    pre = torch.stack([frozen.pre(layer, frozen.x[layer])[position, index] for layer, position, index in firing])
    np.testing.assert_allclose(graph.pre_activations, pre.numpy(), rtol=1e-5)
    np.testing.assert_allclose(graph.activations, pre.numpy(), rtol=1e-5)
    values = values_of(graph, frozen, {k: x[None] for k, x in frozen.x.items()}, frozen.final[None])[0].numpy()
    np.testing.assert_allclose(graph.target_values, values[len(firing) :], rtol=1e-5)
    sums = graph.edges.astype(float).sum(axis=1) + graph.biases
    close(sums, values, np.abs(graph.edges).max(axis=1))
    assert np.abs(graph.biases).max() > 0.1
