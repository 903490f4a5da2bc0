"""Labels as files: CSV and Parquet of everything that is known, and whatever else labels come in.

    .csv .parquet      one row a label, columns ``COLUMNS``; ``scores`` is JSON
    .jsonl             one object a line: ``text``, ``description`` or ``concept``; ``feature`` or ``index``; or a
                       ``ref`` that is the address of a page of Neuronpedia, which says dictionary and feature
    .json              ``feature_labels.json``, see ``label_layout``

A column ``dictionary`` names the dictionary by its exact path; where there is none, the caller does.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from gemlens.errors import InputError, NotFoundError
from gemlens.files import told, whole, write
from gemlens.records.labels import Label, Score
from gemlens.scope.label_names import Named, by_neuronpedia_id

__all__ = ["COLUMNS", "read_rows", "write_csv", "write_parquet"]

COLUMNS = (
    *("dictionary", "feature", "text", "source", "method", "model", "score", "score_method"),
    *("confidence", "polysemantic", "position", "examples", "created", "scores"),
)
_TEXTS = ("text", "description", "concept", "label")
_FEATURES = ("feature", "index", "feature_id")
_REF = re.compile(r"https?://(?:www\.)?neuronpedia\.org/([\w.-]+/[\w.-]+)/([0-9]{1,9})/?", re.ASCII)
_TRUTHS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
_LONGEST = 16 << 20


def write_csv(labels: Iterable[Label], path: Path) -> int:
    """Write ``labels`` and return how many there are.

    Raises:
        OutputError: it cannot be written.
    """
    text = io.StringIO()
    rows = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    rows.writeheader()
    count = 0
    for count, label in enumerate(labels, 1):  # noqa: B007 - the count is what is returned
        rows.writerow({name: "" if value is None else value for name, value in _row(label).items()})
    write(text.getvalue(), path)
    return count


def write_parquet(labels: Iterable[Label], path: Path) -> int:
    """The same as Parquet; empty cells are null."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {"feature": pa.int32(), "score": pa.float64(), "polysemantic": pa.bool_(), "examples": pa.int32()}
    schema = pa.schema([(name, kinds.get(name, pa.string())) for name in COLUMNS])
    table = pa.Table.from_pylist([_row(label) for label in labels], schema)
    with whole(path) as file, told(path):
        pq.write_table(table, file, compression="zstd")
    return table.num_rows


def read_rows(path: Path, dictionary: Named | None, source: str) -> Iterator[tuple[Named | str, Label]]:
    """Labels of a CSV, Parquet or JSON Lines file, with the dictionary of each.

    Args:
        dictionary: whose they are; needed where the file does not say so.
        source: of labels that name none.

    Raises:
        NotFoundError: no such file.
        InputError: another kind of file, a row that is none, or a file of another dictionary; names the row.
    """
    if not path.exists():
        raise NotFoundError(f"{path} does not exist; name a .csv, .parquet, .jsonl or feature_labels.json file")
    readers: dict[str, Callable[[Path], Iterator[Mapping[str, Any]]]] = {
        ".csv": _csv, ".parquet": _parquet, ".jsonl": _jsonl,
    }  # fmt: skip
    if path.suffix.lower() not in readers:
        raise InputError(f"{path} is no .csv, .parquet, .jsonl or .json file; convert it first")
    for number, said in enumerate(readers[path.suffix.lower()](path), 1):
        where = f"{path}, row {number}"
        try:
            yield _label(said, dictionary, source, where)
        except (TypeError, ValueError, OverflowError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{where}: {error}; see the columns in docs/labels.md") from error


def _row(label: Label) -> dict[str, Any]:
    said: dict[str, Any] = {name: getattr(label, name) for name in COLUMNS if name not in ("score", "scores")
                            and name != "score_method"}  # fmt: skip
    best = label.score
    scores = [dataclasses.asdict(score) for score in label.scores]
    said |= {"score": best.auc if best else None, "score_method": best.method if best else None}
    said["scores"] = json.dumps(scores, ensure_ascii=False) if scores else None
    return {name: said[name] for name in COLUMNS}


def _label(said: Mapping[str, Any], dictionary: Named | None, source: str, where: str) -> tuple[Named | str, Label]:
    values = {name: value for name, value in said.items() if value not in (None, "")}
    text = next((values[name] for name in _TEXTS if name in values), None)
    feature = next((values[name] for name in _FEATURES if name in values), None)
    owner: Named | str | None = str(values["dictionary"]) if "dictionary" in values else None
    default = source
    if page := _REF.fullmatch(str(values.get("ref", ""))):
        owner, feature, default = _of_page(page[1], where), page[2], "neuronpedia"
    key = owner if owner is None or isinstance(owner, str) else owner.key
    if dictionary is not None:
        if key not in (None, dictionary.key):
            raise InputError(
                f"{where} is a label of {key}, not of {dictionary.key}; leave out --sae-release and --sae-id "
                "to store it where it belongs"
            )
        owner = dictionary
    if owner is None:
        raise InputError(f"{where} says no dictionary; name it with --sae-release and --sae-id")
    if not isinstance(text, str) or feature is None:
        raise InputError(f"{where} has no {'text' if feature is not None else 'feature'}; there is {', '.join(said)}")
    return owner, Label(
        owner if isinstance(owner, str) else owner.key,
        int(feature),
        text,
        str(values.get("source", default)),
        method=_optional(values, "method"),
        model=_optional(values, "model"),
        confidence=_optional(values, "confidence"),
        polysemantic=_truth(values.get("polysemantic")),
        position=_optional(values, "position"),
        examples=int(values["examples"]) if "examples" in values else None,
        created=str(values.get("created", "")),
        scores=_scores(values),
    )


def _of_page(source: str, where: str) -> Named:
    found = by_neuronpedia_id(source)
    if found is None:
        raise InputError(
            f"{where}: the catalogue knows no dictionary for {source}; name it with --sae-release, --sae-id"
        )
    return found


def _optional(values: Mapping[str, Any], name: str) -> str | None:
    return str(values[name]) if name in values else None


def _truth(value: Any) -> bool | None:
    if value is None or isinstance(value, bool):
        return value
    if str(value).strip().lower() not in _TRUTHS:
        raise ValueError(f"polysemantic {value!r} is neither true nor false")
    return _TRUTHS[str(value).strip().lower()]


def _scores(values: Mapping[str, Any]) -> tuple[Score, ...]:
    listed = json.loads(values["scores"]) if "scores" in values else []
    if not isinstance(listed, list):
        raise ValueError("scores are no list")
    scores = tuple(Score(**each) for each in listed)
    for score in scores:
        if not all(
            isinstance(part, int | float) and math.isfinite(part) for part in (score.auc, score.low, score.high)
        ):
            raise ValueError("a score is no number")
    return scores


def _csv(path: Path) -> Iterator[Mapping[str, Any]]:
    csv.field_size_limit(_LONGEST)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for row in csv.DictReader(file, strict=True):
                if None in row or None in row.values():
                    raise InputError(f"{path}: a row has more or fewer cells than the header; is it comma-separated?")
                yield row
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({error.reason}); convert it first") from error
    except csv.Error as error:
        raise InputError(f"{path} is no CSV ({error}); export it anew") from error


def _parquet(path: Path) -> Iterator[Mapping[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches():
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is no Parquet file, or damaged ({' '.join(str(error).split())[:100]})") from error


def _jsonl(path: Path) -> Iterator[Mapping[str, Any]]:
    try:
        with path.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    said = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise InputError(f"{path}, line {number}: not JSON ({error})") from error
                if not isinstance(said, dict):
                    raise InputError(f"{path}, line {number}: no object; expected one with 'text' and 'feature'")
                yield said
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({error.reason}); convert it first") from error
