"""What finds the features of many rows of text: one forward pass for all dictionaries."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from gemlens.lm.gemma import Model, activations
from gemlens.lm.load import load_model
from gemlens.scope.features import Features
from gemlens.scope.int8 import Int8Rows
from gemlens.scope.load import load_sae
from gemlens.scope.rows import DenseRows
from gemlens.scope.sae import SAE

__all__ = ["Batch", "Find", "Passes", "Plain", "features_of", "finder", "load_finder"]

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
    quick = [_quick(dictionary) for dictionary in dictionaries]
    sites = sorted({dictionary.reads for dictionary in dictionaries})

    def find(batch: Batch) -> list[Features]:
        read = activations(model, torch.from_numpy(batch), sites)
        flat = {site: tensor[:, 1:].flatten(0, 1) for site, tensor in read.items()}
        return [dictionary.encode(flat[dictionary.reads]) for dictionary in quick]

    return find


Plain = tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32], int]
"""``indptr``, ``ids``, ``values`` and ``width`` of Features, as they go from one process to another."""


def load_finder(
    model_id: str, release: str, paths: Sequence[str], *, device: str, dtype: str, threads: int
) -> Callable[[Batch], list[Plain]]:
    """The same in a process that has nothing yet: model and dictionaries are loaded there.

    Args:
        threads: of torch, as in the process that collects, so that the last bits are the same.
    """
    torch.set_num_threads(threads)
    model = load_model(model_id, device=device, dtype=dtype)
    find = finder(model, [load_sae(release, path, device=model.device) for path in paths])

    def plain(batch: Batch) -> list[Plain]:
        return [
            (
                each.indptr.cpu().numpy(),
                each.ids.to("cpu", torch.int32).numpy(),
                each.values.to("cpu", torch.float32).numpy(),
                each.width,
            )
            for each in find(batch)
        ]

    return plain


def features_of(plain: Sequence[Plain]) -> list[Features]:
    """What ``load_finder``'s function found, as Features again."""
    # Arrays from another process may not be written to, which torch warns of: copies may.
    return [
        Features(
            torch.from_numpy(indptr.copy()),
            torch.from_numpy(ids.astype(np.int64)),
            torch.from_numpy(values.copy()),
            width,
        )
        for indptr, ids, values, width in plain
    ]


def _quick(sae: SAE) -> SAE:
    """The same, with an encoder that is screened from the first token on.

    One that came before has forgotten what it saw: whether a screen was in use shows in the last bit, and a run that
    goes on, or another worker, has to find what an unbroken one does. int8 is turned into float32, which can be
    screened, where that is not much.
    """
    encoder = sae.encoder
    if isinstance(encoder, Int8Rows) and 4 * encoder.width * encoder.d <= _UNPACKED:
        encoder = DenseRows(torch.cat([block for _, block in encoder.blocks()]))
    elif isinstance(encoder, DenseRows):
        encoder = DenseRows(encoder.weight)
    if isinstance(encoder, DenseRows):
        encoder.SCREEN_FROM = 1
        encoder.screening = getattr(sae.encoder, "screening", True)
    small = {name: getattr(sae, name) for name in ("b_enc", "b_dec", "threshold", "skip", "reads", "writes", "info")}
    return SAE(encoder, sae.decoder, activation=sae.activation, **small)
