"""How much of a site's variance a linear map of few dimensions explains: what a dictionary should beat.

A dictionary of L0 = k tells a token by k numbers, and chooses for each token which ones. A linear map of rank k has to
do with the same k directions for all. The best one from x to y, both centred:

1. Least squares predicts y' = x B; of an SAE, which reads what it writes, y' = y.
2. Of y', the first k principal components. (Of an SAE this is PCA, else reduced-rank regression: Izenman 1975.)

What the two steps leave out is orthogonal, so the variance explained is the sum of the k largest eigenvalues of the
covariance of y', over the trace of that of y. The map is fitted on the very tokens that it is measured on: no map of
that rank, wherever it was fitted, explains more of them.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["LinearFit"]


class LinearFit:
    """The best linear maps from x to y, from sums over tokens as they come: d^2 numbers, float64.

    They fit noise as well: with hardly more tokens than dimensions, a map between two sites explains all of y.
    """

    def __init__(self) -> None:
        self._tokens = 0
        self._between = 0  # numbers of x, where it is not y
        self._shift = self._sum = self._products = torch.empty(0)

    def add(self, x: Tensor, y: Tensor) -> None:
        """Tokens, [n, d_in] and [n, d_out]; a site that is held against itself is given as the same tensor twice."""
        both = (y if x is y else torch.cat([x, y], dim=1)).double()
        if not self._tokens:
            self._between = 0 if x is y else x.shape[1]
            # Sums of squares about what is nearly the mean lose no digits to it.
            self._shift = both.mean(dim=0)
            self._sum = torch.zeros_like(self._shift)
            self._products = both.new_zeros(both.shape[1], both.shape[1])
        both = both - self._shift
        self._tokens += len(both)
        self._sum += both.sum(dim=0)
        self._products.addmm_(both.T, both)

    def explained(self) -> Tensor:
        """Share of the variance of y, pooled over dimensions, that the best map of rank 0, 1, ... d_out explains."""
        covariance = self._products - torch.outer(self._sum, self._sum) / self._tokens
        split = self._between
        own = predicted = covariance[split:, split:]
        if split:
            across = covariance[:split, split:]
            predicted = across.T @ torch.linalg.pinv(covariance[:split, :split], hermitian=True) @ across
        largest = torch.linalg.eigvalsh(predicted).flip(0).clamp(min=0)
        return torch.cat([own.new_zeros(1), largest.cumsum(0) / own.trace()])
