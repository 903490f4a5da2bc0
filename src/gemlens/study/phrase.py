"""Which features a phrase leads to: those that fire on it more than elsewhere, and those whose label says it.

A feature that fires on k of the n tokens of the phrase, and on a share p of tokens in general, is as surprising as the
phrase is likelier under k/n than under p:

    surprise = k log(k/n / p) + (n - k) log((1 - k/n) / (1 - p))      nats; only where k/n > p

It is the statistic of Dunning 1993 for one sample. Features that fire everywhere come out last, however strongly they
fire. Where nobody measured p, the dictionary's mean is taken for all of its features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log

import numpy as np
from numpy.typing import NDArray

from gemlens.records import ActiveFeatures, Analysis
from gemlens.records.labels import Label, PhraseFeature, best_label
from gemlens.scope.label_names import key_of

__all__ = ["phrase_features", "surprise"]

_RAREST = 1e-7
_LABEL_BONUS = 2.0


def surprise(fired: int, tokens: int, rate: float) -> float:
    """Nats; 0 where it fires no more than usual."""
    rate = min(max(rate, _RAREST), 1 - _RAREST)
    share = fired / tokens if tokens else 0.0
    if share <= rate:
        return 0.0
    rest = (tokens - fired) * log((1 - share) / (1 - rate)) if fired < tokens else 0.0
    return fired * log(share / rate) + rest


def phrase_features(
    analysis: Analysis,
    rates: Sequence[NDArray[np.float64] | None],
    labels: Mapping[str, Mapping[int, Sequence[Label]]],
    hits: Sequence[Label],
    *,
    limit: int = 20,
) -> list[PhraseFeature]:
    """The features of each dictionary that the phrase leads to, most surprising first, at most ``limit`` of each.

    Args:
        analysis: of the phrase; control tokens are left out.
        rates: share of tokens on which each feature fires, by dictionary; None where nobody measured it.
        labels: by exact path of the dictionary and feature.
        hits: labels that answer to the phrase.
    """
    found: list[PhraseFeature] = []
    counted = np.array([token.l0 is not None and not token.is_special for token in analysis.tokens], dtype=bool)
    said = {(label.dictionary, label.feature) for label in hits}
    for index, info in enumerate(analysis.dictionaries):
        key, active = key_of(info), analysis.activations[index]
        seen = _seen(active, counted)
        n, mean = int(counted.sum()), float(np.diff(active.indptr)[counted].mean() / info.width) if counted.any() else 0
        known = rates[index]
        here: list[PhraseFeature] = []
        for feature in {*seen, *(place for path, place in said if path == key)}:
            fired, peak, token = seen.get(feature, (0, 0.0, -1))
            rate = None if known is None else float(known[feature])
            by_label = (key, feature) in said
            nats = surprise(fired, n, mean if rate is None else rate)
            if nats > 0 or by_label:
                every = labels.get(key, {}).get(feature, ())
                shown = [each for each in hits if (each.dictionary, each.feature) == (key, feature)] or list(every)
                strongest = analysis.tokens[token].text if fired else ""
                here.append(
                    PhraseFeature(key, feature, fired, n, peak, rate, nats, strongest, best_label(shown), by_label)
                )
        # One that fires and is called so comes before one that only fires a little more rarely elsewhere.
        here.sort(key=lambda each: (-each.surprise * (_LABEL_BONUS if each.by_label else 1.0), each.feature))
        found += here[:limit]
    return found


def _seen(active: ActiveFeatures, counted: NDArray[np.bool_]) -> dict[int, tuple[int, float, int]]:
    """Feature -> tokens on which it fires, its largest activation, and where that is."""
    rows = np.repeat(np.arange(len(active.indptr) - 1), np.diff(active.indptr))
    found: dict[int, tuple[int, float, int]] = {}
    kept = counted[rows]
    for feature, value, row in zip(
        active.ids[kept].tolist(), active.values[kept].tolist(), rows[kept].tolist(), strict=True
    ):
        fired, peak, token = found.get(feature, (0, 0.0, -1))
        found[feature] = (fired + 1, value, row) if value > peak else (fired + 1, peak, token)
    return found
