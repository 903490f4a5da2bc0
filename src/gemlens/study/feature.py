"""Everything that the evidence says of one feature, as a record.

1. Examples are chosen at four levels of activation: quarters of the strongest. Of the highest level the strongest are
   shown, of the others some evenly from its top to its bottom; of one sequence only the strongest.
2. Around each stands its context, with the activations of other tokens there as far as the file holds them.
3. Histogram, positions, neighbours and alignment are as counted (``statistics.safetensors``). Without that file, as
   with Gemma Scope 2's own, histogram and positions are of the examples on file, and say so; neighbours and dimensions
   come from the decoder where that is at hand. The model is not needed, nor torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemlens.errors import AccessError, MissingPackageError, NetworkError, NotFoundError
from gemlens.lm.vocabulary import Vocabulary, load_vocabulary
from gemlens.records.feature import (
    Example,
    ExampleLevel,
    ExampleToken,
    FeatureLabel,
    FeaturePage,
    Histogram,
    PositionProfile,
    Related,
    TokenLogit,
)
from gemlens.scope.evidence import Evidence
from gemlens.scope.examples import FeatureExamples

__all__ = ["feature_page", "feature_pages"]

_SHARES = (1.0, 0.75, 0.5, 0.25, 0.0)
"""Of the strongest activation: where levels end."""
_BEFORE, _AFTER = 30, 20
"""Tokens of context."""
_NEAREST = 10
_BINS = 20
_BOS, _PADDING = 2, 0


def feature_page(
    evidence: Evidence,
    feature_id: int,
    *,
    vocabulary: Vocabulary | None = None,
    label: FeatureLabel | None = None,
    per_level: int = 8,
) -> FeaturePage:
    """Assemble the page of one feature.

    Args:
        evidence: from ``load_evidence``.
        vocabulary: for the texts of tokens; None finds that of the model, and does without where it cannot be had.
        label: what the feature is called, if anything.
        per_level: examples to show of each of four levels of activation.

    Raises:
        NotFoundError: the dictionary has no such feature.
        WeightsError: the evidence is damaged.
        MismatchError: it holds tokens that the vocabulary does not have.
        NetworkError: of evidence on the hub.
    """
    labels = {feature_id: label} if label else {}
    (page,) = feature_pages(evidence, [feature_id], vocabulary=vocabulary, labels=labels, per_level=per_level)
    return page


def feature_pages(
    evidence: Evidence,
    feature_ids: Iterable[int],
    *,
    vocabulary: Vocabulary | None = None,
    labels: Mapping[int, FeatureLabel] | None = None,
    per_level: int = 8,
) -> Iterator[FeaturePage]:
    """``feature_page`` of many, one at a time; the vocabulary is read once."""
    warning = None
    if vocabulary is None:
        vocabulary, warning = _vocabulary(evidence)
    for feature_id in feature_ids:
        yield _page(evidence, feature_id, vocabulary, (labels or {}).get(feature_id), per_level, warning)


def _vocabulary(evidence: Evidence) -> tuple[Vocabulary | None, str | None]:
    """That of the evidence's model; without one, a page shows numbers of tokens and says why."""
    if evidence.model_id is None:
        return None, "tokens are shown as numbers: neither evidence nor config names the model"
    try:
        return load_vocabulary(evidence.model_id), None
    except (NotFoundError, AccessError, NetworkError, MissingPackageError) as error:
        return None, f"tokens are shown as numbers, without the vocabulary of {evidence.model_id}: {error}"


def _page(
    evidence: Evidence,
    feature_id: int,
    vocabulary: Vocabulary | None,
    label: FeatureLabel | None,
    per_level: int,
    warning: str | None,
) -> FeaturePage:
    found = evidence.examples.feature(feature_id)
    counted = evidence.statistics.feature(feature_id) if evidence.statistics else {}
    about = evidence.examples.about
    tokens_read, texts = about.get("tokens"), about.get("texts")
    return FeaturePage(
        dictionary=evidence.info,
        feature_id=feature_id,
        frequency=found.frequency,
        max_activation=float(found.activations[0]) if len(found.activations) else 0.0,
        on_file=len(found.activations),
        levels=_levels(evidence, found, vocabulary, per_level),
        histogram=_counted_histogram(counted) if "histogram" in counted else _histogram(found.activations),
        positions=_positions(evidence, found, counted),
        promoted=_logits(found.top, vocabulary),
        suppressed=_logits(found.bottom, vocabulary),
        label=label,
        source=evidence.examples.name,
        model_id=evidence.model_id,
        tokens_read=tokens_read if isinstance(tokens_read, int) else None,
        texts=tuple(map(str, texts)) if isinstance(texts, list) else (),
        quantiles=bool(about.get("quantiles")),
        warnings=(warning,) if warning else (),
        **_alike(evidence, feature_id, counted),
    )


def _alike(evidence: Evidence, feature_id: int, counted: Mapping[str, NDArray[Any]]) -> dict[str, tuple[Related, ...]]:
    statistics = evidence.statistics
    pairs = {
        name: statistics.pairs(counted, name) if statistics else []
        for name in ("neighbours", "coactive", "basis", "neurons")
    }
    if "neighbours" not in counted:
        pairs["neighbours"] = evidence.nearest(feature_id, _NEAREST)
    if "basis" not in counted and (direction := evidence.direction(feature_id)) is not None:
        largest = np.argsort(-np.abs(direction), kind="stable")[:_NEAREST]
        pairs["basis"] = [(int(index), float(direction[index])) for index in largest]
    return {name: tuple(Related(index, value) for index, value in found) for name, found in pairs.items()}


def _levels(
    evidence: Evidence, found: FeatureExamples, vocabulary: Vocabulary | None, per_level: int
) -> tuple[ExampleLevel, ...]:
    if not len(found.activations):
        return ()
    values, top = found.activations, float(found.activations[0])
    # Of one sequence the strongest: the others are seen beside it.
    _, first = np.unique(found.seq_ids, return_index=True)
    own = np.zeros(len(values), dtype=np.bool_)
    own[first] = True
    chosen, inside = [], []
    for high, low in pairwise(_SHARES):
        within = (values <= high * top) & (values > low * top)
        candidates = np.flatnonzero(within & own)
        chosen.append(_spread(candidates, per_level, strongest=high == 1))
        inside.append(int(within.sum()))
    rows = evidence.examples.token_rows([int(found.seq_ids[index]) for picked in chosen for index in picked])
    if vocabulary is not None:
        vocabulary.check([int(row.max(initial=0)) for row in rows.values()])
    return tuple(
        ExampleLevel(low * top, high * top, count, tuple(_example(found, index, rows, vocabulary) for index in picked))
        for (high, low), count, picked in zip(pairwise(_SHARES), inside, chosen, strict=True)
    )


def _spread(candidates: NDArray[np.int64], limit: int, *, strongest: bool) -> list[int]:
    if strongest or len(candidates) <= limit:
        return [int(index) for index in candidates[:limit]]
    return [int(candidates[at]) for at in np.linspace(0, len(candidates) - 1, limit).round().astype(np.int64)]


def _example(
    found: FeatureExamples, index: int, rows: Mapping[int, NDArray[np.int64]], vocabulary: Vocabulary | None
) -> Example:
    sequence, position = int(found.seq_ids[index]), int(found.positions[index])
    row = rows[sequence]
    end = _length(row, position)
    start, stop = max(0, position - _BEFORE), min(end, position + 1 + _AFTER)
    ids = [int(token) for token in row[start:stop]]
    here = found.seq_ids == sequence
    # Reversed, so that of a position that is named twice the strongest stays.
    known = dict(zip(found.positions[here][::-1].tolist(), found.activations[here][::-1].tolist(), strict=True))
    pieces = [vocabulary.pieces[token] for token in ids] if vocabulary else [f"#{token}" for token in ids]
    texts = vocabulary.texts(ids) if vocabulary else [f" #{token}" for token in ids]
    special = vocabulary.special if vocabulary else frozenset({_BOS, _PADDING})
    effects = found.logit_effects
    return Example(
        activation=float(found.activations[index]),
        sequence=sequence,
        position=position,
        tokens=tuple(
            ExampleToken(text, piece, known.get(start + at), token in special)
            for at, (token, piece, text) in enumerate(zip(ids, pieces, texts, strict=True))
        ),
        peak=position - start,
        cut_before=start > 0,
        cut_after=stop < end,
        logit_effect=float(effects[index]) if effects is not None and np.isfinite(effects[index]) else None,
    )


def _length(row: NDArray[np.int64], position: int) -> int:
    """Where the padding at the end of a sequence begins, though never before the token that fired."""
    real = np.flatnonzero(row != _PADDING)
    return max(int(real[-1]) + 1 if len(real) else 0, position + 1)


def _counted_histogram(counted: Mapping[str, NDArray[Any]]) -> Histogram | None:
    """Half octaves, those that are empty at either end left out."""
    counts = counted["histogram"][::-1]
    held = np.flatnonzero(counts > 0)
    if not len(held):
        return None
    lowest = int(counted["histogram_top"]) - (len(counts) - 1)
    first, last = int(held[0]), int(held[-1])
    edges = tuple(float(2 ** ((lowest + bin_) / 2)) for bin_ in range(first, last + 2))
    return Histogram(edges, tuple(int(each) for each in counts[first : last + 1]), first == 0, complete=True)


def _histogram(values: NDArray[np.float64]) -> Histogram | None:
    """Of the examples on file, in bins of equal width."""
    if not len(values):
        return None
    low, high = float(values.min()), float(values.max())
    counts, edges = np.histogram(values, bins=_BINS if high > low else 1)
    return Histogram(tuple(edges.tolist()), tuple(counts.tolist()), all_below=False, complete=False)


def _positions(
    evidence: Evidence, found: FeatureExamples, counted: Mapping[str, NDArray[Any]]
) -> PositionProfile | None:
    if "position_profile" in counted and len(counted["position_profile"]) == 3:
        first, middle, last = counted["position_profile"].tolist()
        if not first + middle + last:
            return None
        return PositionProfile(first, middle, last, complete=True)
    if not len(found.positions) or evidence.examples.length < 4:
        return None
    # Of the tokens after BOS; where a sequence is padded is not looked up for the sake of this.
    thirds = (np.maximum(found.positions - 1, 0) * 3) // (evidence.examples.length - 1)
    first, middle, last = (int(each) for each in np.bincount(np.minimum(thirds, 2), minlength=3))
    return PositionProfile(first, middle, last, complete=False)


def _logits(pairs: Iterable[tuple[int, float]], vocabulary: Vocabulary | None) -> tuple[TokenLogit, ...]:
    return tuple(
        TokenLogit(token, vocabulary.name_of(token) if vocabulary else f"#{token}", float(logit))
        for token, logit in pairs
    )
