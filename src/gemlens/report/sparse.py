"""Sparse features of saved activations as a file: Parquet, npz or JSON Lines, by its name.

    .parquet   row, position (of sequences only), feature_id, activation: one row an active feature
    .npz       indptr, ids, values, shape: a CSR matrix over all tokens, one sequence after the other
    .jsonl     a line a token: row, position, l0, features

What holds for the whole file stands in the Parquet schema's metadata and as ``about`` in the npz.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from math import prod
from pathlib import Path
from typing import BinaryIO

import numpy as np

from gemlens.errors import InputError
from gemlens.files import told, whole
from gemlens.records.encoded import EncodedPart, Encoding

__all__ = ["check_kind", "sparse_file"]

Add = Callable[[EncodedPart], None]


def check_kind(path: Path) -> None:
    """Raise InputError for a name that says no kind of file that is written here."""
    if path.suffix.lower() not in _KINDS:
        raise InputError(f"{path}: name a {', '.join(_KINDS)} file")


@contextmanager
def sparse_file(path: Path, encoding: Encoding) -> Iterator[Add]:
    """Yield a function that adds parts, in order; the file appears, whole, when the block ends.

    npz is held in memory until then, the others are written as they come.

    Raises:
        InputError: another kind of file.
        OutputError: it cannot be written.
    """
    check_kind(path)
    with whole(path) as file, _KINDS[path.suffix.lower()](path, file, encoding) as add:
        yield add


@contextmanager
def _parquet(path: Path, file: BinaryIO, encoding: Encoding) -> Iterator[Add]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    fields = [("row", pa.int64()), ("position", pa.int32()), ("feature_id", pa.int32()), ("activation", pa.float32())]
    schema = pa.schema([field for field in fields if field[0] != "position" or len(encoding.shape) == 3])
    with told(path):
        writer = pq.ParquetWriter(
            file, schema.with_metadata({"gemlens": json.dumps(asdict(encoding))}), compression="zstd"
        )

    def add(part: EncodedPart) -> None:
        row, position = _place(encoding, np.repeat(np.arange(len(part.indptr) - 1), np.diff(part.indptr)) + part.first)
        columns = {"row": row, "position": position, "feature_id": part.ids, "activation": part.values}
        with told(path):
            writer.write_table(pa.table({name: columns[name] for name in schema.names}, schema=schema))

    try:
        yield add
        with told(path):
            writer.close()
    except BaseException:
        with suppress(Exception):  # or it tries on its own once the file is gone
            writer.close()
        raise


@contextmanager
def _npz(path: Path, file: BinaryIO, encoding: Encoding) -> Iterator[Add]:
    parts: list[EncodedPart] = []
    yield parts.append
    l0 = np.concatenate([np.diff(part.indptr) for part in parts])
    with told(path):
        np.savez(
            file,
            indptr=np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(l0)]),
            ids=np.concatenate([part.ids for part in parts]),
            values=np.concatenate([part.values for part in parts]),
            shape=np.array(encoding.shape, dtype=np.int64),
            about=np.array(json.dumps(asdict(encoding))),
        )


@contextmanager
def _jsonl(path: Path, file: BinaryIO, encoding: Encoding) -> Iterator[Add]:
    def add(part: EncodedPart) -> None:
        lines = []
        rows, positions = _place(encoding, part.first + np.arange(len(part.indptr) - 1))
        for token, (row, position) in enumerate(zip(rows.tolist(), positions.tolist(), strict=True)):
            own = slice(part.indptr[token], part.indptr[token + 1])
            found = zip(part.ids[own].tolist(), part.values[own].tolist(), strict=True)
            place = {"row": row} | ({"position": position} if len(encoding.shape) == 3 else {})
            features = [{"feature_id": index, "activation": value} for index, value in found]
            lines.append(json.dumps(place | {"l0": len(features), "features": features}) + "\n")
        with told(path):
            file.write("".join(lines).encode())

    yield add


_KINDS = {".parquet": _parquet, ".npz": _npz, ".jsonl": _jsonl}


def _place(encoding: Encoding, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Row and position of tokens that are counted over all sequences."""
    per_row = prod(encoding.shape[1:-1])
    return tokens // per_row, (tokens % per_row).astype(np.int32)
