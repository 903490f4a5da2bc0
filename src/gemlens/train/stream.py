"""Activations of a model over a corpus, shuffled across documents, as batches to train on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gemlens.lm.gemma import Model, activations
from gemlens.sites import Site

__all__ = ["activation_stream", "shuffled_batches"]


def activation_stream(
    model: Model, rows: Iterable[NDArray[np.int64]], site: Site, *, together: int = 32
) -> Iterator[Tensor]:
    """Yield [tokens, d] activations, BOS left out, of ``together`` rows at a time."""
    group: list[NDArray[np.int64]] = []
    for row in rows:
        group.append(row)
        if len(group) == together:
            yield _read(model, group, site)
            group = []
    if group:
        yield _read(model, group, site)


def _read(model: Model, rows: list[NDArray[np.int64]], site: Site) -> Tensor:
    tokens = torch.from_numpy(np.stack(rows))
    return activations(model, tokens, [site])[site][:, 1:].flatten(0, 1)


def shuffled_batches(stream: Iterable[Tensor], *, batch: int, buffer: int = 131_072, seed: int = 0) -> Iterator[Tensor]:
    """Cut a stream into batches of tokens drawn at random from a buffer of ``buffer`` tokens.

    Neighbouring tokens are alike; a batch of them is worth less than its size. The buffer is refilled when half of
    it is used, and drained at the end; what does not fill a batch is dropped.
    """
    generator = torch.Generator().manual_seed(seed)
    waiting: list[Tensor] = []
    held = 0
    for chunk in stream:
        waiting.append(chunk)
        held += len(chunk)
        if held >= buffer:
            pool = _shuffle(waiting, generator)
            cut = len(pool) // 2 // batch * batch
            yield from pool[:cut].split(batch)
            waiting, held = [pool[cut:].clone()], len(pool) - cut
    if waiting:
        pool = _shuffle(waiting, generator)
        yield from pool[: len(pool) // batch * batch].split(batch)


def _shuffle(parts: list[Tensor], generator: torch.Generator) -> Tensor:
    pool = torch.cat(parts)
    return pool[torch.randperm(len(pool), generator=generator)]
