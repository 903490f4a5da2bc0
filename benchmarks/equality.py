"""Do two sides compute the same features of the same activations?

which features are active. One whose pre-activation lies within rounding of its threshold may differ: counted
their values, relative to the value, to 1e-5. A small rest of a large sum may differ by the rounding of it: counted
reconstructions, relative to the norm of the whole, to 1e-5, of tokens with the same active features
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gemlens.scope.multilayer import Layer, MultiLayer
from gemlens.scope.sae import SAE

__all__ = ["TOLERANCE", "Check", "Encoder", "Side", "compare", "compare_layers", "encoder_of", "ours_of"]

TOLERANCE = 1e-5
# Rounding of a sum of a few hundred float32 products, relative to the sum of their sizes.
ROUNDING = 1e-6


@dataclass(frozen=True)
class Check:
    """One comparison; the same active features, and values within ``TOLERANCE`` or rounding, make it hold."""

    name: str
    peer: str
    tokens: int
    features: int
    active: int
    """Feature activations, on our side."""
    differing: int
    """Active on one side only."""
    differing_at_threshold: int
    """Of these, with a pre-activation within rounding of the threshold: allowed."""
    worst_value: float
    """Largest relative difference of an activation."""
    apart: int
    """Activations that differ by more than ``TOLERANCE``."""
    apart_by_rounding: int
    """Of these, by no more than the rounding of the sum that they are the rest of: allowed."""
    worst_reconstruction: float
    note: str = ""

    @property
    def holds(self) -> bool:
        same = self.differing == self.differing_at_threshold and self.apart == self.apart_by_rounding
        return self.active > 0 and same and self.worst_reconstruction <= TOLERANCE


@dataclass(frozen=True)
class Side:
    """What one side makes of the same activations."""

    acts: Tensor
    """[n, F]"""
    recon: Tensor
    """[n, d]"""


@dataclass(frozen=True)
class Encoder:
    """The encoder's numbers, to tell in float64 how well float32 can know a pre-activation."""

    w_enc: Tensor
    b_enc: Tensor
    threshold: Tensor

    def rounding(self, x: Tensor, where: Tensor) -> tuple[Tensor, Tensor]:
        """Pre-activation minus threshold, and the rounding of its sum, one for each True of ``where`` [n, F]."""
        token, feature = where.nonzero(as_tuple=True)
        products = x[token].double() * self.w_enc.T[feature].double()
        b = self.b_enc[feature].double()
        pre, size = products.sum(1) + b, products.abs().sum(1) + b.abs()
        return pre - self.threshold[feature].double().clamp(min=0), ROUNDING * size


def compare(name: str, peer: str, ours: Side, theirs: Side, encoder: Encoder, x: Tensor, note: str = "") -> Check:
    differing = (ours.acts > 0) != (theirs.acts > 0)
    both = (ours.acts > 0) & (theirs.acts > 0)
    difference = (ours.acts - theirs.acts).abs()
    relative = difference[both] / ours.acts[both]
    apart = both & (difference > TOLERANCE * ours.acts)
    beyond, near = encoder.rounding(x, differing)
    alike = ~differing.any(dim=1)
    return Check(
        name=name,
        peer=peer,
        tokens=len(x),
        features=ours.acts.shape[1],
        active=int((ours.acts > 0).sum()),
        differing=int(differing.sum()),
        differing_at_threshold=int((beyond.abs() <= near).sum()),
        worst_value=float(relative.max()) if relative.numel() else 0.0,
        apart=int(apart.sum()),
        apart_by_rounding=int((difference[apart] <= encoder.rounding(x, apart)[1]).sum()),
        worst_reconstruction=float((ours.recon - theirs.recon)[alike].norm() / ours.recon[alike].norm()),
        note=note,
    )


def compare_layers(name: str, peer: str, clt: MultiLayer, theirs: Any, x: Tensor, note: str = "") -> Iterator[Check]:
    """A CLT and circuit-tracer's, layer by layer, on [layers, n, d]."""
    given = dict(zip(clt.reads, x, strict=True))
    features, recon = clt.encode(given), clt.reconstruct(given)
    with torch.no_grad():
        acts = theirs.encode(x)
        decoded = theirs.decode(acts.to_sparse(), x)
    for index, (reads, writes) in enumerate(zip(clt.reads, clt.writes, strict=True)):
        ours, side = Side(features[reads].dense(), recon[writes]), Side(acts[index], decoded[index])
        encoder = encoder_of(clt.layer(reads))
        yield compare(f"{name}, layer {reads.layer}", peer, ours, side, encoder, x[index], note)


def encoder_of(weights: SAE | Layer) -> Encoder:
    w_enc = torch.cat([block for _, block in weights.encoder.blocks()]).T
    return Encoder(w_enc, weights.b_enc, weights.threshold)


def ours_of(sae: SAE, x: Tensor) -> Side:
    return Side(sae.encode(x).dense(), sae.reconstruct(x))
