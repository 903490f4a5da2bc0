"""Which features fire in training, and what that does to thresholds. Matrices are [features, tokens].

A feature fires where its pre-activation exceeds a level, and its activation is then the pre-activation:

    jumprelu    the feature's own threshold, learned (Rajamanoharan et al. 2024, arXiv:2407.14435)
    batchtopk   one level a batch, above which l0 features a token lie (Bussmann et al. 2024, arXiv:2412.06410)
    topk        one level a token, above which l0 features lie (Gao et al. 2024, arXiv:2406.04093)

A level never falls below zero. All three come down to JumpReLU when training ends.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gemlens.train.ranks import Ranks

__all__ = ["BANDWIDTH", "batch_level", "threshold_gradient", "token_level", "where_above"]

BANDWIDTH = 1.0
"""Width of the rectangle kernel, in units of the inputs, whose mean square is 1. At half of it thresholds spread, and
three times as many features end up dead; at twice of it they hardly differ from one another."""
_GROUP = 8
"""Features whose maximum is looked at first. Of 4 to 32, the quickest at 4,096 features of which 50 fire."""


def where_above(values: Tensor, margin: Tensor) -> Tensor:
    """``values`` where ``margin > 0``, zero elsewhere."""
    # The backward of relu does this in one pass, a comparison and a product in two, over the largest tensors there are.
    result: Tensor = torch.ops.aten.threshold_backward(values, margin, 0)
    return result


def batch_level(pre: Tensor, l0: float, hint: float, ranks: Ranks) -> Tensor:
    """The scalar that ``l0`` of [features, n] pre-activations a token exceed, or 0 if fewer are positive.

    Args:
        hint: a guess from below. Only what exceeds it is searched, unless that is too little.
    """
    count = int(l0 * pre.shape[1])
    candidates = pre[pre > max(hint, 0.0)]
    if hint > 0 and int(ranks.sum(torch.tensor(len(candidates)))) <= count:
        candidates = pre[pre > 0]
    largest = ranks.gather(_largest(candidates, count + 1))
    if len(largest) <= count:
        return pre.new_zeros(())
    return _largest(largest, count + 1).min()


def token_level(pre: Tensor, l0: int, ranks: Ranks) -> Tensor:
    """[n] levels that the ``l0`` largest of each token exceed."""
    largest = ranks.gather(_largest_of_each(pre, l0 + 1))
    if len(largest) <= l0:
        return pre.new_zeros(pre.shape[1])
    return largest.topk(l0 + 1, dim=0).values[-1].clamp(min=0)


def _largest_of_each(pre: Tensor, count: int) -> Tensor:
    """[count or all, n], the largest of each column of [features, n].

    Whatever is among them lies in one of the ``count`` groups of features with the largest maxima, since each group
    with a larger one holds a larger value. So most features are only looked at for their group's maximum.
    """
    features, n = pre.shape
    # Along contiguous memory the search takes half the time, the copy included.
    by_token = pre.T.contiguous()
    groups, rest = divmod(features, _GROUP)
    if not rest and groups > 2 * count:
        maxima = pre.reshape(groups, _GROUP, n).amax(dim=1).T.contiguous()
        hold = maxima.topk(count, sorted=False).indices + torch.arange(n, device=pre.device)[:, None] * groups
        by_token = torch.nn.functional.embedding(hold, by_token.view(-1, _GROUP)).view(n, -1)
    return by_token.topk(min(count, by_token.shape[1]), dim=1).values.T.contiguous()


def threshold_gradient(margin: Tensor, d_acts: Tensor, threshold: Tensor, d_l0: float, bandwidth: float) -> Tensor:
    """[features] gradient of a loss with respect to thresholds, by the pseudo-derivatives of the paper.

        d JumpReLU / d threshold = -(threshold / eps) K((pre - threshold) / eps)
        d step     / d threshold = -(1 / eps)         K((pre - threshold) / eps)

    with K the rectangle of width 1.

    Args:
        margin: pre - threshold, [features, n].
        d_acts: gradient with respect to activations, [features, n].
        d_l0: gradient with respect to each entry of ``step(margin)``.
    """
    inside = _where_within(d_acts, margin, bandwidth / 2).sum(dim=1, dtype=torch.float32)
    crowd = _where_within(torch.ones_like(d_acts), margin, bandwidth / 2).sum(dim=1, dtype=torch.float32)
    return -(threshold * inside + d_l0 * crowd) / bandwidth


def _where_within(values: Tensor, margin: Tensor, limit: float) -> Tensor:
    """``values`` where ``|margin| < limit``, zero elsewhere, in one pass."""
    result: Tensor = torch.ops.aten.hardtanh_backward(values, margin, -limit, limit)
    return result


def _largest(values: Tensor, count: int) -> Tensor:
    return values.topk(min(count, len(values)), sorted=False).values
