"""The tensors of a dictionary in training: one ``Weights`` for each layer whose features it has, a row a feature."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional as F

from gemlens.train.activation import batch_level
from gemlens.train.config import FitConfig
from gemlens.train.ranks import Ranks, share

__all__ = ["Weights", "initial_weights"]

_FIRST_LEVEL = 1024
"""Tokens of the sample from which JumpReLU's first thresholds are taken."""


@dataclass
class Weights:
    """The features of one layer, with the bias and the skip of the site that this layer writes.

    An SAE or transcoder has one of these, a CLT one a layer. The same record holds gradients and copies in bfloat16.
    """

    w_enc: Tensor
    """[F, d_in]"""
    b_enc: Tensor
    """[F]"""
    w_dec: Tensor
    """[F, d_out of all sites written, side by side]. A row has norm 1 as a whole: a feature's activation says how much
    it writes in all, and training decides how that is shared among layers."""
    b_dec: Tensor
    """[d_out]"""
    log_threshold: Tensor | None = None
    """[F], JumpReLU only; the logarithm keeps thresholds positive."""
    skip: Tensor | None = None
    """[d_in, d_out]"""

    def tensors(self) -> dict[str, Tensor]:
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def of_features(self) -> list[Tensor]:
        """Those with a row a feature, which processes share out; all others each of them holds."""
        own = (self.w_enc, self.b_enc, self.w_dec, self.log_threshold)
        return [tensor for tensor in own if tensor is not None]

    def zeros(self) -> Weights:
        return Weights(**{name: torch.zeros_like(tensor) for name, tensor in self.tensors().items()})

    def to(self, dtype: torch.dtype) -> Weights:
        return Weights(**{name: tensor.to(dtype) for name, tensor in self.tensors().items()})

    def gathered(self, ranks: Ranks) -> Weights:
        """Those of all features, where each process holds a slice."""
        thresholds = None if self.log_threshold is None else ranks.gather(self.log_threshold)
        w_enc, b_enc, w_dec = (ranks.gather(tensor) for tensor in (self.w_enc, self.b_enc, self.w_dec))
        return Weights(w_enc, b_enc, w_dec, self.b_dec, thresholds, self.skip)

    @torch.no_grad()
    def normalize(self) -> None:
        self.w_dec.div_(torch.linalg.vector_norm(self.w_dec, dim=1, keepdim=True))


def initial_weights(
    config: FitConfig, x: Tensor, y: Tensor, d_out: int, generator: torch.Generator, ranks: Ranks
) -> Weights:
    """Encoder rows of random direction; decoder rows are what the features' directions predict, linearly, of y.

    An SAE's features so read what they write. A skip starts as the best linear prediction: from zero it has not
    caught up after half a million tokens. Thresholds start where L0 is on its target, which otherwise would have to
    come down from a large part of the width. All features are drawn and those of this process kept, so that they are
    the same over any number of processes.

    Args:
        x: the sample that this layer reads, [n, d_in], scaled.
        y: the sample that it writes, [n, d_out of all its outputs], scaled; ``x`` itself for an SAE.
    """
    own = share(config.width, ranks)
    # Drawn on the CPU: a seed then means the same on every device.
    w_enc = F.normalize(torch.randn(config.width, x.shape[1], generator=generator)[own].to(x.device), dim=1)
    linear = torch.eye(x.shape[1], device=x.device) if y is x else _least_squares(x, y)
    b_enc, b_dec = w_enc.new_zeros(len(w_enc)), w_enc.new_zeros(d_out)
    weights = Weights(w_enc, b_enc, F.normalize(w_enc @ linear, dim=1), b_dec)
    if config.activation == "jumprelu":
        level = batch_level(w_enc @ x[:_FIRST_LEVEL].T, config.l0, 0.0, ranks)
        weights.log_threshold = torch.full_like(b_enc, math.log(max(float(level), 1e-3)))
    if config.skip:
        weights.skip = linear[:, :d_out].clone()
    return weights


def _least_squares(x: Tensor, y: Tensor) -> Tensor:
    """[d_in, d_out] that best predicts y from x, ridged enough for samples shorter than d_in."""
    ridge = 1e-3 * len(x) * torch.eye(x.shape[1], device=x.device)
    return torch.linalg.solve(x.T @ x + ridge, x.T @ y)
