"""Attribution graphs, held against the frozen model by plain hooks (``frozen.py``), in float64 on tiny random Gemmas.

An edge is what its target changes by when the source is taken twice, all else frozen; the edges of a row and its bias
add up to the target's own value. How the sweep is cut into pieces, and how many features are nodes, changes nothing.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from frozen import Frozen
from gemlens.errors import InputError, MismatchError
from gemlens.lm.gemma import activations
from gemlens.scope.load import load_transcoder
from gemlens.sites import Site
from gemlens.study.circuit import sweep as sweeping
from gemlens.study.circuit import trace
from gemlens.study.circuit.difference import difference as difference_of
from gemlens.study.circuit.effects import total_effects
from gemlens.study.circuit.prune import prune
from gemlens.study.circuit.targets import difference, direction, feature, salient, tokens
from gemlens.study.circuit.trace import circuit
from gemlens.study.intervene import steer
from tiny import LAYERS, random_clt, random_sae, random_transcoders, tiny_gemma

PROMPT = "the hen and the inn"
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


def errors_by_hand(frozen):
    """MLP output minus features, biases and skip; at BOS all of it."""
    made = {layer: torch.zeros_like(out) for layer, out in frozen.out.items()}
    for layer, weights in frozen.weights.items():
        for target, rows in weights["decoders"].items():
            made[target] += frozen.acts(layer, frozen.x[layer]) @ rows
        if weights["skip"] is not None:
            made[layer] += frozen.read_by(layer, frozen.x[layer]) @ weights["skip"] * frozen.read[:, None]
        made[layer] += weights["b_dec"] * frozen.read[:, None]
    return {layer: out - made[layer] for layer, out in frozen.out.items()}


def test_the_nodes_are_all_that_fires_and_the_inputs_of_each_add_up(scene):
    _, _, graph, frozen = scene
    firing = [
        (layer, position, index)
        for layer in range(LAYERS)
        for position, index in frozen.acts(layer, frozen.x[layer]).nonzero().tolist()
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


@pytest.mark.parametrize("name", ["gemma3", "gemma3, CLT", "gemma3, no skip, two key heads"])
def test_how_the_sweep_is_cut_changes_nothing(name, monkeypatch):
    """Blocks of one row, keys three at a time, no table of tokens, a graph on disk."""
    config, make = SETTINGS[name]
    model = doubles(**config)
    transcoders = set_of(make, model)
    whole = circuit(model, transcoders, PROMPT)
    monkeypatch.setattr(trace, "_CELLS", 1)
    monkeypatch.setattr(trace, "_cells", lambda scene, memory: 1)
    monkeypatch.setattr(trace, "_LEAST", 1)
    monkeypatch.setattr(sweeping, "_KEYS", 3)
    monkeypatch.setattr(sweeping, "_TABLE", 0)
    cut = circuit(model, transcoders, PROMPT, memory=1000)
    assert isinstance(cut.edges, np.memmap)
    assert not isinstance(whole.edges, np.memmap)
    scale = np.abs(whole.edges).max(axis=1)
    close(cut.edges.T, whole.edges.T, scale)
    close(cut.biases, whole.biases, np.maximum(scale, np.abs(whole.biases)))


@pytest.mark.parametrize("layer", range(LAYERS))
@pytest.mark.parametrize("name", ["gemma3", "gemma3, CLT", "gemma3, no skip, two key heads"])
def test_where_rows_meet_what_is_carried_changes_nothing(name, layer, monkeypatch):
    config, make = SETTINGS[name]
    model = doubles(**config)
    transcoders = set_of(make, model)
    monkeypatch.setattr(sweeping, "middle", lambda *_args, **_options: 0)
    plain = circuit(model, transcoders, PROMPT)
    monkeypatch.setattr(sweeping, "middle", lambda *_args, **_options: layer)
    met = circuit(model, transcoders, PROMPT)
    scale = np.abs(plain.edges).max(axis=1)
    close(met.edges.T, plain.edges.T, scale)
    close(met.biases, plain.biases, np.maximum(scale, np.abs(plain.biases)))


@pytest.mark.parametrize("name", ["gemma3", "gemma3, CLT", "gemma2, inside the norm"])
def test_fewer_nodes_are_rows_and_columns_of_the_whole(name):
    config, make = SETTINGS[name]
    model = doubles(**config)
    transcoders = set_of(make, model)
    whole, some = (circuit(model, transcoders, PROMPT, max_features=most) for most in (None, 60))
    rows = {tuple(node): row for row, node in enumerate(whole.features.tolist())}
    kept = [rows[tuple(node)] for node in some.features.tolist()]
    n = len(whole.features)
    assert len(kept) == 60 < n == some.n_active == whole.n_active
    at = [*kept, *range(n, len(whole.edges))]
    columns = [*kept, *range(n, whole.edges.shape[1])]
    scale = np.abs(whole.edges[at]).max(axis=1)
    close(some.edges.T, whole.edges[np.ix_(at, columns)].T, scale)
    sums = some.edges.astype(float).sum(axis=1) + some.biases
    close(sums[:60], some.pre_activations, scale[:60])
    close(sums[60:], some.target_values, scale[60:])
    strength = (np.abs(total_effects(whole)) * [[target.probability] for target in whole.targets]).sum(axis=0)
    others = np.setdiff1d(np.arange(n), kept)
    assert strength[kept].min() >= strength[others].max() * (1 - 1e-4)


def test_tokens_that_open_a_chat_have_errors_alone():
    """Of Gemma Scope 2 for an -it model; four positions then have no features, and rows add up all the same."""
    model = doubles(chat=True, name="google/gemma-3-270m-it")
    transcoders = set_of(lambda m: random_transcoders(m, 12), model)
    for each in transcoders:
        each.info = replace(each.info, model_name="google/gemma-3-270m-it")
    graph = circuit(model, transcoders, "a hen")
    first = len(model.tokenizer("<bos><start_of_turn>user\n", add_special_tokens=False)["input_ids"])
    assert first > 2
    assert graph.features[:, 1].min() == first
    assert graph.tokens[0].text == "<bos>"
    ids = torch.tensor([token.token_id for token in graph.tokens])
    frozen = Frozen(model, transcoders, ids, keep=first)
    n, row = len(ids), len(graph.features)
    before = frozen.logits(frozen.final)[-1, graph.targets[0].token_id]
    written = {layer: torch.zeros(first, n, 16).double() for layer in range(LAYERS)}
    for position in range(first):
        written[2][position, position] = frozen.out[2][position]
    after = frozen.logits(frozen.run(written)[1])[:, -1, graph.targets[0].token_id]
    columns = [row + 2 * n + position for position in range(first)]
    assert graph.errors[[c - row for c in columns]].tolist() == [[2, position] for position in range(first)]
    close(graph.edges[row, columns], (after - before).numpy(), np.abs(graph.edges[row]).max())
    sums = graph.edges.astype(float).sum(axis=1) + graph.biases
    values = np.concatenate([graph.pre_activations, graph.target_values])
    close(sums, values, np.abs(graph.edges).max(axis=1))


def test_layers_without_a_transcoder_are_left_as_errors_on_request(model):
    transcoders = random_transcoders(model, 12)[2:5]
    with pytest.raises(InputError, match=r"no transcoder for layer 0, 1, 5, 6 .*allow_missing"):
        circuit(model, transcoders, PROMPT)
    graph = circuit(model, transcoders, PROMPT, allow_missing=True)
    assert set(graph.features[:, 0]) == {2, 3, 4}
    assert any("layer 0, 1, 5, 6" in warning for warning in graph.warnings)
    sums = graph.edges.astype(float).sum(axis=1) + graph.biases
    close(sums, np.concatenate([graph.pre_activations, graph.target_values]), np.abs(graph.edges).max(axis=1))


def test_what_may_be_explained(model):
    transcoders, d = random_transcoders(model, 12), model.config.hidden_size
    vector = torch.randn(d, generator=torch.Generator().manual_seed(0))
    wanted = [tokens("t", 5), direction("mine", vector), feature(3, 7), feature(2, 1, position=4)]
    graph = circuit(model, transcoders, PROMPT, targets=wanted)
    labels = [target.label for target in graph.targets]
    assert labels[0] == "t"
    assert labels[2:] == ["mine", "feature 7 of layer 3 at 9", "feature 1 of layer 2 at 4"]
    assert [target.token_id for target in graph.targets][1:] == [5, None, None, None]
    assert (graph.targets[3].layer, graph.targets[3].feature) == (3, 7)
    frozen = Frozen(model, transcoders, torch.tensor([token.token_id for token in graph.tokens]))
    expected = [
        *frozen.logits(frozen.final)[-1, [graph.targets[0].token_id, 5]],
        frozen.final[-1] @ vector,
        frozen.pre(3, frozen.x[3])[-1, 7],
        frozen.pre(2, frozen.x[2])[4, 1],
    ]
    np.testing.assert_allclose(graph.target_values, expected, rtol=1e-3)
    sums = graph.edges.astype(float).sum(axis=1) + graph.biases
    close(sums[-5:], np.array(expected), np.abs(graph.edges).max(axis=1)[-5:])
    behind = graph.features[:, 1] > 4
    assert not graph.edges[-1, : len(graph.features)][behind].any()  # nothing behind it reaches position 4


def test_the_likeliest_tokens_up_to_a_mass(model):
    transcoders = random_transcoders(model, 12)
    many = circuit(model, transcoders, PROMPT, targets=salient(mass=0.5, most=300))
    probabilities = [target.probability for target in many.targets]
    assert sum(probabilities) >= 0.5 > sum(probabilities[:-1])
    assert probabilities == sorted(probabilities, reverse=True)
    assert len(circuit(model, transcoders, PROMPT, targets=salient(mass=0.5, most=2)).targets) == 2


def test_what_cannot_be_traced_is_refused_in_a_line(model):
    transcoders = random_transcoders(model, 12)
    mixed = [*transcoders]
    for at, name in ((0, "google/gemma-3-tiny"), (1, "google/gemma-3-other")):
        mixed[at] = random_transcoders(model, 12)[at]
        mixed[at].info = replace(mixed[at].info, model_name=name)
    foreign = set_of(lambda m: random_transcoders(m, 12), tiny_gemma(hidden=24))
    for given, options, kind, words in (
        (transcoders, {"targets": tokens("the hen")}, InputError, r"'the hen' is \d tokens"),
        (transcoders, {"targets": tokens(100_000)}, InputError, "no token has id 100000"),
        (transcoders, {"targets": []}, InputError, "no target"),
        (transcoders, {"targets": feature(9, 1)}, InputError, "no transcoder reads layer 9; there are 0 to 6"),
        (transcoders, {"targets": feature(1, 12)}, InputError, "features are 0 to 11"),
        (transcoders, {"targets": feature(1, 1, position=0)}, InputError, "features are at 1 to 9"),
        (transcoders, {"targets": direction("d", torch.ones(3))}, InputError, r"shape \[3\]"),
        (transcoders, {"max_features": 0}, InputError, "at least 1"),
        (transcoders, {"memory": 5}, InputError, "too few"),
        (mixed, {}, InputError, "transcoders of one model"),
        (foreign, {}, MismatchError, "expects 24 numbers"),
        ([random_sae(model, "mlp_out.2")], {}, InputError, "takes transcoders"),
        (random_clt(model, crosscoder=True), {}, InputError, "crosscoder"),
        ([], {}, InputError, "no transcoder"),
    ):
        with pytest.raises(kind, match=words):
            circuit(model, given, PROMPT, **options)
    for mass, most in ((0, 3), (1.5, 3), (0.5, 0)):
        with pytest.raises(InputError):
            salient(mass=mass, most=most)


def test_the_model_is_as_it_was(model):
    before = model.config._attn_implementation
    circuit(model, random_transcoders(model, 12), PROMPT)
    assert model.config._attn_implementation == before
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.module.modules())


@pytest.mark.parametrize("site", ["resid_post.2", "mlp_out.3"])
def test_a_steered_models_rows_add_up_and_its_features_are_those_that_fire_in_it(site):
    model, sae = doubles(), random_sae(doubles(), site).double()
    transcoders = [each.double() for each in random_transcoders(model, 12)]
    plain = circuit(model, transcoders, PROMPT)
    with steer(model, sae, [3, 5], 2.0, relative_to=None):
        steered = circuit(model, transcoders, PROMPT)
        seen = activations(model, torch.tensor([[t.token_id for t in steered.tokens]]), [Site(4, "mlp_in")])
    sums = steered.edges.astype(float).sum(axis=1) + steered.biases
    values = np.concatenate([steered.pre_activations, steered.target_values])
    close(sums, values, np.abs(steered.edges).max(axis=1))
    # What fires is what fires in the steered model.
    fired = transcoders[4].encode(seen[Site(4, "mlp_in")][0, 1:])
    own = steered.features[:, 0] == 4
    assert sorted(zip((fired.tokens + 1).tolist(), fired.ids.tolist(), strict=True)) == [
        (position, index) for _, position, index in steered.features[own].tolist()
    ]
    assert not np.array_equal(steered.target_values, plain.target_values)
    became = {node.extra.get("difference") for node in difference_of(prune(plain), prune(steered)).nodes}
    assert became >= {"both", "gained", "lost"}


def starter_transcoders():
    return [load_transcoder("starter", f"transcoder_all/layer_{n}_width_2k_l0_small_affine") for n in range(18)]


def test_the_starters_rows_add_up(starter):
    transcoders = starter_transcoders()
    graph = circuit(starter, transcoders, "Paris is in", max_features=300)
    assert len(graph.features) == 300 < graph.n_active
    sums = graph.edges.astype(float).sum(axis=1) + graph.biases
    values = np.concatenate([graph.pre_activations, graph.target_values])
    close(sums, values, np.abs(graph.edges).max(axis=1))
