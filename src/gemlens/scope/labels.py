"""The label store: what features are called, kept in one file of this machine (``label_schema`` says how).

    with LabelStore() as store:
        store.add([Label("starter/resid_post/…", 7, "months of the year", source="me", method="hand")])
        store.search("months")
    labels_for(sae.info, [7, 8])          feature -> the label to show

A label belongs to one dictionary, by its exact path, and is never given out for another.
"""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from gemlens.batched import batched
from gemlens.errors import GemlensError
from gemlens.paths import data_dir
from gemlens.records import DictionaryInfo
from gemlens.records.labels import Label, Labels, Score, best_label
from gemlens.scope.label_names import Named, key_of
from gemlens.scope.label_rows import COLUMNS, SCORE_COLUMNS, check, label_of, row, score_row
from gemlens.scope.label_schema import connect, is_store, told
from gemlens.scope.label_search import search

__all__ = ["LabelStore", "label_file", "labels_at_hand", "labels_for", "now"]

_HOLES = ", ".join("?" * (3 + len(COLUMNS.split(", "))))


def label_file() -> Path:
    """Where labels are kept: ``labels.sqlite`` in the data folder."""
    return data_dir() / "labels.sqlite"


def now() -> str:
    """UTC, ISO 8601."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _dated(label: Label) -> Label:
    return label if label.created else dataclasses.replace(label, created=now())


def labels_for(info: DictionaryInfo, features: Iterable[int]) -> dict[int, Label]:
    """The label to show for each of ``features`` that has any; empty where no label was ever stored.

    Raises:
        InputError: the store is a newer gemlens', or damaged.
    """
    if not is_store(label_file()):
        return {}
    with LabelStore() as store:
        every = store.of(key_of(info), features)
    return {feature: best for feature, labels in every.items() if (best := best_label(labels))}


def labels_at_hand(parts: Iterable[tuple[DictionaryInfo, Iterable[int]]]) -> tuple[Labels, tuple[str, ...]]:
    """The labels to show beside a result: of dictionaries, each with the features that the result names.

    Returns:
        Feature -> label, aligned with ``parts``, and empty if there is none at all; and a warning where the store
        cannot be read: labels are a help beside the thing itself.
    """
    try:
        found = tuple(labels_for(info, ids) for info, ids in parts)
    except GemlensError as error:
        return (), (f"labels are not shown: {error}",)
    return (found if any(found) else ()), ()


class LabelStore:
    """Labels of any number of dictionaries; to be used in a ``with``, in one thread.

    Args:
        path: of the file, created if need be; that of the data folder unless given.

    Raises:
        InputError: another program's file, or a store of a newer gemlens.
        OutputError: it cannot be written.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or label_file()
        self.sql = connect(self.path)
        self._in_transaction = False
        self._ids: dict[str, int] = {}
        self._widths: dict[str, int | None] = {}

    def __enter__(self) -> LabelStore:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.sql.close()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """What happens inside is stored whole or not at all; others' writes wait, their reads do not."""
        if self._in_transaction:
            yield
            return
        with told(self.path):
            self.sql.execute("BEGIN IMMEDIATE")
            self._in_transaction = True
            try:
                yield
                self.sql.execute("COMMIT")
            except BaseException:
                self._forget()  # what was declared inside is gone
                if self.sql.in_transaction:
                    self.sql.execute("ROLLBACK")
                raise
            finally:
                self._in_transaction = False

    def declare(self, dictionary: Named) -> None:
        """Note how a dictionary is called, for exports and searches."""
        with self.writing():
            self.sql.execute(
                "INSERT INTO dictionaries (path, release, sae_id, neuronpedia, width) VALUES (?, ?, ?, ?, ?) "
                "ON CONFLICT (path) DO UPDATE SET release = excluded.release, sae_id = excluded.sae_id, neuronpedia = "
                "coalesce(excluded.neuronpedia, neuronpedia), width = coalesce(excluded.width, width)",
                (dictionary.key, dictionary.release, dictionary.id, dictionary.neuronpedia, dictionary.width),
            )
            self._forget()

    def add(self, labels: Iterable[Label]) -> int:
        """Store labels, and return how many are new.

        The same words for the same feature by the same source, method and model are one label: what is given of its
        confidence, position and scores replaces what was known.

        Raises:
            InputError: an empty text, a negative feature, one beyond the width, or no such confidence.
        """
        with self.writing():
            (before,) = self.one("SELECT coalesce(max(id), 0) FROM labels")
            for part in batched(labels, 1000):
                checked = [_dated(check(label, self._width(label.dictionary))) for label in part]
                self.sql.executemany(
                    f"INSERT INTO labels (dictionary, feature, same, {COLUMNS}) VALUES ({_HOLES}) "
                    "ON CONFLICT (dictionary, feature, same) DO UPDATE SET "
                    "confidence = coalesce(excluded.confidence, confidence), "
                    "polysemantic = coalesce(excluded.polysemantic, polysemantic), "
                    "position = coalesce(excluded.position, position), "
                    "examples = coalesce(excluded.examples, examples)",
                    [row(self.need_id(label.dictionary), label) for label in checked],
                )
                for label in checked:
                    self._add_scores(label)
            (new,) = self.one("SELECT count(*) FROM labels WHERE id > ?", before)
        return int(new)

    def of(self, dictionary: str, features: Iterable[int] | None = None) -> dict[int, list[Label]]:
        """All labels of some features, or of all that have any, by feature, in the order in which they came."""
        found: dict[int, list[Label]] = {}
        condition, wanted = "", [[]] if features is None else list(batched(sorted(set(map(int, features))), 500))
        for part in wanted:
            if features is not None:
                condition = f"AND feature IN ({', '.join(map(str, part))})"
            for label in self.read(f"d.path = ? {condition} ORDER BY feature, l.id", [dictionary]):
                found.setdefault(label.feature, []).append(label)
        return found

    def every(self, dictionaries: Sequence[str] | None = None) -> Iterator[Label]:
        """All labels, by dictionary and feature."""
        for path in self.dictionaries() if dictionaries is None else dictionaries:
            for labels in self.of(path).values():
                yield from labels

    def features(self, dictionary: str) -> dict[int, int]:
        """Features that have labels, and how many each."""
        with told(self.path):
            rows = self.sql.execute(
                "SELECT feature, count(*) FROM labels l JOIN dictionaries d ON d.id = l.dictionary WHERE d.path = ? "
                "GROUP BY feature",
                (dictionary,),
            )
            return dict(rows.fetchall())

    def note_download(self, dictionary: str) -> None:
        """Note when labels of a dictionary were last downloaded whole."""
        with self.writing():
            self.sql.execute("UPDATE dictionaries SET downloaded = ? WHERE path = ?", (now(), dictionary))

    def downloaded(self, dictionary: str) -> str | None:
        """When."""
        with told(self.path):
            row = self.sql.execute("SELECT downloaded FROM dictionaries WHERE path = ?", (dictionary,)).fetchone()
            return None if row is None else row[0]

    def search(
        self, query: str, *, dictionaries: Sequence[str] | None = None, limit: int = 20, any_word: bool = False
    ) -> list[Label]:
        """Labels that hold all words of ``query`` (``"in quotes"``: next to one another), word endings aside.

        Those that hold it as it stands come first, then shorter ones: of labels with the same words, the one with the
        fewest others is most about them.

        Args:
            dictionaries: exact paths; all of them unless given.
            any_word: labels with at least one of the words; those with most come first.

        Raises:
            InputError: a query without a word in it.
        """
        return search(self, query, dictionaries=dictionaries, limit=limit, any_word=any_word)

    def dictionaries(self) -> dict[str, Named]:
        """Those that have labels or facts, by exact path, sorted."""
        with told(self.path):
            rows = self.sql.execute(
                "SELECT path, release, sae_id, neuronpedia, width FROM dictionaries d "
                "WHERE EXISTS (SELECT 1 FROM labels WHERE dictionary = d.id) "
                "OR EXISTS (SELECT 1 FROM facts WHERE dictionary = d.id) ORDER BY path"
            )
            return {
                path: Named(path, release, sae_id, neuronpedia=pages, width=width)
                for path, release, sae_id, pages, width in rows
            }

    def one(self, query: str, *values: object) -> tuple[int, ...]:
        row: tuple[int, ...] = self.sql.execute(query, values).fetchone()
        return row

    def id_of(self, path: str) -> int | None:
        if path not in self._ids:
            with told(self.path):
                row = self.sql.execute("SELECT id FROM dictionaries WHERE path = ?", (path,)).fetchone()
            if row is None:
                return None
            self._ids[path] = row[0]
        return self._ids[path]

    def need_id(self, path: str) -> int:
        if (known := self.id_of(path)) is None:
            self.declare(Named(path, path, ""))
            known = self.id_of(path)
        assert known is not None
        return known

    def _width(self, path: str) -> int | None:
        if path not in self._widths:
            row = self.sql.execute("SELECT width FROM dictionaries WHERE id = ?", (self.need_id(path),)).fetchone()
            self._widths[path] = row[0]
        return self._widths[path]

    def _forget(self) -> None:
        self._ids.clear()
        self._widths.clear()

    def _add_scores(self, label: Label) -> None:
        if not label.scores:
            return
        (place,) = self.one(
            "SELECT id FROM labels WHERE dictionary = ? AND feature = ? AND same = ?",
            *row(self.need_id(label.dictionary), label)[:3],
        )
        self.sql.executemany(
            f"INSERT OR REPLACE INTO scores (label, {SCORE_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [(place, *score_row(score)) for score in label.scores],
        )

    def read(self, condition: str, values: Sequence[object]) -> Iterator[Label]:
        """Labels ``l`` of dictionaries ``d`` under a condition of SQL, with their scores."""
        with told(self.path):
            rows = self.sql.execute(
                f"SELECT l.id, d.path, l.feature, {COLUMNS} FROM labels l JOIN dictionaries d ON d.id = l.dictionary "
                f"WHERE {condition}",
                tuple(values),
            ).fetchall()
            scores = self._scores([each[0] for each in rows])
        return (label_of(each[1:], scores.get(each[0], ())) for each in rows)

    def _scores(self, ids: Sequence[int]) -> dict[int, tuple[Score, ...]]:
        found: dict[int, tuple[Score, ...]] = {}
        if self.sql.execute("SELECT 1 FROM scores LIMIT 1").fetchone() is None:
            return found
        for part in batched(ids, 500):
            wanted = ", ".join(map(str, part))
            for place, *values in self.sql.execute(
                f"SELECT label, {SCORE_COLUMNS} FROM scores WHERE label IN ({wanted})"
            ):
                found[place] = (*found.get(place, ()), Score(*values))
        return found
