"""What stands in for the MLPs at one prompt: the features that fire, what they write, and the errors that they leave.

At the positions that transcoders were not trained on (BOS, the tokens that open a chat) nothing fires, and all of an
MLP's output is error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from gemlens.errors import InputError
from gemlens.lm.gemma import Model
from gemlens.records import DictionaryInfo
from gemlens.scope.multilayer import Layer, MultiLayer
from gemlens.scope.rows import Rows
from gemlens.scope.sae import SAE
from gemlens.sites import Site
from gemlens.study.circuit.linear import CleanRun
from gemlens.study.fit_check import check_fit
from gemlens.study.outputs import Dictionary, make, outputs
from gemlens.study.replacement import Transcoders, sites_of

__all__ = ["Nodes", "Part", "check_transcoders", "nodes_of"]

READABLE = ("mlp_in", "mlp_in_normalized")
"""Sites that are linear in the residual stream, once the norm's scale is frozen."""


@dataclass(frozen=True, eq=False)
class Part:
    """The features of one layer: an SAE, or a layer of a CLT."""

    dictionary: Dictionary
    reads: Site
    writes: Site
    weights: SAE | Layer
    in_weight: Tensor
    """[d_model]: ``mid * scale * in_weight`` is what the encoder and the skip read."""

    @property
    def layer(self) -> int:
        return self.reads.layer

    @property
    def last(self) -> int:
        """The last layer that its features write."""
        if isinstance(self.weights, SAE):
            return self.layer
        assert isinstance(self.dictionary, MultiLayer)
        return self.dictionary.writes[self.weights.first + self.weights.outputs - 1].layer

    @property
    def encoder(self) -> Rows:
        return self.weights.encoder

    def read_by(self, features: Tensor) -> Tensor:
        """[m, d_model], encoder rows of some features with the norm's weight, to be taken times its scale."""
        return self.encoder.rows(features).to(self.in_weight) * self.in_weight

    def written_by(self, features: Tensor, layer: int) -> Tensor:
        """[m, d_model], decoder rows of some features, towards the MLP output of ``layer``."""
        if isinstance(self.weights, SAE):
            return self.weights.decoder.rows(features).to(self.in_weight)
        assert isinstance(self.dictionary, MultiLayer)
        output = [site.layer for site in self.dictionary.writes].index(layer)
        rows = features * self.weights.outputs + output - self.weights.first
        return self.weights.decoder.rows(rows).to(self.in_weight)

    @cached_property
    def skip(self) -> Tensor | None:
        """[d_model, d_model]: what the layer writes, times this and the norm's scale, is what its ``mid`` has done."""
        skip = self.weights.skip
        return None if skip is None else (skip.T.to(self.in_weight) * self.in_weight).contiguous()


@dataclass(frozen=True, eq=False)
class Nodes:
    """Features and errors at the positions of one prompt."""

    parts: dict[int, Part]
    """By layer; a layer without has its MLP as error."""
    read: Tensor
    """bool [n], where transcoders stand in."""
    index: Tensor
    """int64 [N, 3] layer, position, feature, sorted so."""
    activations: Tensor
    """[N]"""
    errors: Tensor
    """[layers, n, d_model], MLP output minus reconstruction."""
    constants: Tensor
    """[layers, n, d_model], what is written that is no node's: decoder biases, features that were not kept, edits."""
    n_active: int
    """Features that fire, kept or not."""

    @property
    def first(self) -> int:
        """Positions before this one have no features; at least one position is left."""
        at = self.read.nonzero()
        return int(at[0]) if len(at) else len(self.read) - 1

    def keeping(self, kept: Tensor) -> Nodes:
        """With some of the features as nodes, bool [N]; what the others write counts as constant."""
        constants = self.constants.clone()
        rest_index, rest_values = self.index[~kept], self.activations[~kept]
        for layer, part in self.parts.items():
            mine = rest_index[:, 0] == layer
            positions, values = rest_index[mine, 1], rest_values[mine]
            for target in range(layer, part.last + 1):
                for some in torch.arange(len(positions)).split(_TOGETHER):
                    rows = part.written_by(rest_index[mine, 2][some], target)
                    constants[target].index_add_(0, positions[some], rows * values[some, None])
        return replace(self, index=self.index[kept], activations=self.activations[kept], constants=constants)


_TOGETHER = 4096


def check_transcoders(
    model: Model, transcoders: Transcoders, *, allow_missing: bool = False
) -> tuple[list[DictionaryInfo], list[str]]:
    """Their infos, and warnings.

    Raises:
        InputError: what is no transcoder, reads where the frozen model is not linear, stands in twice or nowhere for a
            layer, or comes from several models.
        MismatchError: one of them does not fit the model.
    """
    sites_of(transcoders)  # raises for those that cannot stand in together
    dictionaries: Sequence[Dictionary] = [transcoders] if isinstance(transcoders, MultiLayer) else list(transcoders)
    warnings = [warning for dictionary in dictionaries for warning in check_fit(model, dictionary)]
    infos = [dictionary.info for dictionary in dictionaries]
    trained = {info.model_name: info.id for info in infos if info.model_name}
    if len(trained) > 1:
        (one, first), (other, second), *_ = trained.items()
        raise InputError(f"{first} was trained on {one}, {second} on {other}; give transcoders of one model")
    parts = [part for dictionary in dictionaries for part in outputs(dictionary)]
    for part in parts:
        if part.reads.name not in READABLE or part.writes != Site(part.reads.layer, "mlp_out"):
            raise InputError(
                f"{part.info.id} reads {part.reads} and writes {part.writes}; a circuit takes transcoders, from "
                f"{' or '.join(READABLE)} to mlp_out of the same layer"
            )
    missing = sorted(set(range(model.n_layers)) - {part.reads.layer for part in parts})
    if missing and not allow_missing:
        raise InputError(
            f"no transcoder for layer {', '.join(map(str, missing))} of {model.name}; give one for each layer, or "
            "allow_missing=True to leave those MLPs as errors"
        )
    if missing:
        warnings.append(f"no transcoder for layer {', '.join(map(str, missing))}: all of the MLP there is error")
    return infos, list(dict.fromkeys(warnings))


@torch.no_grad()
def nodes_of(run: CleanRun, transcoders: Transcoders, read: Tensor) -> Nodes:
    """What fires on a clean run whose ``found`` holds ``sites_of(transcoders)``; ``read`` is bool [n]."""
    dictionaries: Sequence[Dictionary] = [transcoders] if isinstance(transcoders, MultiLayer) else list(transcoders)
    errors = torch.stack([layer.mlp_out for layer in run.layers])
    constants = torch.stack([layer.added for layer in run.layers])
    at = read.nonzero()[:, 0]
    parts: dict[int, Part] = {}
    index, values = [], []
    for dictionary in dictionaries:
        own = outputs(dictionary)
        made = make(dictionary, {part.reads: run.found[part.reads][at] for part in own})
        for part, (fired, recon) in zip(own, made, strict=True):
            layer = part.reads.layer
            parts[layer] = _part(run, part.reads, part.writes, dictionary)
            errors[layer, at] -= recon.to(errors)
            constants[layer, at] += parts[layer].weights.b_dec.to(errors)
            index.append(torch.stack([torch.full_like(fired.ids, layer), at[fired.tokens], fired.ids], dim=1))
            values.append(fired.values.to(errors))
    together = torch.cat(index)
    width = max(part.encoder.width for part in parts.values())
    order = ((together[:, 0] * len(read) + together[:, 1]) * width + together[:, 2]).argsort()
    return Nodes(parts, read, together[order], torch.cat(values)[order], errors, constants, len(together))


def _part(run: CleanRun, reads: Site, writes: Site, dictionary: Dictionary) -> Part:
    weight = run.layers[reads.layer].mlp_weight
    in_weight = weight if reads.name == "mlp_in" else torch.ones_like(weight)
    weights = dictionary if isinstance(dictionary, SAE) else dictionary.layer(reads)
    return Part(dictionary, reads, writes, weights, in_weight)
