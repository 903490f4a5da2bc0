"""Text at rest: documents from files and data sets, packed into rows of equal length.

Rows follow the project's protocol: documents are joined (their tokens follow one another) and cut into rows of
``length`` tokens, the first of which is BOS.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemlens.batched import batched
from gemlens.data.hub_dataset import PREFIX, HubDataset
from gemlens.errors import InputError, NotFoundError

__all__ = ["Text", "documents", "pack", "read_documents", "read_pieces", "text_identity"]

Encode = Callable[[list[str]], list[list[int]]]
"""Texts to token ids, without BOS."""

Text = Path | HubDataset
"""What documents are read from."""

_SUFFIXES = (".txt", ".jsonl", ".parquet")
_KINDS = ".txt, .jsonl or .parquet"
_TOGETHER = 64


def documents(paths: Sequence[str | Path]) -> list[Text]:
    """The text files among ``paths``, folders searched one level deep, in the order given, names sorted.

    ``hf:owner/name`` is a data set of the Hugging Face hub.

    Raises:
        NotFoundError: a path does not exist, or a folder holds no text file.
        InputError: a file of another kind.
    """
    found: list[Text] = []
    for path in map(Path, paths):
        if str(path).startswith(PREFIX):
            found.append(HubDataset.parse(str(path)))
        elif path.is_dir():
            inside = sorted(file for file in path.iterdir() if file.suffix.lower() in _SUFFIXES)
            if not inside:
                raise NotFoundError(f"{path} holds no {_KINDS} file; name a folder of text files")
            found += inside
        elif not path.exists():
            raise NotFoundError(
                f"{path} does not exist; name a text file, a JSON Lines or Parquet file, a folder of them, or a data "
                f"set of the hub as {PREFIX}owner/name"
            )
        elif path.suffix.lower() not in _SUFFIXES:
            raise InputError(f"{path} is not a {_KINDS} file; convert it first")
        else:
            found.append(path)
    return found


def text_identity(text: Text) -> dict[str, Any]:
    """``name``, ``bytes`` and ``sha256`` of a file; of a data set of the hub the name alone."""
    if not isinstance(text, Path):
        return {"name": str(text), "bytes": None, "sha256": None}
    with text.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"name": text.name, "bytes": text.stat().st_size, "sha256": digest}


def read_documents(source: Text, field: str = "text") -> Iterator[str]:
    """The documents of a file or data set, one after another, never all in memory.

    A ``.txt`` file is one document; a ``.jsonl`` file holds one a line, under ``field``; a ``.parquet`` file and a
    data set one a row, in the column ``field``.

    Raises:
        InputError: not UTF-8, not JSON, not Parquet, or a line or row without the field; names file and line.
        MissingPackageError: a data set without ``datasets``.
    """
    if isinstance(source, HubDataset):
        yield from map(_checked, source.rows(field))
    elif source.suffix.lower() == ".parquet":
        yield from _parquet(source, field)
    elif source.suffix.lower() == ".jsonl":
        with _utf8(source), source.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield _of_line(line, field, f"{source}, line {number}")
    else:
        with _utf8(source):
            yield source.read_text("utf-8-sig")


def read_pieces(source: Text, piece: int) -> Iterator[str]:
    """The documents of ``source`` in pieces of up to ``piece`` characters; of a ``.txt`` file one at a time is held."""
    if isinstance(source, Path) and source.suffix.lower() == ".txt":
        with _utf8(source), source.open(encoding="utf-8-sig") as file:
            while text := file.read(piece):
                yield text
        return
    for text in read_documents(source):
        for start in range(0, len(text), piece):
            yield text[start : start + piece]


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


def _parquet(path: Path, field: str) -> Iterator[str]:
    """Row group by row group, that column only."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            if field not in file.schema_arrow.names:
                there = ", ".join(file.schema_arrow.names[:20]) or "none"
                raise InputError(f"{path} has no column {field!r}; its columns are {there}")
            number = 0
            for rows in file.iter_batches(_TOGETHER, columns=[field]):
                for value in rows.column(0).to_pylist():
                    number += 1
                    yield _checked((value, f"{path}, row {number}"), field)
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path} cannot be read as Parquet ({reason}); is it whole?") from error


def _of_line(line: str, field: str, where: str) -> str:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise InputError(f"{where}: not JSON ({error}); expected one object a line with {field!r}") from error
    return _checked((row.get(field) if isinstance(row, dict) else None, where), field)


def _checked(found: tuple[Any, str], field: str = "text") -> str:
    """A document, from what stands under ``field`` and where that is."""
    value, where = found
    if not isinstance(value, str):
        raise InputError(f"{where}: no text under {field!r}; expected a string there")
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        # JSON can spell it, no tokenizer reads it: better now than after an hour.
        raise InputError(f"{where}: half of a surrogate pair, which is no character; write the file anew as UTF-8")
    return value


@contextmanager
def _utf8(path: Path) -> Iterator[None]:
    try:
        yield
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({error.reason})") from error
