"""Batches to train on, drawn at random from a stream of activations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

__all__ = ["shuffled_batches"]


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
