"""Labels as rows of the store, and back; what a row may hold."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Sequence
from typing import Any

from gemlens.errors import InputError
from gemlens.records.labels import CONFIDENCES, Label, Score

__all__ = ["COLUMNS", "SCORE_COLUMNS", "check", "fit", "label_of", "row", "score_row"]

COLUMNS = "text, source, method, model, confidence, polysemantic, position, examples, created"
SCORE_COLUMNS = "method, auc, low, high, firing, silent, model, created"
_LONGEST = 20_000
_UNFIT = re.compile("[\x00\ud800-\udfff]")  # SQLite's functions end a text at NUL; UTF-8 has no surrogates


def fit(text: str) -> str:
    """The text as the store can hold it; what it cannot becomes U+FFFD."""
    return _UNFIT.sub("\ufffd", text[:_LONGEST])


def check(label: Label, width: int | None) -> Label:
    """Refuse what no store should hold; ``width`` is the dictionary's, where it is known.

    Raises:
        InputError: an empty text, a feature that there cannot be, or no such confidence.
    """
    where = f"feature {label.feature} of {label.dictionary}"
    if not 0 <= label.feature < 2**31:
        raise InputError(f"{where}: features are numbered from 0")
    if width is not None and label.feature >= width:
        raise InputError(f"{where}: it has {width:,} features, 0 to {width - 1:,}")
    if not label.text.strip():
        raise InputError(f"{where}: the label is empty; give some text")
    if label.confidence not in (None, *CONFIDENCES):
        raise InputError(f"{where}: confidence {label.confidence!r} is none of {', '.join(CONFIDENCES)}")
    return label


def row(place: int, label: Label) -> tuple[Any, ...]:
    """``dictionary, feature, same`` and ``COLUMNS``; ``same`` is 64 bits of a hash of who says what."""
    said = [label.source, label.method, label.model, fit(label.text)]
    digest = hashlib.blake2b(json.dumps(said).encode(), digest_size=8).digest()
    values = (getattr(label, name) for name in COLUMNS.split(", "))
    fitted = (fit(value) if isinstance(value, str) else value for value in values)
    return place, label.feature, int.from_bytes(digest, "big", signed=True), *fitted


def label_of(values: Sequence[Any], scores: tuple[Score, ...]) -> Label:
    """From ``path, feature`` and ``COLUMNS``."""
    path, feature, *rest = values
    said = dict(zip(COLUMNS.split(", "), rest, strict=True))
    said["polysemantic"] = None if said["polysemantic"] is None else bool(said["polysemantic"])
    return Label(path, feature, **said, scores=scores)


def score_row(score: Score) -> tuple[Any, ...]:
    return dataclasses.astuple(score)
