"""Sparse features of saved activations."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["EncodedPart", "Encoding"]


@dataclass(frozen=True, slots=True, eq=False)
class EncodedPart:
    """Tokens one after another; token t owns ``ids[indptr[t]:indptr[t + 1]]``, ascending, and ``values`` alike."""

    first: int
    """Number of the first token, over all sequences."""
    indptr: NDArray[np.int64]
    ids: NDArray[np.int32]
    values: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Encoding:
    """What a file of sparse features is of."""

    dictionary: str
    """Release and path."""
    site: str
    """Where the dictionary reads."""
    shape: tuple[int, ...]
    """[n, width], or [n, sequence, width]."""
    source: str
    """The file of activations."""
    version: str
    """Of gemlens."""
    top_k: int | None
    """Features kept a token; all that fire where None."""
    skip: int
    """Tokens left out, as if nothing fired, at the start of each sequence."""
