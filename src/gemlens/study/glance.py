"""What is known of features that a report names, where that is on this machine."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from functools import lru_cache

import numpy as np

from gemlens.errors import GemlensError
from gemlens.lm.vocabulary import Vocabulary, load_vocabulary
from gemlens.records import Analysis, DictionaryInfo
from gemlens.records.feature import FeaturePage
from gemlens.scope.evidence import Evidence, evidence_at_hand
from gemlens.study.feature import feature_page

__all__ = ["evidence_of", "pages_at_hand"]

_PER_LEVEL = 3


def evidence_of(analysis: Analysis, *, limit: int = 300) -> dict[int, dict[int, FeaturePage]]:
    """Dictionary index -> feature -> its page, of dictionaries whose evidence is at hand; the hub is not asked.

    Args:
        limit: features in all: those that tokens list first, the strongest ones, so that a report stays small.
    """
    room = max(1, limit // len(analysis.dictionaries))
    found = {}
    for k, info in enumerate(analysis.dictionaries):
        if pages := pages_at_hand(info, _named(analysis, k, room), per_level=_PER_LEVEL):
            found[k] = pages
    return found


def pages_at_hand(info: DictionaryInfo, features: Iterable[int], *, per_level: int) -> dict[int, FeaturePage]:
    """Feature -> its page, of a dictionary whose evidence is on this machine; empty without.

    A help beside what asks for it: what is damaged, or has no vocabulary here, is as good as absent.
    """
    found: dict[int, FeaturePage] = {}
    with suppress(GemlensError):
        if (at_hand := _at_hand(info)) is not None:
            for feature in features:
                with suppress(GemlensError):
                    found[feature] = feature_page(at_hand[0], feature, vocabulary=at_hand[1], per_level=per_level)
    return found


# Many prompts ask for the same dictionaries, one after the other.
@lru_cache(maxsize=64)
def _at_hand(info: DictionaryInfo) -> tuple[Evidence, Vocabulary] | None:
    evidence = evidence_at_hand(info)
    if evidence is None or evidence.examples.width != info.width or evidence.model_id is None:
        return None
    return evidence, load_vocabulary(evidence.model_id, fetch=False)


def _named(analysis: Analysis, k: int, room: int) -> list[int]:
    """What tokens list, strongest first, then the others that fire."""
    listed = [(f.activation, f.feature_id) for token in analysis.tokens for f in token.features if f.dictionary == k]
    active = analysis.activations[k]
    others = active.ids[np.argsort(-active.values, kind="stable")].tolist()
    chosen = dict.fromkeys([feature for _, feature in sorted(listed, reverse=True)] + others)
    return [int(feature) for feature in chosen][:room]
