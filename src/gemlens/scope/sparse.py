"""The two halves of every dictionary, sparse: features of activations, and the sum of the rows that fired."""

from __future__ import annotations

import torch
from torch import Tensor

from gemlens.scope.activation import Activation
from gemlens.scope.features import Features
from gemlens.scope.rows import Rows
from gemlens.scope.screen import Screen, products

__all__ = ["encode", "weighted_sum"]

# In parts, so that the pre-activations of a long text do not have to fit in memory.
_TOGETHER = 1024


def encode(x: Tensor, encoder: Rows, b_enc: Tensor, threshold: Tensor, activation: Activation) -> Features:
    """Sparse ``activation(x @ encoder.T + b_enc)`` of [n, d_in], in the dtype of ``b_enc``.

    Where the rows have a screen, only what passes it is computed; the features are the same.
    """
    screen = encoder.screen(len(x)) if activation.least(threshold) is not None else None
    parts = [_encode(part.to(b_enc), encoder, b_enc, threshold, activation, screen) for part in x.split(_TOGETHER)]
    return Features.concatenate(parts)


def _encode(
    x: Tensor, encoder: Rows, b_enc: Tensor, threshold: Tensor, activation: Activation, screen: Screen | None
) -> Features:
    rounded = screen.tokens(x) if screen is not None else None
    found = []
    for start, block in encoder.blocks():
        of_block = slice(start, start + len(block))
        bias, least = b_enc[of_block], activation.least(threshold[of_block])
        if screen is not None and rounded is not None and least is not None:
            token, feature = screen.passing(rounded, start, bias, least)
            pre = products(x, block, token, feature) + bias[feature]
            fires = pre > least[feature]
            found.append((token[fires], feature[fires] + start, pre[fires]))
        else:
            pre = torch.addmm(bias, x, block.T)
            token, feature = activation.mask(pre, threshold[of_block]).nonzero(as_tuple=True)
            found.append((token, feature + start, pre[token, feature]))
    tokens, ids, values = (torch.cat(parts) for parts in zip(*found, strict=True))
    if len(found) > 1:
        order = tokens.argsort(stable=True)
        tokens, ids, values = tokens[order], ids[order], values[order]
    indptr = torch.zeros(len(x) + 1, dtype=torch.int64, device=x.device)
    indptr[1:] = torch.bincount(tokens, minlength=len(x)).cumsum(0)
    return activation.thin(Features(indptr, ids, values, encoder.width))


def weighted_sum(features: Features, decoder: Rows, *, stride: int = 1, offset: int = 0) -> Tensor:
    """[n, d] = acts @ w_dec, reading only the rows of active features.

    Row ``id * stride + offset`` of ``decoder`` belongs to feature ``id``: a feature with a row for each of several
    layers has them side by side.
    """
    return decoder.weighted_sum(features.ids * stride + offset, features.indptr, features.values)
