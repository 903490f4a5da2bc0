"""Labels as the files of other results hold them."""

from __future__ import annotations

import dataclasses
from typing import Any

from gemlens.records.labels import Label, Labels

__all__ = ["label_dict", "label_dicts"]


def label_dict(dictionary: int, label: Label) -> dict[str, Any]:
    """Of the dictionary at that index of the result, which says its path."""
    names = ("text", "source", "method", "model", "confidence", "polysemantic", "position", "created")
    said = {"dictionary": dictionary, "feature_id": label.feature} | {name: getattr(label, name) for name in names}
    return said | {"scores": [dataclasses.asdict(score) for score in label.scores]}


def label_dicts(labels: Labels) -> list[dict[str, Any]]:
    """By dictionary and feature."""
    return [label_dict(index, of_one[feature]) for index, of_one in enumerate(labels) for feature in sorted(of_one)]
