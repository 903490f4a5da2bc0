"""Rows: the way encoders and decoders see a weight matrix, one row a feature.

Everything above asks only for some rows or for blocks of rows, so that a matrix on disk or in int8 can stand
behind the same interface.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator

from torch import Tensor, nn

__all__ = ["DenseRows", "Rows"]


class Rows(nn.Module):
    """A matrix [width, d] of one row a feature."""

    width: int
    d: int

    @abstractmethod
    def rows(self, ids: Tensor) -> Tensor:
        """[len(ids), d], the rows of some features."""

    @abstractmethod
    def blocks(self) -> Iterator[tuple[int, Tensor]]:
        """Yield (first feature, [features, d]) until every row was seen once, in order."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes held in memory."""


class DenseRows(Rows):
    """The whole matrix in memory."""

    # 16,384 features x 512 tokens of float32 pre-activations are 32 MB: large enough for the GEMM, small enough
    # to leave a 262k-wide dictionary room.
    BLOCK = 16384

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.width, self.d = weight.shape
        self.register_buffer("weight", weight)
        self.weight: Tensor

    def rows(self, ids: Tensor) -> Tensor:
        return self.weight[ids]

    def blocks(self) -> Iterator[tuple[int, Tensor]]:
        for start in range(0, self.width, self.BLOCK):
            yield start, self.weight[start : start + self.BLOCK]

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes
