"""Activations of a model over a lot of text, a few rows at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gemlens.batched import batched
from gemlens.lm.gemma import Model, activations
from gemlens.sites import Site

__all__ = ["activation_stream"]


def activation_stream(
    model: Model, rows: Iterable[NDArray[np.int64]], site: Site, *, together: int = 32
) -> Iterator[Tensor]:
    """Yield [tokens, d] activations of ``together`` rows of equal length at a time, the first token (BOS) left out."""
    for group in batched(rows, together):
        tokens = torch.from_numpy(np.stack(group))
        yield activations(model, tokens, [site])[site][:, 1:].flatten(0, 1)
