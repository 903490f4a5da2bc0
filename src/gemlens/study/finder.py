"""What finds the features of many rows of text: one forward pass for all dictionaries."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from gemlens.lm.gemma import Model, activations
from gemlens.scope.features import Features
from gemlens.scope.int8 import Int8Rows
from gemlens.scope.rows import DenseRows
from gemlens.scope.sae import SAE

__all__ = ["Batch", "Find", "Passes", "finder"]

_UNPACKED = 1 << 28
"""Bytes up to which an int8 encoder is turned into float32, which can be screened."""

Batch = NDArray[np.int64]
"""[rows, row length] token ids, BOS first."""
Find = Callable[[Batch], Sequence[Features]]
"""The features of a batch, for each dictionary, by row and token, BOS left out."""
Passes = Callable[[Iterable[Batch]], Iterable[Sequence[Features]]]
"""The same of each of many batches, in their order."""


def finder(model: Model, dictionaries: Sequence[SAE]) -> Find:
    """What finds features in this process; one forward pass for all dictionaries."""
    quick = [_unpacked(dictionary) for dictionary in dictionaries]
    sites = sorted({dictionary.reads for dictionary in dictionaries})

    def find(batch: Batch) -> list[Features]:
        read = activations(model, torch.from_numpy(batch), sites)
        flat = {site: tensor[:, 1:].flatten(0, 1) for site, tensor in read.items()}
        return [dictionary.encode(flat[dictionary.reads]) for dictionary in quick]

    return find


def _unpacked(sae: SAE) -> SAE:
    """The same with its encoder in float32, where that is not much: screened, it is quicker than int8."""
    if not isinstance(sae.encoder, Int8Rows) or 4 * sae.encoder.width * sae.encoder.d > _UNPACKED:
        return sae
    encoder = DenseRows(torch.cat([block for _, block in sae.encoder.blocks()]))
    small = {name: getattr(sae, name) for name in ("b_enc", "b_dec", "threshold", "skip", "reads", "writes", "info")}
    return SAE(encoder, sae.decoder, activation=sae.activation, **small)
