"""How far a download of labels is, and what Neuronpedia says of features besides them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

from gemlens.records.labels import FeatureFacts
from gemlens.scope.label_rows import fit
from gemlens.scope.label_schema import told

if TYPE_CHECKING:
    from gemlens.scope.labels import LabelStore

__all__ = ["add_facts", "done", "facts", "forget_done", "mark_done"]


def add_facts(store: LabelStore, dictionary: str, facts: Mapping[int, FeatureFacts]) -> None:
    """What Neuronpedia says of features besides labels; also that it was asked for them."""
    with store.writing():
        place = store.need_id(dictionary)
        rows = (
            (place, feature, _tokens(each.top_positive_tokens), _tokens(each.top_negative_tokens), each.max_activation)
            for feature, each in facts.items()
        )
        store.sql.executemany("INSERT OR REPLACE INTO facts VALUES (?, ?, ?, ?, ?)", rows)


def facts(store: LabelStore, dictionary: str) -> dict[int, FeatureFacts]:
    with told(store.path):
        rows = store.sql.execute(
            "SELECT feature, positive, negative, max_activation FROM facts f JOIN dictionaries d "
            "ON d.id = f.dictionary WHERE d.path = ?", (dictionary,),
        )  # fmt: skip
        return {
            feature: FeatureFacts(tuple(json.loads(positive)), tuple(json.loads(negative)), largest)
            for feature, positive, negative, largest in rows
        }


def mark_done(store: LabelStore, dictionary: str, part: str) -> None:
    """Note that a part of a download is in; in the same ``writing`` as what it brought."""
    with store.writing():
        store.sql.execute("INSERT OR IGNORE INTO done VALUES (?, ?)", (store.need_id(dictionary), part))


def done(store: LabelStore, dictionary: str) -> set[str]:
    with told(store.path):
        rows = store.sql.execute(
            "SELECT part FROM done p JOIN dictionaries d ON d.id = p.dictionary WHERE d.path = ?", (dictionary,)
        )
        return {part for (part,) in rows}


def forget_done(store: LabelStore, dictionary: str) -> None:
    """Take a download up from its start; labels stay."""
    with store.writing():
        place = store.need_id(dictionary)
        for table in ("done", "facts"):
            store.sql.execute(f"DELETE FROM {table} WHERE dictionary = ?", (place,))


def _tokens(tokens: tuple[str, ...]) -> str:
    return json.dumps([fit(token) for token in tokens], ensure_ascii=False)
