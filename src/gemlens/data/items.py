"""Multiple-choice items from files, data sets of the hub, and the fifty that ship with gemlens.

    builtin                    everyday physics, written for gemlens (50 items)
    piqa                       ybisk/piqa on the hub, its validation split
    hf:owner/name:config:split any data set of a known shape (``data.item_shapes``)
    valid.jsonl                its authors' form: rows here, labels in valid-labels.lst beside it
    items.jsonl, .csv, .parquet    rows of a known shape, or of any with a mapping of fields

Rows without an answer, and rows of which two choices are equal, are left out and listed.
"""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from gemlens.data.hub_dataset import PREFIX, HubDataset
from gemlens.data.item_shapes import Row, shape_of
from gemlens.errors import InputError, NotFoundError
from gemlens.records.choices import Item, Skipped

__all__ = ["BUILTIN", "PIQA", "Items", "read_items", "sample"]

BUILTIN, PIQA = "builtin", "piqa"
# The hub's own conversion to Parquet: the data set itself is a script, which datasets runs no more.
_PIQA = HubDataset("ybisk/piqa", None, "validation", "refs/convert/parquet")
_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")


class Items(NamedTuple):
    name: str
    """Of the data set, for records: no folders."""
    items: list[Item]
    skipped: list[Skipped]


def read_items(
    source: str, *, labels: str | Path | None = None, fields: Mapping[str, str] | None = None, split: str | None = None
) -> Items:
    """Every item of a data set.

    Args:
        source: ``builtin``, ``piqa``, ``hf:owner/name``, or a file.
        labels: a file of one label a line, for rows that have none; found by itself where it is called as PIQA's.
        fields: what the columns are called, for shapes that are not known: ``{"question": "stem", "choices": "a+b",
            "label": "key"}``; ``choices`` is one column of a list, or several joined by ``+``.
        split: of a data set of the hub.

    Raises:
        NotFoundError: no such file or data set.
        InputError: another kind of file, a field that is missing, a label out of range, labels and rows of different
            number, or no item at all.
        MissingPackageError: a data set of the hub without ``datasets``.
    """
    if source == BUILTIN:
        name, rows, where = BUILTIN, list(_builtin()), "the builtin items, item"
    elif source == PIQA or source.startswith(PREFIX):
        found = _PIQA if source == PIQA else HubDataset.parse(source)
        if split is not None:
            found = HubDataset(found.name, found.config, split, found.revision)
        name, rows, where = str(found).removeprefix(PREFIX), list(found.records()), f"{found}, row"
    else:
        path = Path(source).expanduser()
        name, rows, where = path.name, list(_file(path)), f"{path}, row"
        rows = _labelled(path, rows, labels)
    if not rows:
        raise InputError(f"{source} holds no row; write one question each")
    items, skipped = _items(rows, fields, where)
    if not items:
        raise InputError(f"no row of {source} can be used; the first of {len(skipped)}: {skipped[0].reason}")
    return Items(name, items, skipped)


def sample(items: Items, count: int | None, seed: int) -> Items:
    """``count`` items drawn at random, in the order of the file; all of them for None or where there are no more."""
    if count is None or count >= len(items.items):
        return items
    drawn = random.Random(seed).sample(range(len(items.items)), count)
    return items._replace(items=[items.items[index] for index in sorted(drawn)])


def _items(
    rows: list[dict[str, Any]], fields: Mapping[str, str] | None, where: str
) -> tuple[list[Item], list[Skipped]]:
    shape = shape_of(rows[0], fields, f"{where} 1")
    items, skipped = [], []
    for index, row in enumerate(rows):
        made = shape(row, f"{where} {index + 1}")
        if (reason := _useless(made)) is not None:
            skipped.append(Skipped(index, reason))
            continue
        assert made.gold is not None
        if not 0 <= made.gold < len(made.choices):
            raise InputError(
                f"{where} {index + 1}: label {made.gold} is out of range; it has {len(made.choices)} choices, "
                f"counted from 0 to {len(made.choices) - 1}"
            )
        items.append(Item(index, made.question, made.choices, made.gold, made.contexts, made.continuations))
    return items, skipped


def _useless(row: Row) -> str | None:
    """Why a row cannot be scored."""
    if row.gold is None:
        return "no answer"
    if len(row.choices) < 2:
        return "fewer than two choices"
    if any(not text.strip() for text in row.continuations):
        return "an empty choice"
    pairs = [(context, text.strip()) for context, text in zip(row.contexts, row.continuations, strict=True)]
    return "two choices are equal" if len(set(pairs)) < len(pairs) else None


def _builtin() -> Iterator[dict[str, Any]]:
    text = (resources.files("gemlens.data") / "everyday_physics.jsonl").read_text("utf-8")
    yield from (json.loads(line) for line in text.splitlines())


def _file(path: Path) -> Iterator[dict[str, Any]]:
    if not path.exists():
        raise NotFoundError(
            f"{path} does not exist; name a file of items ({', '.join(_SUFFIXES)}), {BUILTIN}, {PIQA}, or a data set "
            f"of the hub as {PREFIX}owner/name"
        )
    readers = {
        ".jsonl": _jsonl,
        ".json": _json,
        ".csv": lambda path: _csv(path, ","),
        ".tsv": lambda path: _csv(path, "\t"),
        ".parquet": _parquet,
    }
    if path.is_dir() or path.suffix.lower() not in readers:
        raise InputError(f"{path} is no file of items; name one of {', '.join(_SUFFIXES)}")
    try:
        for number, row in enumerate(readers[path.suffix.lower()](path), 1):
            if not isinstance(row, dict):
                raise InputError(f"{path}, row {number}: no object; expected the fields of one question")
            yield row
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({error.reason}); convert it first") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error}); is it whole?") from error


def _jsonl(path: Path) -> Iterator[Any]:
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield _parsed(line, f"{path}, line {number}")


def _json(path: Path) -> Iterator[Any]:
    found = _parsed(path.read_text("utf-8-sig"), str(path))
    if not isinstance(found, list):
        raise InputError(f"{path} is no list; expected one of objects, or JSON Lines in a .jsonl file")
    yield from found


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not JSON ({error}); expected an object a question") from error


def _csv(path: Path, delimiter: str) -> Iterator[Any]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        try:
            for row in csv.DictReader(file, delimiter=delimiter):
                # What is beyond the header has no name.
                yield {key: value for key, value in row.items() if key is not None}
        except csv.Error as error:
            raise InputError(f"{path} cannot be read as a table ({error}); check its quotes") from error


def _parquet(path: Path) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        yield from pq.read_table(path).to_pylist()
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path} cannot be read as Parquet ({reason}); is it whole?") from error


def _labelled(path: Path, rows: list[dict[str, Any]], labels: str | Path | None) -> list[dict[str, Any]]:
    """Rows with the label of the line beside them, where there is such a file."""
    if labels is None:
        beside = path.with_name(f"{path.stem}-labels.lst")
        if not rows or "goal" not in rows[0] or "label" in rows[0] or not beside.exists():
            return rows
        labels = beside
    labels = Path(labels).expanduser()
    if not labels.is_file():
        raise NotFoundError(f"--labels {labels} does not exist; name a file of one label a line")
    try:
        lines = labels.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{labels} cannot be read ({error}); expected one label a line") from error
    while lines and not lines[-1].strip():
        lines.pop()
    if len(lines) != len(rows):
        raise InputError(
            f"{path} has {len(rows)} rows and {labels} {len(lines)} labels; give the files that belong together"
        )
    return [row | {"label": line.strip()} for row, line in zip(rows, lines, strict=True)]
