"""Features: what a dictionary finds in a batch of activations, kept sparse.

Of tens of thousands of features a few dozen fire on a token, so the activations are stored by token (CSR):
token ``t`` owns ``ids[indptr[t]:indptr[t + 1]]``, ascending, and ``values`` alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Features"]


@dataclass(frozen=True, slots=True, eq=False)
class Features:
    """Sparse activations of ``width`` features at n tokens."""

    indptr: Tensor
    """int64 [n + 1]"""
    ids: Tensor
    """int64 [nnz]"""
    values: Tensor
    """[nnz], > 0"""
    width: int

    def __len__(self) -> int:
        return len(self.indptr) - 1

    @property
    def l0(self) -> Tensor:
        """int64 [n], active features of each token."""
        return self.indptr.diff()

    @property
    def tokens(self) -> Tensor:
        """int64 [nnz], the token that each entry belongs to."""
        return torch.repeat_interleave(torch.arange(len(self), device=self.ids.device), self.l0)

    def row(self, token: int) -> tuple[Tensor, Tensor]:
        """Ids and values of one token."""
        start, stop = int(self.indptr[token]), int(self.indptr[token + 1])
        return self.ids[start:stop], self.values[start:stop]

    def top(self, token: int, k: int) -> tuple[Tensor, Tensor]:
        """Ids and values of the ``k`` strongest features of one token, strongest first; fewer if fewer fire."""
        ids, values = self.row(token)
        # A stable sort, so that equal activations come out by id on every machine.
        order = values.argsort(descending=True, stable=True)[:k]
        return ids[order], values[order]

    def select(self, feature_ids: Tensor | Iterable[int]) -> Tensor:
        """[n, len(feature_ids)], the activations of some features, 0 where they are silent."""
        wanted = torch.as_tensor(list(feature_ids) if not isinstance(feature_ids, Tensor) else feature_ids)
        wanted = wanted.to(self.ids.device)
        hit, column = (self.ids[:, None] == wanted[None, :]).nonzero(as_tuple=True)
        out = self.values.new_zeros(len(self), len(wanted))
        out[self.tokens[hit], column] = self.values[hit]
        return out

    def without(self, feature_ids: Iterable[int]) -> Features:
        """The same with some features silent."""
        left_out = torch.tensor(sorted(set(feature_ids)), dtype=torch.int64, device=self.ids.device)
        kept = ~torch.isin(self.ids, left_out)
        counts = torch.bincount(self.tokens[kept], minlength=len(self))
        indptr = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        return Features(indptr, self.ids[kept], self.values[kept], self.width)

    def dense(self) -> Tensor:
        """[n, width]"""
        out = self.values.new_zeros(len(self), self.width)
        out[self.tokens, self.ids] = self.values
        return out

    def split(self, lengths: Sequence[int]) -> list[Features]:
        """Cut into runs of so many tokens each, which must add up; the inverse of ``concatenate``.

        Copies, so that a part does not keep the whole in memory.
        """
        starts = self.indptr[torch.tensor([0, *lengths]).cumsum(0)].tolist()
        return [
            Features(
                torch.cat([l0.new_zeros(1), l0.cumsum(0)]), self.ids[a:b].clone(), self.values[a:b].clone(), self.width
            )
            for l0, a, b in zip(self.l0.split(list(lengths)), starts, starts[1:], strict=False)
        ]

    @staticmethod
    def concatenate(parts: list[Features]) -> Features:
        """Stack tokens of the same dictionary."""
        offsets = [0, *torch.tensor([len(part.ids) for part in parts]).cumsum(0).tolist()]
        starts = [part.indptr[:-1] + offset for part, offset in zip(parts, offsets, strict=False)]
        end = torch.tensor([offsets[-1]], device=parts[0].indptr.device)
        return Features(
            indptr=torch.cat([*starts, end]),
            ids=torch.cat([part.ids for part in parts]),
            values=torch.cat([part.values for part in parts]),
            width=parts[0].width,
        )
