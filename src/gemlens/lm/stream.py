"""Activations of a model over a lot of text, a few rows at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gemlens.batched import batched
from gemlens.lm.gemma import Model, activations
from gemlens.sites import Site

__all__ = ["TOGETHER", "activation_stream"]

TOGETHER = 32
"""Rows of one forward pass. Sums depend on it in the last bit, so whoever takes up a stream again does so at a
multiple of it."""


def activation_stream(
    model: Model, rows: Iterable[NDArray[np.int64]], sites: Sequence[Site], *, together: int = TOGETHER
) -> Iterator[dict[Site, Tensor]]:
    """Activations at several sites, from one forward pass for all of them.

    Args:
        rows: token ids, all of one length, BOS first.
        together: rows of one forward pass.

    Yields:
        For each site [tokens, d] of ``together`` rows, in the dtype of the model, BOS left out.

    Raises:
        MismatchError: the model lacks a layer.
        WeightsError: the activations are not finite.
    """
    for group in batched(rows, together):
        found = activations(model, torch.from_numpy(np.stack(group)), sites)
        yield {site: tensor[:, 1:].flatten(0, 1) for site, tensor in found.items()}
