"""What the features of a result are called, by the label store of this machine."""

from __future__ import annotations

from collections.abc import Iterable

from gemlens.records.labels import Labels
from gemlens.scope.labels import labels_at_hand
from gemlens.scope.multilayer import MultiLayer
from gemlens.study.outputs import Dictionary

__all__ = ["labelled"]


def labelled(parts: Iterable[tuple[Dictionary, Iterable[int]]]) -> tuple[Labels, tuple[str, ...]]:
    """As ``labels_at_hand``, of loaded dictionaries.

    A CLT has no labels: features of its several layers share a number, and a label does not say which it means.
    """
    return labels_at_hand((dictionary.info, () if _is_clt(dictionary) else ids) for dictionary, ids in parts)


def _is_clt(dictionary: Dictionary) -> bool:
    return isinstance(dictionary, MultiLayer) and dictionary.is_transcoder
