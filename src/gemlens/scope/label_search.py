"""Which labels answer to a phrase.

A full-text index finds them; of a query that more than a few thousand labels answer to, only the first so many are
looked at, since BM25 over half a million would take seconds. Among labels that hold all the words of a query, BM25's
weights of words would change nothing: what remains of it is that shorter labels come first.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gemlens.errors import InputError
from gemlens.records.labels import Label
from gemlens.scope.label_rows import fit
from gemlens.scope.label_schema import told

if TYPE_CHECKING:
    from gemlens.scope.labels import LabelStore

__all__ = ["search"]

_CANDIDATES = 2000
_MOST_WORDS = 64
_WORDS = re.compile(r'"([^"]+)"|([^\W_]+)')


def search(
    store: LabelStore, query: str, *, dictionaries: Sequence[str] | None, limit: int, any_word: bool
) -> list[Label]:
    """As ``LabelStore.search`` says."""
    terms = [phrase or word for phrase, word in _WORDS.findall(fit(query))]
    if not terms:
        raise InputError(f"{query[:80]!r} holds no word to search for; give one, such as 'time travel'")
    match = "text : (" + (" OR " if any_word else " AND ").join(f'"{term}"' for term in terms[:_MOST_WORDS]) + ")"
    if dictionaries is not None:
        ids = [known for path in dictionaries if (known := store.id_of(path)) is not None]
        if not ids:
            return []
        match += " AND place : (" + " OR ".join(f"d{each}" for each in ids) + ")"
    with told(store.path):
        rows = store.sql.execute(
            "SELECT id, text FROM labels WHERE id IN (SELECT rowid FROM labels_text WHERE labels_text MATCH ? LIMIT ?)",
            (match, _CANDIDATES),
        ).fetchall()
    said, words = " ".join(query.split()).casefold(), [term.casefold() for term in terms]

    def order(row: tuple[int, str]) -> tuple[int, bool, int, int]:
        place, text = row[0], row[1].casefold()
        missing = sum(word not in text for word in words) if any_word else 0
        return missing, said not in text, len(text), place

    # Only those that are shown become records: of thousands that would take most of the time.
    best = [place for place, _ in sorted(rows, key=order)[:limit]]
    labels = store.read(f"l.id IN ({', '.join(map(str, best))}) ORDER BY l.id", ())
    found = dict(zip(sorted(best), labels, strict=True))
    return [found[place] for place in best]
