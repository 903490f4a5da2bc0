"""What a dictionary saw over a whole text: its strongest features, and each feature's activations token by token.

Control tokens (BOS, ``<start_of_turn>`` ...) are left out of rankings and scales: their activations say that a turn
begins, not what the text says, and are often large enough to drown it. They stay in a feature's own column.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gemlens.records import ActiveFeatures, Analysis

__all__ = ["FeatureSummary", "columns", "l0", "peaks", "scale", "strongest"]

Column = tuple[NDArray[np.int64], NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class FeatureSummary:
    """One feature over one text, control tokens left out."""

    feature_id: int
    max_activation: float
    token: int
    """Index of the token where it is strongest (the first one, on a tie)."""
    active_tokens: int
    """Number of tokens on which it is active."""
    mean_activation: float
    """Mean over the tokens on which it is active, not over the text."""


def strongest(analysis: Analysis, dictionary: int, limit: int) -> list[FeatureSummary]:
    """Return the ``limit`` features with the highest activation anywhere in the text, highest first."""
    active = analysis.activations[dictionary]
    rows = _rows(active)
    keep = _counted(analysis)[rows] & np.isfinite(active.values)
    ids, values, rows = active.ids[keep], active.values[keep].astype(np.float64), rows[keep]
    # One sort puts each feature's activations together, strongest first, earliest first among equals.
    order = np.lexsort((rows, -values, ids))
    ids, values, rows = ids[order], values[order], rows[order]
    features, starts, counts = np.unique(ids, return_index=True, return_counts=True)
    sums = np.add.reduceat(values, starts) if len(starts) else values
    ranked = np.lexsort((features, -values[starts]))[:limit]
    return [
        FeatureSummary(
            feature_id=int(features[i]),
            max_activation=float(values[starts[i]]),
            token=int(rows[starts[i]]),
            active_tokens=int(counts[i]),
            mean_activation=float(sums[i] / counts[i]),
        )
        for i in ranked
    ]


def columns(active: ActiveFeatures, features: Iterable[int]) -> dict[int, Column]:
    """Return feature -> (tokens, activations) for many features at once; ``active.column`` would scan for each."""
    wanted = np.unique(np.fromiter(features, dtype=np.int64))
    keep = np.isin(active.ids, wanted) & np.isfinite(active.values)
    ids, rows, values = active.ids[keep], _rows(active)[keep], active.values[keep]
    order = np.argsort(ids, kind="stable")
    cuts = np.searchsorted(ids[order], wanted[1:])
    tokens, activations = np.split(rows[order], cuts), np.split(values[order], cuts)
    return {int(feature): (tokens[i], activations[i]) for i, feature in enumerate(wanted)}


def peaks(active: ActiveFeatures) -> NDArray[np.float32]:
    """[tokens], the strongest activation of each token, 0 where nothing is active."""
    out = np.zeros(len(active.indptr) - 1, dtype=np.float32)
    finite = np.where(np.isfinite(active.values), active.values, 0)
    np.maximum.at(out, _rows(active), finite)
    return out


def scale(analysis: Analysis, dictionary: int) -> float:
    """Return the activation that gets the full shade: the strongest in the text, if it has any feature at all."""
    peak = peaks(analysis.activations[dictionary])
    counted = peak[_counted(analysis)]
    return float(counted.max() if counted.any() else peak.max(initial=0))


def l0(analysis: Analysis, dictionary: int) -> list[int | None]:
    """[tokens], active features of any dictionary; None where dictionaries were not applied (BOS, the opening
    of a chat)."""
    counts = np.diff(analysis.activations[dictionary].indptr)
    return [None if token.l0 is None else int(n) for token, n in zip(analysis.tokens, counts, strict=True)]


def _counted(analysis: Analysis) -> NDArray[np.bool_]:
    return np.array([token.l0 is not None and not token.is_special for token in analysis.tokens], dtype=np.bool_)


def _rows(active: ActiveFeatures) -> NDArray[np.int64]:
    return np.repeat(np.arange(len(active.indptr) - 1), np.diff(active.indptr))
