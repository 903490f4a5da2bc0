"""Many texts as one stream in random order, of which only a buffer is ever in memory.

1. The files are opened in random order, up to ``_OPEN`` at a time. The next piece comes from the one of which the
   smallest share has been read, so that all end together and every stretch of the stream holds all kinds of text.
2. Long documents come in pieces, so that no book comes in one run.
3. Pieces wait in a buffer from which one is drawn at random.

The order follows from the texts and the seed alone.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gemlens.data.corpus import Text, read_pieces

__all__ = ["mixed"]

_OPEN = 32


def mixed(sources: Sequence[Text], seed: int, *, piece: int = 4000, buffer: int = 4096) -> Iterator[str]:
    """Every document of ``sources`` once, in random order, in pieces of up to ``piece`` characters.

    Args:
        buffer: pieces that are held: 16 million characters at most with the defaults.

    Raises:
        What ``read_pieces`` raises.
    """
    rng = random.Random(seed)
    held: list[str] = []
    for text in _interleaved(sources, rng, piece):
        if len(held) < buffer:
            held.append(text)
        else:
            at = rng.randrange(buffer)
            held[at], text = text, held[at]
            yield text
    rng.shuffle(held)
    yield from held


@dataclass
class _Reading:
    pieces: Iterator[str]
    size: float
    given: int = 0

    @property
    def share(self) -> float:
        return self.given / self.size


def _interleaved(sources: Sequence[Text], rng: random.Random, piece: int) -> Iterator[str]:
    waiting = [_Reading(read_pieces(text, piece), size) for text, size in zip(sources, _sizes(sources), strict=True)]
    rng.shuffle(waiting)
    reading: list[_Reading] = []
    while waiting or reading:
        while waiting and len(reading) < _OPEN:
            reading.append(waiting.pop())
        least = min(reading, key=lambda each: each.share)
        text = next(least.pieces, None)
        if text is None:
            reading.remove(least)
        else:
            least.given += len(text)
            yield text


def _sizes(sources: Sequence[Text]) -> list[float]:
    """In bytes. That of a data set is not known: it is read as fast as the files are on average."""
    sizes = [float(source.stat().st_size) if isinstance(source, Path) else None for source in sources]
    known = [size for size in sizes if size is not None]
    usual = sum(known) / len(known) if known else 1.0
    return [max(1.0, usual if size is None else size) for size in sizes]
