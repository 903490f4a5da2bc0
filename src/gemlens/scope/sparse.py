"""The two halves of every dictionary, sparse: features of activations, and the sum of the rows that fired."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from gemlens.scope.activation import Activation
from gemlens.scope.features import Features
from gemlens.scope.rows import Rows

__all__ = ["encode", "weighted_sum"]

# In parts, so that the pre-activations of a long text do not have to fit in memory.
_TOGETHER = 1024


def encode(x: Tensor, encoder: Rows, b_enc: Tensor, threshold: Tensor, activation: Activation) -> Features:
    """Sparse ``activation(x @ encoder.T + b_enc)`` of [n, d_in], in the dtype of ``b_enc``."""
    parts = [_encode(part.to(b_enc), encoder, b_enc, threshold, activation) for part in x.split(_TOGETHER)]
    return Features.concatenate(parts)


def _encode(x: Tensor, encoder: Rows, b_enc: Tensor, threshold: Tensor, activation: Activation) -> Features:
    found = []
    for start, block in encoder.blocks():
        stop = start + len(block)
        pre = torch.addmm(b_enc[start:stop], x, block.T)
        token, feature = activation.mask(pre, threshold[start:stop]).nonzero(as_tuple=True)
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
    active, entries = features.ids.unique(return_inverse=True)
    rows = decoder.rows(active * stride + offset)
    if not len(active):
        return rows.new_zeros(len(features), decoder.d)
    return F.embedding_bag(
        entries,
        rows,
        features.indptr,
        mode="sum",
        per_sample_weights=features.values.to(rows.dtype),
        include_last_offset=True,
    )
