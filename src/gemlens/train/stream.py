"""Batches to train on, drawn at random from a stream of activations at several sites.

Neighbouring tokens are alike; a batch of them is worth less than its size. So tokens wait in a buffer:

1. It is filled from the stream.
2. A random permutation, the same for all sites, gives out half of it batch by batch; at the end of the stream, all.
3. What is left moves to its front, and it is filled again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gemlens.errors import InputError
from gemlens.lm.gemma import Model
from gemlens.lm.stream import TOGETHER, activation_stream
from gemlens.sites import Site, parse_site

__all__ = ["BatchStream", "ShuffledStream", "Source", "State", "check_state", "harvest"]

State = dict[str, Tensor | int]
"""Flat, so that it can be kept in a safetensors file and JSON."""

Source = Callable[[int], Iterable[dict[Site, Tensor]]]
"""``source(n)`` yields activations from the n-th chunk on, [tokens, d] for each site, the same every time."""

_BLOCK = 4096


class BatchStream(Protocol):
    """Batches that can be taken up again where a killed run stood, to the bit."""

    def __iter__(self) -> Iterator[dict[Site, Tensor]]:
        """Batches [batch, d] for each site, one token in the same row of all; goes on where it was left."""
        ...

    def state(self) -> State:
        """Where it stands: after the batch given out last."""
        ...

    def restore(self, state: Mapping[str, Tensor | int]) -> None:
        """Go on from there; call it before iterating.

        Raises:
            InputError: the state of a stream with other settings.
        """
        ...


def harvest(
    model: Model, rows: Callable[[], Iterable[NDArray[np.int64]]], sites: Sequence[Site], *, together: int = TOGETHER
) -> Source:
    """A live model as a source. ``rows()`` gives the same rows of token ids each time; those seen are skipped."""

    def source(chunk: int) -> Iterator[dict[Site, Tensor]]:
        return activation_stream(model, islice(rows(), chunk * together, None), sites, together=together)

    return source


class ShuffledStream:
    """Batches from a live source, each token once; what does not fill a batch at the end is dropped.

    Holds ``buffer`` x sites x d numbers, where the source gives them: 168 MB a site of 640 dimensions in bfloat16.
    Shuffling adds a block of 4,096 tokens; ``state`` is a copy of up to all of it.

    Args:
        batch: tokens a batch.
        buffer: tokens to draw from.

    Raises:
        InputError: a buffer smaller than a batch; while iterating, a source that changes its sites.
    """

    def __init__(self, source: Source, *, batch: int, buffer: int = 131_072, seed: int = 0) -> None:
        if not 1 <= batch <= buffer:
            raise InputError(
                f"a batch of {batch} tokens from a buffer of {buffer}; take 1 or more, and no more than it"
            )
        self._source, self._batch, self._buffer = source, batch, buffer
        self._settings = {"batch": batch, "buffer": buffer, "seed": seed}
        self._generator = torch.Generator().manual_seed(seed)
        self._pool: dict[Site, Tensor] = {}
        # Rows of the pool that were not given out yet, in the order in which they will be.
        self._order = torch.empty(0, dtype=torch.int64)
        self._due = 0  # batches until the pool is filled again
        self._rest: dict[Site, Tensor] = {}  # of the chunk read last, what found no room
        self._chunks = 0
        self._batches = 0

    def __iter__(self) -> Iterator[dict[Site, Tensor]]:
        chunks = iter(self._source(self._chunks))
        while True:
            if not self._due:
                self._refill(chunks)
            if not self._due:
                return
            drawn, self._order = self._order[: self._batch], self._order[self._batch :]
            self._due -= 1
            self._batches += 1
            yield _rows(self._pool, drawn)

    def state(self) -> State:
        kept, rank = self._order.sort()
        tensors = {f"pool.{site}": pool for site, pool in _rows(self._pool, kept).items()}
        tensors |= {f"rest.{site}": tensor.clone() for site, tensor in self._rest.items()}
        # The rows as they would lie if the pool were compacted now.
        tensors |= {"order": rank.argsort(), "generator": self._generator.get_state()}
        counts = {"chunks": self._chunks, "batches": self._batches, "due": self._due}
        return {**self._settings, **counts, **tensors}

    def restore(self, state: Mapping[str, Tensor | int]) -> None:
        """As in ``BatchStream``; batches lie on the device of the state's tensors until more are harvested."""
        check_state(self._settings, state)
        tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
        self._chunks, self._batches, self._due = (int(state[name]) for name in ("chunks", "batches", "due"))
        self._order = tensors["order"].clone()
        self._generator.set_state(tensors["generator"].clone())
        self._rest = {site: tensor.clone() for site, tensor in _named(tensors, "rest.")}
        self._pool = {}
        for site, tensor in _named(tensors, "pool."):
            self._pool[site] = tensor.new_empty(self._buffer, tensor.shape[1])
            self._pool[site][: len(tensor)] = tensor

    def _refill(self, chunks: Iterator[dict[Site, Tensor]]) -> None:
        held = self._compact()
        while held < self._buffer:
            if not self._rest:
                chunk = next(chunks, None)
                if chunk is None:
                    break
                self._chunks += 1
                self._rest = chunk
            held += self._put(held)
        self._order = torch.randperm(held, generator=self._generator)
        full = held == self._buffer
        self._due = max(1, held // 2 // self._batch) if full else held // self._batch

    def _compact(self) -> int:
        """Move what was not given out to the front, in the order in which it lies, and count it."""
        kept = self._order.sort().values
        # Every row moves towards the front, so no block overwrites what a later one reads.
        for start in range(0, len(kept), _BLOCK):
            block = kept[start : start + _BLOCK]
            for site, rows in _rows(self._pool, block).items():
                self._pool[site][start : start + len(block)] = rows
        return len(kept)

    def _put(self, held: int) -> int:
        """Move as much of the rest as there is room for; returns how much."""
        if not self._pool:
            self._pool = {site: part.new_empty(self._buffer, part.shape[1]) for site, part in self._rest.items()}
        if self._rest.keys() != self._pool.keys():
            said = [", ".join(map(str, sorted(sites))) for sites in (self._pool, self._rest)]
            raise InputError(f"the stream began with activations at {said[0]} and goes on with {said[1]}")
        length = len(next(iter(self._rest.values())))
        count = min(self._buffer - held, length)
        for site, part in self._rest.items():
            # What a checkpoint gave lies on the CPU; the model may run elsewhere.
            self._pool[site] = self._pool[site].to(part.device)
            self._pool[site][held : held + count] = part[:count]
        self._rest = {site: part[count:] for site, part in self._rest.items()} if count < length else {}
        return count


def _rows(pool: dict[Site, Tensor], ids: Tensor) -> dict[Site, Tensor]:
    """The same rows of every site; ``ids`` go to an accelerator once and not for each."""
    here = {device: ids.to(device) for device in {tensor.device for tensor in pool.values()}}
    return {site: tensor[here[tensor.device]] for site, tensor in pool.items()}


def check_state(settings: Mapping[str, int], state: Mapping[str, Tensor | int]) -> None:
    """Raise InputError where a state was saved under other settings, naming the first and both values."""
    for name, value in settings.items():
        if state.get(name) != value:
            raise InputError(
                f"the saved position belongs to batches of {name} {state.get(name)}, these have {name} {value}; "
                "go on with the settings it was saved with, or start anew"
            )


def _named(tensors: dict[str, Tensor], prefix: str) -> Iterator[tuple[Site, Tensor]]:
    for name, tensor in tensors.items():
        if name.startswith(prefix):
            yield parse_site(name.removeprefix(prefix)), tensor
