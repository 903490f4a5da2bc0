"""Every active feature of an ``Analysis`` as a Parquet row, for DuckDB, pandas and polars.

The other exports list the strongest features of a token; here are all of them. What holds for the whole file (model,
dictionaries, provenance) is in the metadata of its schema. The columns are described in ``docs/formats.md``.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gemlens.files import told, whole
from gemlens.records import SCHEMA_VERSION, Analysis

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["parquet_file", "to_table"]


def to_table(analysis: Analysis, *, prompt_index: int = 0) -> pa.Table:
    """Return one row an active feature, by dictionary, position and feature; none at BOS."""
    import pyarrow as pa

    rows = [np.repeat(np.arange(len(active.indptr) - 1), np.diff(active.indptr)) for active in analysis.activations]
    token = np.concatenate(rows)
    dictionary = np.repeat(np.arange(len(rows)), [len(part) for part in rows]).astype(np.int32)
    names = [f"{info.release}/{info.category}/{info.id}" for info in analysis.dictionaries]

    def of_token(name: str) -> np.ndarray:
        return np.array([getattr(record, name) for record in analysis.tokens])[token]

    columns = {
        "prompt_index": np.full(len(token), prompt_index, dtype=np.int32),
        "position": of_token("position").astype(np.int32),
        "text": _named(token, [record.text for record in analysis.tokens]),
        "is_generated": of_token("is_generated").astype(bool),
        "is_special": of_token("is_special").astype(bool),
        "dictionary": _named(dictionary, names),
        "feature_id": np.concatenate([active.ids for active in analysis.activations]).astype(np.int32),
        "label": _labels(analysis, dictionary),
        "activation": np.concatenate([active.values for active in analysis.activations]).astype(np.float32),
    }
    return pa.table(columns).replace_schema_metadata(_metadata(analysis))


def _labels(analysis: Analysis, dictionary: np.ndarray) -> pa.DictionaryArray:
    """What each row's feature is called; null where nobody said."""
    import pyarrow as pa

    ids = np.concatenate([active.ids for active in analysis.activations]).tolist()
    texts: dict[str, int] = {}
    at: list[int | None] = []
    for k, feature in zip(dictionary.tolist(), ids, strict=True) if analysis.labels else ():
        label = analysis.label_of(k, feature)
        at.append(None if label is None else texts.setdefault(_utf8(label.shown), len(texts)))
    indices = pa.array(at or [None] * len(ids), pa.int32())
    return pa.DictionaryArray.from_arrays(indices, pa.array(list(texts), pa.string()))


@contextmanager
def parquet_file(path: Path) -> Iterator[Callable[[Analysis, int], None]]:
    """Yield a function that adds one analysis and its prompt's index; the file appears, whole, when the block ends.

    Raises:
        OutputError: it cannot be written.
    """
    import pyarrow.parquet as pq

    writers: list[pq.ParquetWriter] = []

    with whole(path) as file:

        def add(analysis: Analysis, prompt_index: int) -> None:
            table = to_table(analysis, prompt_index=prompt_index)
            with told(path):
                if not writers:  # the schema says what made the first, and so all of them
                    writers.append(pq.ParquetWriter(file, table.schema, compression="zstd"))
                writers[0].write_table(table)

        try:
            yield add
            with told(path):
                for writer in writers:
                    writer.close()
        except BaseException:
            for writer in writers:  # or it tries on its own once the file is gone
                with suppress(Exception):
                    writer.close()
            raise


def _named(indices: np.ndarray, names: list[str]) -> pa.DictionaryArray:
    """Strings stored once each; a bare surrogate, which UTF-8 cannot hold, reads ``\\udXXX``."""
    import pyarrow as pa

    strings = [_utf8(name) for name in names]
    # Parquet wants each string once: two tokens of one text share it.
    places = {string: place for place, string in enumerate(dict.fromkeys(strings))}
    at = np.array([places[string] for string in strings], dtype=np.int32)
    return pa.DictionaryArray.from_arrays(at[indices], pa.array(list(places), pa.string()))


def _metadata(analysis: Analysis) -> dict[str, str]:
    return {
        "schema_version": str(SCHEMA_VERSION),
        "model_id": _utf8(analysis.model_id),
        "dictionaries": json.dumps([dataclasses.asdict(info) for info in analysis.dictionaries]),
        "warnings": json.dumps(analysis.warnings),
        "provenance": json.dumps(dataclasses.asdict(analysis.provenance)),
    }


def _utf8(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
