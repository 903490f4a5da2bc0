"""What a graph explains. Each function here says so without a model; ``circuit`` calls what it returns with a prompt.

    circuit(model, transcoders, prompt, targets=salient(mass=0.9))
    circuit(model, transcoders, prompt, targets=tokens(" Paris", " London"))
    circuit(model, transcoders, prompt, targets=[difference(" Paris", " London"), feature(12, 345)])

A token's logit is taken minus the mean over the vocabulary, before Gemma 2's soft-cap: what is common to all logits
changes no probability. Directions are read where the head reads, after the final norm.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gemlens.errors import InputError
from gemlens.lm.gemma import Model, logits
from gemlens.lm.text import texts
from gemlens.records.graph import GraphTarget
from gemlens.sites import Site
from gemlens.study.circuit.linear import CleanRun, norm_weight
from gemlens.study.circuit.nodes import Nodes

__all__ = ["Scene", "Target", "Targets", "difference", "direction", "feature", "salient", "targets_of", "tokens"]


@dataclass(frozen=True, eq=False)
class Scene:
    """What targets may look at."""

    model: Model
    run: CleanRun
    nodes: Nodes


@dataclass(frozen=True, eq=False)
class Target:
    """One row to explain."""

    record: GraphTarget
    layer: int
    """Reads ``mid`` of that layer; the number of layers: the last block's output."""
    position: int
    vector: Tensor
    """[d_model], weights and frozen scales of the norm included."""
    site: Site
    """Where the model itself is read for the same, norms free."""
    row: Tensor
    """[d_model], what is read of that site, or of the final norm's output where it is the last block's."""
    constant: float = 0.0
    """Part of the value that reads nothing: the bias of an encoder."""

    def value(self, run: CleanRun) -> float:
        """What it measures on the clean run."""
        read = run.final if self.layer == len(run.layers) else run.layers[self.layer].middle
        return float(read[self.position].double() @ self.vector.double()) + self.constant

    def measured(self, model: Model, found: Tensor) -> Tensor:
        """[batch], what it measures on activations [batch, n, d_model] at ``site``."""
        at = found[:, self.position]
        if self.site.name == "resid_post":
            norm: Any = model.backbone.norm
            at = norm(at)
        return at.to(self.row) @ self.row + self.constant


Targets = Callable[[Scene], list[Target]]


def salient(*, mass: float = 0.95, most: int = 10) -> Targets:
    """The likeliest next tokens, up to a probability mass, and no more than ``most``.

    Raises:
        InputError: a mass outside 0 to 1, or less than one token.
    """
    if not 0 < mass <= 1:
        raise InputError(f"a probability mass of {mass:g}: give one above 0 and up to 1, e.g. 0.95")
    if most < 1:
        raise InputError(f"at most {most} targets: at least 1")

    def wanted(scene: Scene) -> list[Target]:
        probability = _probabilities(scene)
        top = probability.topk(min(most, len(probability)))
        enough = int((top.values.cumsum(0) < mass).sum()) + 1
        return _of_tokens(scene, top.indices[:enough].tolist(), probability)

    return wanted


def tokens(*given: str | int) -> Targets:
    """Next tokens by text (one token each, a leading space counts) or id."""

    def wanted(scene: Scene) -> list[Target]:
        return _of_tokens(scene, [_token_id(scene.model, each) for each in given], _probabilities(scene))

    return wanted


def difference(more: str | int, less: str | int) -> Targets:
    """The logit of one next token minus that of another."""

    def wanted(scene: Scene) -> list[Target]:
        ids = [_token_id(scene.model, each) for each in (more, less)]
        rows = _unembedding(scene, ids)
        names = _names(scene.model, ids)
        return [_at_the_head(scene, GraphTarget(" - ".join(names), None, None), rows[0] - rows[1])]

    return wanted


def direction(name: str, vector: Tensor) -> Targets:
    """What the last position's final, normalised residual stream is along ``vector`` [d_model]."""

    def wanted(scene: Scene) -> list[Target]:
        d = scene.run.embedding.shape[1]
        if vector.shape != (d,):
            raise InputError(f"direction {name!r} is of shape {list(vector.shape)}, {scene.model.name} needs [{d}]")
        return [_at_the_head(scene, GraphTarget(name, None, None), vector.to(scene.run.embedding))]

    return wanted


def feature(layer: int, index: int, *, position: int = -1) -> Targets:
    """The pre-activation of a feature, whether or not it fires; at the last position unless told otherwise."""

    def wanted(scene: Scene) -> list[Target]:
        part = scene.nodes.parts.get(layer)
        if part is None:
            raise InputError(f"no transcoder reads layer {layer}; there are {_some(sorted(scene.nodes.parts))}")
        if not 0 <= index < part.encoder.width:
            raise InputError(f"feature {index} of layer {layer}: its features are 0 to {part.encoder.width - 1}")
        n = scene.run.n
        at = position + n if position < 0 else position
        if not 0 <= at < n or not scene.nodes.read[at]:
            read = scene.nodes.read.nonzero()[:, 0].tolist()
            raise InputError(f"feature {index} of layer {layer} at position {position}: features are at {_some(read)}")
        row = part.encoder.rows(torch.tensor([index]))[0].to(scene.run.embedding)
        vector = row * part.in_weight * scene.run.layers[layer].mlp_scale[at]
        record = GraphTarget(f"feature {index} of layer {layer} at {at}", None, None, layer, index)
        return [Target(record, layer, at, vector, part.reads, row, float(part.weights.b_enc[index]))]

    return wanted


def targets_of(scene: Scene, wanted: Targets | Sequence[Targets]) -> list[Target]:
    """All targets, in order; an ``InputError`` where there are none."""
    several = [wanted] if callable(wanted) else list(wanted)
    found = [target for each in several for target in each(scene)]
    if not found:
        raise InputError("no target was given; leave targets out for the likeliest next tokens")
    return found


def _of_tokens(scene: Scene, ids: list[int], probability: Tensor) -> list[Target]:
    if not ids:
        return []
    mean = scene.model.mean_unembedding.to(scene.run.embedding)
    return [
        _at_the_head(scene, GraphTarget(name, token, float(probability[token])), row - mean)
        for token, name, row in zip(ids, _names(scene.model, ids), _unembedding(scene, ids), strict=True)
    ]


def _at_the_head(scene: Scene, record: GraphTarget, row: Tensor) -> Target:
    run, last = scene.run, scene.run.n - 1
    vector = row * norm_weight(scene.model.backbone.norm, row.dtype) * run.final_scale[last]
    return Target(record, len(run.layers), last, vector, Site(len(run.layers) - 1, "resid_post"), row)


def _probabilities(scene: Scene) -> Tensor:
    """[vocab], of the next token."""
    last = scene.run.final[-1].to(scene.model.dtype)
    return logits(scene.model, last).float().softmax(dim=-1)


def _unembedding(scene: Scene, ids: list[int]) -> Tensor:
    return scene.model.module.lm_head.weight[ids].to(scene.run.embedding)


def _names(model: Model, ids: list[int]) -> list[str]:
    return [texts(model, [token])[0] for token in ids]


def _token_id(model: Model, given: str | int) -> int:
    known = model.config.vocab_size
    if isinstance(given, int):
        if not 0 <= given < known:
            raise InputError(f"no token has id {given}; those of {model.name} are 0 to {known - 1}")
        return given
    ids = model.tokenizer(given, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        parts = ", ".join(map(repr, _names(model, ids[:6]))) + (", …" if len(ids) > 6 else "")
        found = f"is {len(ids)} tokens ({parts})" if ids else "is no token"
        raise InputError(f"the target {given[:60]!r} {found}; give one token, with the space before it if it has one")
    return int(ids[0])


def _some(numbers: list[int]) -> str:
    if not numbers:
        return "none"
    run = numbers[-1] - numbers[0] == len(numbers) - 1 and len(numbers) > 1
    return f"{numbers[0]} to {numbers[-1]}" if run else ", ".join(map(str, numbers[:12]))
