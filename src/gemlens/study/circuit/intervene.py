"""What really happens when feature nodes are scaled or ablated: in the frozen model, and in the model itself.

Constrained, attention patterns, norm scales and errors stay as they were, and each transcoder encodes what it is fed:
features that the edits reach change, switch on or switch off. Free, what the edited features no longer write (or write
more) is added to the MLPs' outputs, and the whole model answers, its own MLPs included.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gemlens.errors import InputError
from gemlens.lm.gemma import Model, activations, writing
from gemlens.records.graph import Graph
from gemlens.records.intervention import Edit, Intervention, Verification, VerifiedNode
from gemlens.scope.multilayer import MultiLayer
from gemlens.scope.sae import SAE
from gemlens.sites import Site
from gemlens.study.circuit.effects import held_nodes, predicted, total_effects
from gemlens.study.circuit.nodes import Part, check_transcoders
from gemlens.study.circuit.targets import Targets, feature, targets_of, tokens
from gemlens.study.circuit.trace import scene_of
from gemlens.study.replacement import Transcoders

__all__ = ["intervene", "verify"]

# Prompts that are run together.
_BATCH = 16


@torch.no_grad()
def intervene(
    model: Model,
    transcoders: Transcoders,
    graph: Graph,
    edits: Edit | Sequence[Edit],
    *,
    targets: Targets | Sequence[Targets] | None = None,
) -> Intervention:
    """Scale or ablate feature nodes of a graph, all at once.

    Args:
        transcoders: those that the graph was made with.
        targets: what ``circuit`` was given, where the graph's targets are not all tokens and features.

    Raises:
        InputError: an edit of what is no node; targets that have to be given again; another prompt's graph.
        MismatchError: transcoders that do not fit the model.
    """
    several = [[edits] if isinstance(edits, Edit) else list(edits)]
    if not several[0]:
        raise InputError("no edit was given; give the layer, feature and position of a node, e.g. Edit(12, 345, 4)")
    expected = predicted(graph, several)[0]
    bench = _Bench(model, transcoders, graph, targets)
    return Intervention(
        edits=tuple(several[0]),
        targets=graph.targets,
        before=graph.target_values,
        predicted=expected.astype(np.float32),
        constrained=bench.constrained(several)[0],
        free=bench.free(several)[0],
    )


@torch.no_grad()
def verify(
    model: Model,
    transcoders: Transcoders,
    graph: Graph,
    k: int = 20,
    *,
    targets: Targets | Sequence[Targets] | None = None,
) -> Verification:
    """Ablate the ``k`` nodes of largest total effect, one at a time, and hold what happens against the graph.

    Arguments and errors as for ``intervene``.
    """
    if k < 1:
        raise InputError(f"verify {k} nodes: at least 1")
    if not len(graph.features):
        raise InputError("the graph has no feature node; there is nothing to verify")
    total = total_effects(graph)
    weights = np.array([1.0 if t.probability is None else t.probability for t in graph.targets])
    chosen = np.argsort(-(weights @ np.abs(total)), kind="stable")[:k]
    several = [[Edit(layer, index, position)] for layer, position, index in graph.features[chosen].tolist()]
    bench = _Bench(model, transcoders, graph, targets)
    expected, constrained, free = predicted(graph, several), bench.constrained(several), bench.free(several)
    return Verification(
        targets=graph.targets,
        nodes=tuple(
            VerifiedNode(
                layer=edit.layer,
                position=int(graph.features[node, 1]),
                feature=edit.feature,
                activation=float(graph.activations[node]),
                predicted=tuple(expected[row].tolist()),
                constrained=tuple(constrained[row].tolist()),
                free=tuple(free[row].tolist()),
            )
            for row, (node, [edit]) in enumerate(zip(chosen, several, strict=True))
        ),
    )


class _Bench:
    """The prompt of a graph, run again."""

    def __init__(
        self, model: Model, transcoders: Transcoders, graph: Graph, targets: Targets | Sequence[Targets] | None
    ) -> None:
        missing = set(range(model.n_layers)) > {int(layer) for layer in graph.features[:, 0]}
        infos, _ = check_transcoders(model, transcoders, allow_missing=missing)
        ids = torch.tensor([token.token_id for token in graph.tokens])
        if ids.max() >= model.config.vocab_size or graph.n_layers != model.n_layers:
            raise InputError(f"the graph is of {graph.model_id}, the model is {model.name}; load the graph's own")
        self.model, self.graph = model, graph
        self.scene = scene_of(model, transcoders, ids, infos)
        self.targets = targets_of(self.scene, targets or _again(graph, len(ids)))
        if [target.record.label for target in self.targets] != [target.label for target in graph.targets]:
            raise InputError("these are not the targets of the graph; give those that circuit() was given")

    def constrained(self, several: Sequence[Sequence[Edit]]) -> NDArray[np.float32]:
        """[sets, t], changes."""
        parts = [several[start : start + _BATCH] for start in range(0, len(several), _BATCH)]
        return np.concatenate([self._constrained(part) for part in parts]).astype(np.float32)

    def _constrained(self, several: Sequence[Sequence[Edit]]) -> NDArray[np.float64]:
        run, nodes = self.scene.run, self.scene.nodes
        state = run.embedding.new_zeros(len(several), *run.embedding.shape)
        changes = np.zeros((len(several), len(self.targets)))
        pending = {layer: torch.zeros_like(state) for layer in range(len(run.layers))}
        for layer, frozen in enumerate(run.layers):
            state += frozen.attention.forward(state)
            self._note(changes, layer, state)
            part = nodes.parts.get(layer)
            if part is not None:
                read = state * (frozen.mlp_scale * nodes.read)[:, None] * part.in_weight
                if part.weights.skip is not None:
                    pending[layer] += read @ part.weights.skip.to(read)
                self._answer(part, read, several, pending)
            state += pending.pop(layer)
        self._note(changes, len(run.layers), state)
        return changes

    def _note(self, changes: NDArray[np.float64], layer: int, state: Tensor) -> None:
        for column, target in enumerate(self.targets):
            if target.layer == layer:
                changes[:, column] = (state[:, target.position] @ target.vector).cpu().numpy()

    def _answer(self, part: Part, read: Tensor, several: Sequence[Sequence[Edit]], pending: dict[int, Tensor]) -> None:
        """What the features of a layer write differently, where what they read has changed or an edit holds them."""
        run = self.scene.run
        held = [
            (row, int(position), int(index), scale)
            for row, edits in enumerate(several)
            for node, scale in held_nodes(self.graph, edits).items()
            for layer, position, index in [self.graph.features[node]]
            if layer == part.layer
        ]
        touched = read.abs().amax(dim=2) > 0
        for row, position, *_ in held:
            touched[row, position] = True
        rows, positions = touched.nonzero(as_tuple=True)
        if not len(rows):
            return
        clean = run.found[part.reads].to(read)[positions]
        before = _encoded(part, clean)
        after = _encoded(part, clean + read[rows, positions])
        acts = after - before
        for row, position, index, scale in held:
            place = int(((rows == row) & (positions == position)).nonzero()[0, 0])
            acts[place, index] = (scale - 1) * before[place, index]
        changed = acts.any(dim=0).nonzero()[:, 0]
        for target in range(part.layer, part.last + 1):
            pending[target][rows, positions] += acts[:, changed].to(read) @ part.written_by(changed, target)

    def free(self, several: Sequence[Sequence[Edit]]) -> NDArray[np.float32]:
        """[sets, t], changes."""
        parts = [several[start : start + _BATCH] for start in range(0, len(several), _BATCH)]
        clean = self._free([[]])
        return np.concatenate([self._free(part) - clean for part in parts]).astype(np.float32)

    def _free(self, several: Sequence[Sequence[Edit]]) -> NDArray[np.float64]:
        run, ids = self.scene.run, torch.tensor([token.token_id for token in self.graph.tokens])
        added: dict[int, Tensor] = {}
        for row, edits in enumerate(several):
            for node, scale in held_nodes(self.graph, edits).items():
                layer, position, index = self.graph.features[node].tolist()
                part, factor = self.scene.nodes.parts[layer], float(self.graph.activations[node]) * (scale - 1)
                for target in range(layer, part.last + 1):
                    to = added.setdefault(target, run.embedding.new_zeros(len(several), *run.embedding.shape))
                    to[row, position] += factor * part.written_by(torch.tensor([index]), target)[0]
        sites = sorted({target.site for target in self.targets})
        with ExitStack() as stack:
            for layer, change in added.items():
                stack.enter_context(writing(self.model, Site(layer, "mlp_out"), _adding(change)))
            found = activations(self.model, ids.expand(len(several), -1), sites)
        columns = [target.measured(self.model, found[target.site]) for target in self.targets]
        return torch.stack(columns, dim=1).double().cpu().numpy()


def _adding(change: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda own: own + change.to(own)


def _encoded(part: Part, x: Tensor) -> Tensor:
    """[m, F]"""
    given = x.to(part.weights.b_enc)
    if isinstance(part.dictionary, SAE):
        return part.dictionary.encode(given).dense()
    assert isinstance(part.dictionary, MultiLayer)
    return part.dictionary.encode({part.reads: given})[part.reads].dense()


def _again(graph: Graph, n: int) -> list[Targets]:
    wanted: list[Targets] = []
    for target in graph.targets:
        if target.token_id is not None:
            wanted.append(tokens(target.token_id))
        elif target.layer is not None and target.feature is not None:
            wanted.append(feature(target.layer, target.feature, position=_position(target.label, n)))
        else:
            raise InputError(f"the target {target.label!r} is not in the graph itself; give targets= as to circuit()")
    return wanted


def _position(label: str, n: int) -> int:
    tail = label.rsplit(" ", 1)[-1]
    return int(tail) if tail.isdigit() else n - 1
