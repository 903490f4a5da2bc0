"""``Choices`` as a Parquet table, one row a feature that fired: item, choice, layer, feature, activation.

All features are here, not only the strongest. What holds for the whole file is in the metadata of its schema.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gemlens.files import told, whole
from gemlens.records import SCHEMA_VERSION
from gemlens.records.choices import Choices

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["tables", "write_parquet"]


def write_parquet(found: Choices, path: Path) -> None:
    """Write one row group a dictionary.

    Raises:
        OutputError: it cannot be written.
    """
    import pyarrow.parquet as pq

    with whole(path) as file, told(path):
        writer = None
        for table in tables(found):
            writer = writer or pq.ParquetWriter(file, table.schema, compression="zstd")
            writer.write_table(table)
        if writer is not None:
            writer.close()


def tables(found: Choices) -> Iterator[pa.Table]:
    """One table a dictionary, rows by item, choice, token and feature."""
    import pyarrow as pa

    counts = np.diff(found.first_text)
    item_of = np.repeat(np.arange(len(counts)), counts)
    choice_of = np.arange(len(item_of)) - found.first_text[item_of]
    ids = np.array([item.id for item in found.items], dtype=np.int64)
    gold = np.array([item.gold for item in found.items])
    for info, features in zip(found.dictionaries, found.features, strict=True):
        rows = np.repeat(np.arange(len(features.indptr) - 1), np.diff(features.indptr))
        text = found.row_text[rows]
        item, choice = item_of[text], choice_of[text]
        n = len(rows)
        columns = {
            "example_id": ids[item],
            "choice": choice.astype(np.int32),
            "is_right": choice == gold[item],
            "log_likelihood": found.log_likelihood[text],
            "position": found.row_position[rows].astype(np.int32),
            "site": pa.DictionaryArray.from_arrays(np.zeros(n, dtype=np.int32), pa.array([info.site], pa.string())),
            "layer": np.full(n, info.layer, dtype=np.int32),
            "dictionary": pa.DictionaryArray.from_arrays(
                np.zeros(n, dtype=np.int32), pa.array([f"{info.release}/{info.category}/{info.id}"], pa.string())
            ),
            "feature_id": features.ids.astype(np.int32),
            "activation": features.values.astype(np.float32),
        }
        yield pa.table(columns).replace_schema_metadata(_metadata(found))


def _metadata(found: Choices) -> dict[str, str]:
    """Without the time, so that a run gives the same bytes again."""
    made = {key: value for key, value in dataclasses.asdict(found.provenance).items() if key != "created"}
    return {
        "schema_version": str(SCHEMA_VERSION),
        "model_id": found.model_id.encode("utf-8", "backslashreplace").decode(),
        "dataset": found.dataset.encode("utf-8", "backslashreplace").decode(),
        "token": found.token,
        "provenance": json.dumps(made),
    }
