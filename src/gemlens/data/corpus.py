"""Text at rest: documents from files, packed into rows of equal length.

Rows follow the project's protocol: documents are joined (their tokens follow one another) and cut into rows of
``length`` tokens, the first of which is BOS.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gemlens.batched import batched
from gemlens.errors import InputError, NotFoundError

__all__ = ["documents", "pack", "read_documents"]

Encode = Callable[[list[str]], list[list[int]]]
"""Texts to token ids, without BOS."""

_SUFFIXES = (".txt", ".jsonl")
_TOGETHER = 64


def documents(paths: Sequence[str | Path]) -> list[Path]:
    """The text files among ``paths``, folders searched one level deep, in the order given, names sorted.

    Raises:
        NotFoundError: a path does not exist, or a folder holds no text file.
        InputError: a file of another kind.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(file for file in path.iterdir() if file.suffix.lower() in _SUFFIXES)
            if not inside:
                raise NotFoundError(f"{path} holds no {' or '.join(_SUFFIXES)} file; name a folder of text files")
            found += inside
        elif not path.exists():
            raise NotFoundError(f"{path} does not exist; name a text file, a JSON Lines file or a folder of them")
        elif path.suffix.lower() not in _SUFFIXES:
            raise InputError(f"{path} is not a {' or '.join(_SUFFIXES)} file; convert it first")
        else:
            found.append(path)
    return found


def read_documents(path: Path, field: str = "text") -> Iterator[str]:
    """A ``.txt`` file is one document; a ``.jsonl`` file holds one a line, under ``field``.

    Raises:
        InputError: not UTF-8, not JSON, or a line without the field; names file and line.
    """
    try:
        if path.suffix.lower() == ".txt":
            yield path.read_text("utf-8-sig")
            return
        with path.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield _text(line, field, f"{path}, line {number}")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start})") from error


def _text(line: str, field: str, where: str) -> str:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise InputError(f"{where}: not JSON ({error}); expected one object a line with {field!r}") from error
    if not isinstance(row, dict) or not isinstance(row.get(field), str):
        raise InputError(f"{where}: no text under {field!r}; expected one object a line with it")
    return row[field]


def shuffled(paths: Sequence[Path], seed: int, chunk: int = 4000) -> list[str]:
    """All documents in random order, long ones in pieces of ``chunk`` characters, so that no book comes in one run."""
    parts = [
        text[start : start + chunk]
        for path in paths
        for text in read_documents(path)
        for start in range(0, len(text), chunk)
    ]
    random.Random(seed).shuffle(parts)
    return parts


def pack(texts: Iterable[str], encode: Encode, *, bos: int, length: int = 128) -> Iterator[NDArray[np.int64]]:
    """Yield rows of ``length`` token ids, BOS first; what is left at the end is dropped."""
    waiting: list[int] = []
    for group in batched(texts, _TOGETHER):
        for ids in encode(group):
            waiting += ids
        cut = len(waiting) // (length - 1) * (length - 1)
        for start in range(0, cut, length - 1):
            yield np.array([bos, *waiting[start : start + length - 1]], dtype=np.int64)
        waiting = waiting[cut:]
