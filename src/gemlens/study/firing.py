"""How features fire in a stream: how often and where, how strongly, and which fire together; counts of fixed size.

Histograms are of half octaves: an activation a counts in bin floor(2 log2 a). Of each feature the ``BINS`` topmost are
kept, the lowest of which also counts all that is weaker; when a stronger activation comes, the row moves. All are sums
of integers, so that no order of the stream and no cut of it changes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gemlens.scope.features import Features

__all__ = ["BINS", "COACTIVATION_WIDTH", "Firing", "half_octaves"]

BINS = 12
COACTIVATION_WIDTH = 8192
"""Features that fire together are counted in a square of so many at most: 256 MB."""
_PAIRS = 1 << 20
"""Pairs of features counted at a time."""
_NEVER = -1000
_HALF_OCTAVE = 0.5**0.5  # as float32 a little less than it is, hence ">" below


class Firing:
    """Counts of ``width`` features.

    Args:
        coactivation: also count pairs of features that fire on the same token, in int32 [width, width].
    """

    def __init__(
        self, width: int, *, bins: int = BINS, coactivation: bool = False, device: torch.device | str = "cpu"
    ) -> None:
        self.width, self.bins = width, bins
        self.tokens = 0
        self.profile = torch.zeros(width, 3, dtype=torch.int64, device=device)
        """Firings in the first, middle and last third of a row."""
        self.top = torch.full((width,), _NEVER, dtype=torch.int64, device=device)
        """Bin of the strongest activation; far below all others for a feature that never fired."""
        self.histogram = torch.zeros(width, bins, dtype=torch.int64, device=device)
        """Column j is bin ``top - j``; the last one also counts all below."""
        size = (width, width) if coactivation else (0, 0)
        self.pairs = torch.zeros(size, dtype=torch.int32, device=device)
        """[a, b] with a < b: tokens on which both fire."""

    @property
    def fired(self) -> Tensor:
        """int64 [width], tokens on which each feature fired."""
        return self.profile.sum(dim=1)

    def add(self, features: Features, thirds: Tensor) -> None:
        """Count some tokens.

        Args:
            thirds: int64 [tokens], 0 to 2, the part of its row that each token stands in.
        """
        ids, tokens = features.ids, features.tokens
        self.tokens += len(features)
        one = torch.ones(1, dtype=torch.int64, device=ids.device).expand(len(ids))
        self.profile.view(-1).scatter_add_(0, ids * 3 + thirds[tokens], one)
        self._add_strengths(ids, half_octaves(features.values), one)
        if len(self.pairs):
            self._add_pairs(features, tokens)

    def _add_strengths(self, ids: Tensor, bins: Tensor, one: Tensor) -> None:
        stronger = (bins > self.top[ids]).nonzero().squeeze(1)
        if len(stronger):
            top = self.top.scatter_reduce(0, ids[stronger], bins[stronger], "amax")
            risen = (top > self.top).nonzero().squeeze(1)
            self.histogram[risen] = _moved(self.histogram[risen], (top - self.top)[risen])
            self.top = top
        column = (self.top[ids] - bins).clamp_(max=self.bins - 1)
        self.histogram.view(-1).scatter_add_(0, ids * self.bins + column, one)

    def _add_pairs(self, features: Features, tokens: Tensor) -> None:
        """Each entry with all later ones of its token."""
        ids, place = features.ids, torch.arange(len(features.ids), device=features.ids.device)
        later = features.indptr[1:][tokens] - place - 1
        ends = later.cumsum(0)
        start = 0
        while start < len(ids):
            before = int(ends[start - 1]) if start else 0
            # The last one may have as many partners as its token has features.
            stop = max(start + 1, int(torch.searchsorted(ends, before + _PAIRS, right=True)))
            count = later[start:stop]
            first = ends[start:stop] - count - before
            left = torch.repeat_interleave(ids[start:stop] * self.width, count)
            # Partner p of entry e, counted over the part, is entry e + 1 + p - first[e].
            shift = torch.repeat_interleave(place[start:stop] + 1 - first, count)
            right = ids[shift.add_(torch.arange(len(shift), device=ids.device))]
            one = torch.ones(1, dtype=torch.int32, device=ids.device).expand(len(left))
            self.pairs.view(-1).scatter_add_(0, left.add_(right), one)
            start = stop

    def together(self, most: int) -> tuple[Tensor, Tensor]:
        """int64 and float32 [width, most]: features that share most of their tokens, and |A and B| / |A or B|.

        Of equal shares the lower number comes first; -1 and 0 fill what is left, and everything without ``pairs``.
        """
        device = self.profile.device
        ids = torch.full((self.width, most), -1, dtype=torch.int64, device=device)
        shares = torch.zeros(self.width, most, device=device)
        if not len(self.pairs):
            return ids, shares
        fired = self.fired
        for start in range(0, self.width, 1024):
            rows = slice(start, start + 1024)
            both = (self.pairs[rows] + self.pairs[:, rows].T).float()
            share = both / (fired[rows, None] + fired[None, :] - both).clamp(min=1)
            row, other = _largest(share, min(most, self.width))
            first = torch.searchsorted(row, torch.arange(len(share), device=device))
            rank = torch.arange(len(row), device=device) - first[row]
            kept = (rank < most) & (share[row, other] > 0)
            row, other, rank = row[kept], other[kept], rank[kept]
            ids[start + row, rank] = other
            shares[start + row, rank] = share[row, other].float()
        return ids, shares

    def state(self) -> dict[str, Tensor | int]:
        """Tensors and numbers from which ``load`` goes on."""
        tensors = {"profile": self.profile, "top": self.top, "histogram": self.histogram, "pairs": self.pairs}
        return {"tokens": self.tokens} | tensors

    def load(self, state: Mapping[str, Any]) -> None:
        self.tokens = int(state["tokens"])
        for name in ("profile", "top", "histogram", "pairs"):
            tensor = getattr(self, name)
            tensor.copy_(state[name])


def _largest(rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Row and column of the ``k`` largest positive numbers of each row of [n, m], and of all that equal the last of
    them; by row, largest first, then by column. To sort whole rows takes seconds."""
    least = rows.topk(k, dim=1).values[:, -1:].clamp(min=torch.finfo(rows.dtype).tiny)
    row, column = (rows >= least).nonzero(as_tuple=True)
    order = rows[row, column].argsort(descending=True, stable=True)
    order = order[row[order].argsort(stable=True)]
    return row[order], column[order]


def half_octaves(values: Tensor) -> Tensor:
    """int64 floor(2 log2 values), exactly, of float32 values above 0."""
    fraction, exponent = values.frexp()  # value = fraction * 2 ** exponent, fraction from 0.5
    return 2 * exponent.long() - 2 + (fraction > _HALF_OCTAVE)


def _moved(rows: Tensor, by: Tensor) -> Tensor:
    """Histograms [n, bins] that moved ``by`` columns [n] to the right, what falls off added to the last."""
    last = rows.shape[1] - 1
    to = (torch.arange(last + 1, device=rows.device) + by[:, None]).clamp_(max=last)
    return torch.zeros_like(rows).scatter_add_(1, to, rows)
