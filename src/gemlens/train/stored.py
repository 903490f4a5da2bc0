"""Batches to train on from activations on disk, in another random order each pass.

A pass reads pieces of 2,048 neighbouring tokens in random order. As many as make up the buffer are read at a time, and
its tokens are shuffled. All of it follows from the seed, the number of the pass and that of the buffer, so that the
number of batches given out says where a run stands.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from typing import NamedTuple

import torch
from torch import Tensor

from gemlens.data.activations import ActivationStore
from gemlens.errors import InputError
from gemlens.sites import Site
from gemlens.train.stream import State, check_state

__all__ = ["StoredStream"]

_PIECE = 2048


class _Piece(NamedTuple):
    shard: int
    start: int
    stop: int


class StoredStream:
    """A ``BatchStream`` of several passes over a store; what does not fill a batch at the very end is dropped.

    Holds ``buffer`` x sites x d numbers in the store's dtype, twice while they are read.

    Args:
        batch: tokens a batch.
        epochs: passes; None goes on forever.
        sites: of the store's, all by default.
        buffer: tokens that are shuffled together.

    Raises:
        InputError: a number below 1, or no epoch has a batch.
        NotFoundError: the store lacks a site.
        WeightsError: while iterating, a shard that is damaged, by name.
    """

    def __init__(
        self,
        store: ActivationStore,
        *,
        batch: int,
        epochs: int | None = 1,
        sites: Sequence[Site] | None = None,
        buffer: int = 131_072,
        seed: int = 0,
    ) -> None:
        if min(batch, buffer, 1 if epochs is None else epochs) < 1:
            raise InputError(f"batch {batch}, buffer {buffer}, epochs {epochs}: take 1 or more of each")
        if not store.tokens:
            raise InputError(f"{store.folder} holds no tokens; collect some")
        self._store, self._batch, self._epochs, self._buffer, self._seed = store, batch, epochs, buffer, seed
        self._sites = store.check_sites(sites)
        self._settings = {"batch": batch, "buffer": buffer, "seed": seed, "tokens": store.tokens}
        self._pieces = [
            _Piece(shard, start, min(start + _PIECE, tokens))
            for shard, tokens in enumerate(store.shard_tokens)
            for start in range(0, tokens, _PIECE)
        ]
        self._batches = 0

    def __iter__(self) -> Iterator[dict[Site, Tensor]]:
        parts: list[dict[Site, Tensor]] = []
        need = self._batch
        for pool, order in self._buffers(self._batches * self._batch):
            while len(order):
                drawn, order = order[:need], order[need:]
                parts.append({site: tensor[drawn] for site, tensor in pool.items()})
                need -= len(drawn)
                if not need:
                    self._batches += 1
                    yield {site: torch.cat([part[site] for part in parts]) for site in self._sites}
                    parts, need = [], self._batch

    def state(self) -> State:
        return {**self._settings, "batches": self._batches}

    def restore(self, state: Mapping[str, Tensor | int]) -> None:
        check_state(self._settings, state)
        self._batches = int(state["batches"])

    def _buffers(self, first: int) -> Iterator[tuple[dict[Site, Tensor], Tensor]]:
        """Tokens, and the order in which to give them out, from token number ``first`` of all passes on."""
        start, skip = divmod(first, self._store.tokens)
        for epoch in count(start) if self._epochs is None else range(start, self._epochs):
            for number, pieces in enumerate(self._divided(epoch)):
                size = sum(piece.stop - piece.start for piece in pieces)
                if skip < size:
                    order = torch.randperm(size, generator=self._generator(epoch, number))
                    yield self._read(pieces), order[skip:]
                skip = max(0, skip - size)

    def _divided(self, epoch: int) -> Iterator[list[_Piece]]:
        """The pieces of a pass, a buffer of them at a time."""
        pieces: list[_Piece] = []
        held = 0
        for index in torch.randperm(len(self._pieces), generator=self._generator(epoch)).tolist():
            pieces.append(self._pieces[index])
            held += pieces[-1].stop - pieces[-1].start
            if held >= self._buffer:
                yield pieces
                pieces, held = [], 0
        if pieces:
            yield pieces

    def _read(self, pieces: list[_Piece]) -> dict[Site, Tensor]:
        # In the order in which they lie on disk; their tokens are shuffled anyway.
        found = [self._store.read(*piece, self._sites) for piece in sorted(pieces)]
        return {site: torch.cat([part[site] for part in found]) for site in self._sites}

    def _generator(self, *what: int) -> torch.Generator:
        seed = random.Random(f"{self._seed} {what}").getrandbits(63)
        return torch.Generator().manual_seed(seed)
