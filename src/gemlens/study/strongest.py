"""The k largest of every feature's activations in a stream, exactly, in memory of k numbers a feature.

1. Of what comes, only what exceeds its feature's k-th largest so far can matter: after a few thousand tokens, next to
   nothing. It waits.
2. When enough waits, it is sorted in with what is there, for all features at once.

Of equals the first seen stays, so that the result is that of a stable sort of everything, whatever the chunks were.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["Strongest"]

_WAITING = 1 << 16


class Strongest:
    """For each of ``width`` features, where its ``k`` largest keys stood, largest first.

    Args:
        device: where the numbers come from, and where all work is done.
    """

    def __init__(self, width: int, k: int, *, device: torch.device | str = "cpu") -> None:
        self.width, self.k = width, k
        self.keys = torch.zeros(width, k, device=device)
        """float32 [width, k], 0 in an empty slot."""
        self.places = torch.full((width, k), -1, dtype=torch.int64, device=device)
        """int64 [width, k], -1 in an empty slot."""
        self.values = torch.zeros(width, k, device=device)
        """float32 [width, k]: what came with each key."""
        self._waiting: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        self._held = 0

    def add(self, ids: Tensor, keys: Tensor, places: Tensor, values: Tensor | None = None) -> None:
        """Offer entries in the order in which they are seen.

        Args:
            ids: int64 [n], feature of each.
            keys: float32 [n], above 0.
            places: int64 [n], not negative.
            values: float32 [n]; the keys themselves where left out.
        """
        if not self.k:
            return
        wanted = (keys > self.keys[:, -1][ids]).nonzero().squeeze(1)
        if not len(wanted):
            return
        keys = keys[wanted]
        self._waiting.append((ids[wanted], keys, places[wanted], keys if values is None else values[wanted]))
        self._held += len(wanted)
        if self._held >= _WAITING:
            self.settle()

    def settle(self) -> None:
        """Sort in what waits; ``keys``, ``places`` and ``values`` are those of all that came from here on."""
        if not self._waiting:
            return
        ids, keys, places, values = (torch.cat(parts) for parts in zip(*self._waiting, strict=True))
        self._waiting, self._held = [], 0
        touched, row = ids.unique(return_inverse=True)
        old = self.places[touched]
        old_row, slot = (old >= 0).nonzero(as_tuple=True)
        at = touched[old_row], slot
        # What was there was seen before what waited.
        row = torch.cat([old_row, row])
        keys = torch.cat([self.keys[at], keys])
        places = torch.cat([self.places[at], places])
        values = torch.cat([self.values[at], values])
        order = (row << 32 | (_LARGEST - keys.view(torch.int32))).argsort(stable=True)
        row = row[order]
        first = torch.zeros(len(touched) + 1, dtype=torch.int64, device=row.device)
        first[1:] = torch.bincount(row, minlength=len(touched)).cumsum(0)
        rank = torch.arange(len(row), device=row.device) - first[row]
        kept = rank < self.k
        to, order = (touched[row[kept]], rank[kept]), order[kept]
        self.keys[to], self.places[to], self.values[to] = keys[order], places[order], values[order]

    def state(self) -> dict[str, Tensor]:
        """Tensors from which ``load`` goes on."""
        self.settle()
        return {"keys": self.keys, "places": self.places, "values": self.values}

    def load(self, state: Mapping[str, Any]) -> None:
        for name in ("keys", "places", "values"):
            tensor = getattr(self, name)
            tensor.copy_(state[name])


_LARGEST = 0x7FFFFFFF
"""Positive float32 numbers are in the order of their bits, read as integers below this."""
