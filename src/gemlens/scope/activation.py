"""Which features fire, given their pre-activations: JumpReLU (ReLU is threshold 0) and TopK.

    JumpReLU   acts = relu(pre) * (pre > threshold)
    TopK       acts = relu(pre) on the k largest pre-activations of a token, 0 elsewhere

Pre-activations arrive in blocks of features, so an activation says which of a block may fire (``mask``) and, once
all blocks of a token are together, which do (``thin``). Every activation of a feature that fires is its ``pre``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from gemlens.scope.features import Features

__all__ = ["Activation", "JumpReLU", "TopK"]


class Activation(Protocol):
    def mask(self, pre: Tensor, threshold: Tensor) -> Tensor:
        """bool [n, features of a block]: a superset of what fires, all of it positive."""

    def thin(self, features: Features) -> Features:
        """What fires, of all that ``mask`` let through."""

    def least(self, threshold: Tensor) -> Tensor | None:
        """[features], what a pre-activation must exceed to fire, whatever the others are; None if that is not all."""


@dataclass(frozen=True)
class JumpReLU:
    """Rajamanoharan et al. 2024 (arXiv:2407.14435)."""

    def mask(self, pre: Tensor, threshold: Tensor) -> Tensor:
        return pre > self.least(threshold)

    def thin(self, features: Features) -> Features:
        return features

    def least(self, threshold: Tensor) -> Tensor:
        # relu(pre) * (pre > threshold) is positive exactly where pre exceeds both.
        return threshold.clamp(min=0)


@dataclass(frozen=True)
class TopK:
    """Gao et al. 2024 (arXiv:2406.04093); thresholds play no part. Of equal activations the lower id wins."""

    k: int

    def mask(self, pre: Tensor, threshold: Tensor) -> Tensor:  # noqa: ARG002
        least = pre.topk(min(self.k, pre.shape[1]), dim=1).values[:, -1:]
        return (pre >= least) & (pre > 0)

    def thin(self, features: Features) -> Features:
        tokens = features.tokens
        # By token, then strongest first, then by id: two stable sorts, the last key first.
        order = features.values.argsort(descending=True, stable=True)
        order = order[tokens[order].argsort(stable=True)]
        rank = torch.arange(len(order), device=order.device) - features.indptr[tokens]
        kept = order[rank < self.k].sort().values
        indptr = torch.zeros_like(features.indptr)
        indptr[1:] = features.l0.clamp(max=self.k).cumsum(0)
        return Features(indptr, features.ids[kept], features.values[kept], features.width)

    def least(self, threshold: Tensor) -> None:  # noqa: ARG002
        return None
