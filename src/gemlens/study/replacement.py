"""The replacement model: transcoders stand in for MLPs, with or without the errors that they make on a clean pass.

    with replaced(model, transcoders):                   every MLP's output is what its transcoder makes of its input
        activations(model, tokens, sites)

    errors = cached_errors(model, transcoders, tokens)   what the transcoders leave over of a clean pass
    with replaced(model, transcoders, errors=errors):    the same with these added: the model, until something is edited
        activations(model, tokens, sites)

Each transcoder reads what its MLP is fed in this very pass, so an edit anywhere below reaches what lies above through
features alone, while the errors stay as they were: the local replacement model of Ameisen et al. 2025
(transformer-circuits.pub/2025/attribution-graphs), attention left free.

No transcoder was trained on BOS, and few on the tokens that open a chat. There a transcoder writes nothing: the MLP's
own output stays, which with errors counts as error as a whole. (Causal attention lets no edit behind these tokens reach
them, so it is the same for all that a prompt is edited for.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from gemlens.errors import InputError
from gemlens.lm.gemma import Model, activations, reading, writing
from gemlens.scope.features import Features
from gemlens.scope.multilayer import MultiLayer
from gemlens.scope.sae import SAE
from gemlens.sites import Site
from gemlens.study.outputs import Dictionary, make, outputs

__all__ = ["Errors", "Transcoders", "cached_errors", "errors_of", "reconstructors", "replaced", "sites_of"]

Transcoders = Sequence[SAE] | MultiLayer
"""One transcoder for each of some layers, or a CLT."""


@dataclass(frozen=True, eq=False)
class Errors:
    """What transcoders leave over of the MLPs' outputs on a clean pass: ``outputs - recon``, by site written.

    Both are kept, since ``outputs + (new recon - recon)`` is exact where nothing has changed. A rounding error would
    push features over their thresholds, and that is no longer a small difference.
    """

    outputs: dict[Site, Tensor] = field(repr=False)
    """[batch, n, d], of the MLPs."""
    recon: dict[Site, Tensor] = field(repr=False)
    """[batch, n, d], of the transcoders; 0 at tokens that are left out."""

    def at(self, site: Site) -> Tensor:
        """[batch, n, d]"""
        return self.outputs[site] - self.recon[site]

    def plus(self, site: Site, change: Tensor) -> Errors:
        """The same with ``change``, which broadcasts to [batch, n, d], added to the errors at one site."""
        return replace(self, outputs=self.outputs | {site: self.outputs[site] + change})


def cached_errors(model: Model, transcoders: Transcoders, tokens: Tensor, *, read: Tensor | None = None) -> Errors:
    """The errors of transcoders on a clean pass over ``tokens``, [batch, n] ids; ``read`` as for ``replaced``."""
    return errors_of(transcoders, activations(model, tokens, sites_of(transcoders)), read=read)


def errors_of(transcoders: Transcoders, clean: Mapping[Site, Tensor], *, read: Tensor | None = None) -> Errors:
    """The same of [batch, n, d] activations at every one of ``sites_of(transcoders)``."""
    written: dict[Site, Tensor] = {}
    recon: dict[Site, Tensor] = {}
    for dictionary in _checked(transcoders):
        parts = outputs(dictionary)
        at = _read_at(read, clean[parts[0].writes])
        made = make(dictionary, {part.reads: clean[part.reads][at] for part in parts})
        for part, (_, value) in zip(parts, made, strict=True):
            written[part.writes] = clean[part.writes]
            recon[part.writes] = torch.zeros_like(clean[part.writes])
            recon[part.writes][at] = value.to(clean[part.writes])
    return Errors(written, recon)


def sites_of(transcoders: Transcoders) -> list[Site]:
    """What they read and write, in the order of a forward pass."""
    parts = [part for dictionary in _checked(transcoders) for part in outputs(dictionary)]
    return sorted({site for part in parts for site in (part.reads, part.writes)})


@contextmanager
def replaced(
    model: Model, transcoders: Transcoders, *, errors: Errors | None = None, read: Tensor | None = None
) -> Iterator[None]:
    """For the time of a ``with``, transcoders stand in for the MLPs whose output they write; other MLPs stay.

    Nests with ``reading`` and ``writing``: a transcoder sees what an outer ``with`` writes where it reads, and an inner
    one sees what it has written.

    Args:
        errors: of a clean pass over the same tokens, to be added; a batch of 1 serves any batch.
        read: bool [n] or [batch, n], the tokens at which transcoders stand in; all but the first, which is BOS, unless
            given.

    Raises:
        InputError: several dictionaries write one site, one writes before it reads, or a crosscoder; from the forward
            pass, errors or tokens of another shape.
        MismatchError: the model lacks a layer.
    """
    with ExitStack() as stack:
        for dictionary in _checked(transcoders):
            for reads, writes, recon in reconstructors(dictionary):
                [found] = stack.enter_context(reading(model, [reads])).values()
                stack.enter_context(writing(model, writes, _edit(found, recon, writes, errors, read)))
        yield


def _edit(
    found: list[Tensor], recon: Callable[[Tensor], Tensor], writes: Site, errors: Errors | None, read: Tensor | None
) -> Callable[[Tensor], Tensor]:
    def edit(own: Tensor) -> Tensor:
        at = _read_at(read, own)
        value = recon(found[-1][at]).to(own)
        found.clear()
        if errors is None:
            new = own.clone()
            new[at] = value
            return new
        new = _fitting(errors.outputs[writes], own, writes).clone()
        new[at] += value - _fitting(errors.recon[writes], own, writes)[at]
        return new

    return edit


def reconstructors(dictionary: Dictionary) -> Iterator[tuple[Site, Site, Callable[[Tensor], Tensor]]]:
    """What each output reads and writes, and how [n, d_in] become [n, d_out]; to be called in the pass's order."""
    if isinstance(dictionary, SAE):
        yield dictionary.reads, dictionary.writes, dictionary.reconstruct
        return
    features: dict[Site, Features] = {}  # of the layers that the pass has reached

    def recon(x: Tensor, reads: Site, writes: Site) -> Tensor:
        features.update(dictionary.encode({reads: x}))
        return dictionary.output(features, writes, {reads: x})

    for part in outputs(dictionary):
        yield part.reads, part.writes, partial(recon, reads=part.reads, writes=part.writes)


def _checked(transcoders: Transcoders) -> list[Dictionary]:
    several: list[Dictionary] = [transcoders] if isinstance(transcoders, MultiLayer) else list(transcoders)
    if not several:
        raise InputError("no transcoder was given; load one for each layer with load_transcoder, or a CLT")
    written: dict[Site, str] = {}
    for dictionary in several:
        if isinstance(dictionary, MultiLayer) and not dictionary.is_transcoder:
            raise InputError(f"{dictionary.info.id} is a crosscoder: what it writes to a layer needs the layers above")
        for part in outputs(dictionary):
            if part.writes < part.reads:
                raise InputError(f"{part.info.id} writes {part.writes} before the model has reached {part.reads}")
            if part.writes in written:
                raise InputError(
                    f"{written[part.writes]} and {part.info.id} both write {part.writes}; give one for each layer"
                )
            written[part.writes] = part.info.id
    return several


def _read_at(read: Tensor | None, like: Tensor) -> Tensor:
    """bool [batch, n]"""
    batch, n = like.shape[:2]
    if read is None:
        read = torch.arange(n) > 0
    if read.shape[-1] != n or read.ndim > 2 or (read.ndim == 2 and len(read) not in (1, batch)):
        raise InputError(f"read is of {list(read.shape)} tokens, the pass of {[batch, n]}; give a bool for each token")
    return read.to(like.device).expand(batch, n)


def _fitting(cached: Tensor, own: Tensor, site: Site) -> Tensor:
    if cached.shape[1:] != own.shape[1:] or len(cached) not in (1, len(own)):
        raise InputError(
            f"the errors at {site} are of {list(cached.shape[:2])} tokens, the pass of {list(own.shape[:2])}; "
            "take them from a clean pass over the same tokens"
        )
    return cached.to(own).expand_as(own)
