"""Loss and gradients of a dictionary, written out by hand. Matrices of features are [features, n].

    pre_i   = w_enc_i @ x_i.T + b_enc_i
    acts_i  = pre_i where pre_i > level_i                                  (``activation``)
    recon_j = sum_{i <= j} acts_i.T @ w_dec_i[:, j] + b_dec_j (+ x_j @ skip_j)
    loss    = mean over tokens (by importance) and dimensions of (y - recon)^2
              + penalty * mean over layers of (L0_i / l0 - 1)^2             JumpReLU; Gemma Scope 2
              + auxiliary loss of dead features                            Gao et al. 2024, arXiv:2406.04093

An SAE or transcoder is the case of one layer. What layer i writes are the last columns of y, all outputs side by
side, so that decoding to many layers is one product. With Matryoshka groups (Bussmann et al. 2025, arXiv:2503.17547)
the squared error is the mean over prefixes, and a feature answers for the errors of the prefixes that hold it.

Passes over [features, n] cost as much as products do; autograd makes twice as many, and in float32. Products with
activations are taken in ``firing``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from gemlens.train.activation import BANDWIDTH, batch_level, threshold_gradient, token_level, where_above
from gemlens.train.config import FitConfig
from gemlens.train.firing import Dense, Firing, firing
from gemlens.train.ranks import Ranks, share
from gemlens.train.weights import Weights

__all__ = ["Outcome", "token_weights", "train_pass"]

AUXILIARY_WEIGHT = 1 / 32
PENALTY = 4.0
"""Of the L0 penalty, in units of the squared error: L0 ends 2 % above its target, 6 % with a quarter of it."""

_LEVEL_TOKENS = 256
"""Of a batch, from which TopK's threshold learns."""


class Outcome(NamedTuple):
    """What a pass found, beside the gradients."""

    loss: float
    fvu: float
    """Of this batch, in scaled units, so that every site written counts alike."""
    l0: float
    """Mean over layers."""
    levels: list[float]
    """A layer each: what ``l0`` features a token exceed in this batch; of JumpReLU, nothing."""
    fired: list[Tensor]
    """A layer each: [features of this process], bool."""


@dataclass
class _Layer:
    """One layer within a pass."""

    weights: Weights
    """In the dtype of products."""
    grads: Weights
    """In float32, written in place."""
    x: Tensor
    """[n, d_in], in the dtype of products."""
    first: int
    """Column of y at which this layer's features begin to write."""
    pre: Tensor
    firing: Firing
    level: float


def token_weights(y: Tensor, limit: float) -> Tensor:
    """[n] weights that keep tokens of high norm from dominating: 1 up to ``limit`` times the median square norm."""
    energy = y.pow(2).sum(dim=1)
    return (limit * energy.median() / energy).clamp(max=1)


def train_pass(
    weights: Sequence[Weights],
    grads: Sequence[Weights],
    x: Sequence[Tensor],
    y: Tensor,
    config: FitConfig,
    *,
    dead: Sequence[Tensor],
    hints: Sequence[float],
    warmth: float,
    ranks: Ranks,
) -> Outcome:
    """Fill ``grads`` for one batch.

    Args:
        weights: a layer each, in the dtype in which products are taken.
        grads: of the same shapes, float32; overwritten.
        x: what each layer reads, [n, d_in], scaled.
        y: [n, d_out of all layers], float32, scaled.
        dead: ids of the dead features of each layer that get the auxiliary loss, on every process the same.
        hints: a guess of each layer's level, from below.
        warmth: share of the L0 penalty in force.
    """
    d_out = y.shape[1] // len(weights)
    layers = []
    for index, (own, own_grads, read) in enumerate(zip(weights, grads, x, strict=True)):
        layers.append(_encode(own, own_grads, read.to(own.w_enc.dtype), index * d_out, config, hints[index], ranks))
    held = share(config.width, ranks)
    blocks = _blocks(config, held)
    errors = _errors(layers, y, blocks, ranks)
    importance = token_weights(y, config.norm_limit)
    scale = -2 * importance[:, None] / (y.numel() * len(blocks))
    loss = sum(_weighted_mean(error, importance) for error in errors) / len(blocks)
    firings = [layer.firing.counts() for layer in layers]
    l0s = [float(ranks.sum(each.sum())) / len(y) for each in firings]
    # The prefixes that hold a block are its own and all longer ones.
    owed = torch.stack(errors).flip(0).cumsum(0).flip(0) * scale
    for layer, l0 in zip(layers, l0s, strict=True):
        excess = PENALTY * warmth * (l0 / config.l0 - 1) / len(layers) if layer.weights.log_threshold is not None else 0
        loss += excess * (l0 / config.l0 - 1)
        _backward(layer, owed, blocks, 2 * excess / (config.l0 * len(y)))
    for layer, ids in zip(layers, dead, strict=True):
        if len(ids):
            here = ids[(ids >= held.start) & (ids < held.stop)] - held.start
            loss += _auxiliary(layer, here, errors[-1], importance, AUXILIARY_WEIGHT / len(layers), ranks)
    fvu = errors[-1].pow(2).sum() / (y - y.mean(dim=0)).pow(2).sum()
    levels, fired = [layer.level for layer in layers], [each > 0 for each in firings]
    return Outcome(float(loss), float(fvu), sum(l0s) / len(l0s), levels, fired)


def _encode(
    weights: Weights, grads: Weights, x: Tensor, first: int, config: FitConfig, hint: float, ranks: Ranks
) -> _Layer:
    pre = torch.addmm(weights.b_enc[:, None], weights.w_enc, x.T)
    if weights.log_threshold is not None:
        margin = pre - weights.log_threshold.exp()[:, None]
        return _Layer(weights, grads, x, first, pre, Dense(pre, margin, weights), 0.0)
    if config.activation == "topk":
        # The level of a batch is only asked for because the threshold is their mean in the end.
        cut = batch_level(pre[:, :_LEVEL_TOKENS], config.l0, hint, ranks)
        level = token_level(pre, int(config.l0), ranks)
    else:
        cut = level = batch_level(pre, config.l0, hint, ranks)
    fire = firing(pre, level, weights, config.l0 / config.width)
    return _Layer(weights, grads, x, first, pre, fire, float(cut))


def _blocks(config: FitConfig, held: slice) -> list[slice]:
    """The features that each Matryoshka prefix adds to the one before, counted from the first of this process."""
    edges = [min(max(edge, held.start), held.stop) - held.start for edge in (0, *config.groups, config.width)]
    return [slice(start, stop) for start, stop in pairwise(edges)]


def _errors(layers: Sequence[_Layer], y: Tensor, blocks: Sequence[slice], ranks: Ranks) -> list[Tensor]:
    """y - recon, [n, d] float32, of every prefix."""
    without = [layer.weights.b_dec.float().expand(len(y), -1) for layer in layers]
    for index, layer in enumerate(layers):
        if layer.weights.skip is not None:
            without[index] = without[index] + layer.x @ layer.weights.skip
    errors = [y - (torch.cat(without, dim=1) if len(without) > 1 else without[0])]
    for rows in blocks:
        written = torch.zeros_like(y)
        for layer in layers:
            written[:, layer.first :] += layer.firing.decode(rows)
        errors.append(errors[-1] - ranks.sum(written))
    return errors[1:]


def _backward(layer: _Layer, owed: Tensor, blocks: Sequence[slice], d_l0: float) -> None:
    """Gradients of the reconstruction and of L0.

    Args:
        owed: [blocks, n, d], the gradient with respect to what each block writes.
        d_l0: the gradient with respect to each firing.
    """
    weights, grads = layer.weights, layer.grads
    layer.firing.backward(grads, layer.x, blocks, list(owed[:, :, layer.first :]))
    own = owed[0, :, layer.first : layer.first + len(weights.b_dec)]
    grads.b_dec.copy_(own.sum(dim=0))
    if grads.skip is not None:
        grads.skip.copy_(layer.x.T @ own.to(layer.x.dtype))
    if weights.log_threshold is not None and grads.log_threshold is not None and isinstance(layer.firing, Dense):
        threshold, margin = weights.log_threshold.float().exp(), layer.firing.margin
        gradient = threshold_gradient(margin, layer.firing.d_acts, threshold, d_l0, BANDWIDTH)
        grads.log_threshold.copy_(threshold * gradient)


def _auxiliary(layer: _Layer, ids: Tensor, error: Tensor, importance: Tensor, weight: float, ranks: Ranks) -> Tensor:
    """How badly the dead features, all that are positive, reconstruct what the living leave over; adds gradients."""
    target = error[:, layer.first :]
    acts, w_dec = layer.pre[ids].clamp(min=0), layer.weights.w_dec[ids]
    left = target - ranks.sum((acts.T @ w_dec).float())
    sent = (left * (-2 * weight / left.numel() * importance[:, None])).to(acts.dtype)
    d_pre = where_above(w_dec @ sent.T, acts)
    layer.grads.w_dec.index_add_(0, ids, (acts @ sent).float())
    layer.grads.w_enc.index_add_(0, ids, (d_pre @ layer.x).float())
    layer.grads.b_enc.index_add_(0, ids, d_pre.sum(dim=1).float())
    return weight * _weighted_mean(left, importance)


def _weighted_mean(error: Tensor, importance: Tensor) -> Tensor:
    return (importance * error.pow(2).mean(dim=1)).mean()
