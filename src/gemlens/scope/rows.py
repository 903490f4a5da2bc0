"""Rows: the way encoders and decoders see a weight matrix, one row a feature.

Everything above asks only for some rows or for blocks of rows, so that a matrix on disk or in int8 can stand
behind the same interface.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn import functional as F

from gemlens.scope.screen import Screen, screens_on

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

    def weighted_sum(self, ids: Tensor, indptr: Tensor, weights: Tensor) -> Tensor:
        """[n, d], of each run ``ids[indptr[i]:indptr[i + 1]]`` its rows times ``weights``, added."""
        active, entries = ids.unique(return_inverse=True)
        return _weighted_sum(self.rows(active), entries, indptr, weights)

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes held in memory."""

    def screen(self, tokens: int) -> Screen | None:  # noqa: ARG002
        """What bounds the products with so many tokens, where that is quicker than computing them."""
        return None


class DenseRows(Rows):
    """The whole matrix in memory; on a CPU that multiplies bfloat16, a screen beside it once that pays.

    ``screening = False`` does without. The screen takes half the bytes of a float32 matrix, counted in ``nbytes``.
    """

    # 16,384 features x 512 tokens of float32 pre-activations are 32 MB: large enough for the GEMM, small enough
    # to leave a 262k-wide dictionary room.
    BLOCK = 16384
    # Building a screen takes as long as it saves over so many tokens: a short prompt does without.
    SCREEN_FROM = 512
    # Below, the product only reads the matrix, and the rows that pass are read again.
    SCREEN_TOGETHER = 4

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.width, self.d = weight.shape
        self.register_buffer("weight", weight)
        self.weight: Tensor
        self.screening = True
        self._screen: Screen | None = None
        self._screened: tuple[int, int] | None = None
        self._tokens_seen = 0

    def rows(self, ids: Tensor) -> Tensor:
        return self.weight[ids]

    def blocks(self) -> Iterator[tuple[int, Tensor]]:
        for start in range(0, self.width, self.BLOCK):
            yield start, self.weight[start : start + self.BLOCK]

    def weighted_sum(self, ids: Tensor, indptr: Tensor, weights: Tensor) -> Tensor:
        # Straight from the matrix: a copy of the active rows would be most of it over a long text.
        return _weighted_sum(self.weight, ids, indptr, weights)

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes + self.screen_nbytes

    @property
    def screen_nbytes(self) -> int:
        return self._screen.nbytes if self._screen else 0

    def screen(self, tokens: int) -> Screen | None:
        if not self.screening or not screens_on(self.weight):
            self._screen = None
            return None
        if self._screened != (now := _state(self.weight)):
            self._screen, self._screened, self._tokens_seen = None, now, 0
        self._tokens_seen += tokens
        if self._screen is None and self._tokens_seen >= self.SCREEN_FROM:
            self._screen = Screen(self.weight)
        return self._screen if tokens >= self.SCREEN_TOGETHER else None


def _weighted_sum(rows: Tensor, entries: Tensor, indptr: Tensor, weights: Tensor) -> Tensor:
    if not len(entries):
        return rows.new_zeros(len(indptr) - 1, rows.shape[1])
    return F.embedding_bag(
        entries, rows, indptr, mode="sum", per_sample_weights=weights.to(rows.dtype), include_last_offset=True
    )


def _state(tensor: Tensor) -> tuple[int, int]:
    """Differs once a tensor was written to or put elsewhere."""
    return tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version
