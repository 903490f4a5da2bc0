"""Which features tell right choices from wrong ones, and how much the two have in common.

1. Half of the items, drawn by the seed. Every feature that is active for any choice of ten of them is tested by the
   randomization test of ``study.randomization`` on right minus wrong (minus the mean of several wrong ones).
2. Benjamini-Hochberg over the features of all dictionaries.
3. What is significant is tested again: with what the difference in length explains taken out (residuals of a
   regression through the origin, their signs flipped: Freedman and Lane 1983); among the items whose choices end in one
   token, where that token cannot be what the feature sees; and on the other half.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from gemlens.records.analysis import ActiveFeatures
from gemlens.records.choices import Accuracy, FeatureTest, Item, LayerTests, Overlap
from gemlens.study.randomization import adjusted, exact_p, flip_p, normal_p

__all__ = ["LEVEL", "Sides", "accuracies", "halves", "layer_tests", "overlap", "per_text"]

LEVEL = 0.05
LEAST_ITEMS = 10
LISTED, LISTED_ANYWAY = 50, 5
_TOGETHER = 1024
# Where the normal approximation says this much, the exact test would not say 0.05.
_EXACT_BELOW = 0.08


@dataclass(frozen=True, eq=False)
class Sides:
    """What the tests need to know of the items."""

    first: NDArray[np.int64]
    """[items + 1], texts of each."""
    gold: NDArray[np.int64]
    """[items], the text of the right choice."""
    n_tokens: NDArray[np.int64]
    """[texts]"""
    same_last: NDArray[np.bool_]
    """[items]"""

    @classmethod
    def of(cls, items: Sequence[Item], n_tokens: NDArray[np.int64], last_token_id: NDArray[np.int64]) -> Sides:
        first = np.cumsum([0, *(len(item.choices) for item in items)])
        gold = first[:-1] + [item.gold for item in items]
        spread = np.maximum.reduceat(last_token_id, first[:-1]) - np.minimum.reduceat(last_token_id, first[:-1])
        return cls(first, gold, n_tokens, spread == 0)

    @property
    def counts(self) -> NDArray[np.int64]:
        return np.diff(self.first)

    def contrasts(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Of [texts, n], each text less the mean of the others of its item."""
        sums = np.add.reduceat(values, self.first[:-1], axis=0)
        counts = self.counts.reshape(-1, *[1] * (values.ndim - 1))
        return (np.repeat(counts, self.counts, axis=0) * values - np.repeat(sums, self.counts, axis=0)) / np.repeat(
            counts - 1, self.counts, axis=0
        )


def halves(items: int, seed: int) -> NDArray[np.bool_]:
    """[items], True for the half that features are chosen on; of an odd number the larger."""
    first = np.zeros(items, dtype=bool)
    first[np.random.default_rng(seed).permutation(items)[: (items + 1) // 2]] = True
    return first


def per_text(features: ActiveFeatures, row_text: NDArray[np.int64], texts: int) -> ActiveFeatures:
    """One row a text: itself, or of its tokens' rows the largest activation of each feature."""
    if len(row_text) == texts and (row_text == np.arange(texts)).all():
        return features
    from gemlens.study.choice_features import largest

    starts = np.searchsorted(row_text, np.arange(texts + 1))
    return largest(features, [np.arange(a, b) for a, b in pairwise(starts)])


def accuracies(items: Sequence[Item], log_likelihood: NDArray[np.float64]) -> tuple[Accuracy, ...]:
    """``acc`` and ``acc_norm`` as lm-evaluation-harness defines them; of equal scores the first choice wins."""
    first = np.cumsum([0, *(len(item.choices) for item in items)])
    characters = np.array([max(len(choice), 1) for item in items for choice in item.choices])
    found = []
    for name, scores in (("acc", log_likelihood), ("acc_norm", log_likelihood / characters)):
        right = sum(int(scores[a:b].argmax()) == item.gold for item, a, b in zip(items, first, first[1:], strict=False))
        found.append(Accuracy(name, right, len(items), *_wilson(right, len(items))))
    return tuple(found)


def _wilson(correct: int, n: int) -> tuple[float, float]:
    """Wilson 1927, 95 %."""
    z = 1.959964
    share = correct / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return middle - half, middle + half


def overlap(features: ActiveFeatures, sides: Sides) -> Overlap:
    """Jaccard overlaps of one row a text."""
    sets = [frozenset(features.row(text)[0].tolist()) for text in range(len(sides.n_tokens))]
    items = len(sides.gold)
    between = np.full(items, np.nan)
    beside = np.full(items, np.nan)
    for index in range(items):
        right = sets[sides.gold[index]]
        wrong = [sets[t] for t in range(sides.first[index], sides.first[index + 1]) if t != sides.gold[index]]
        shares = [share for each in wrong if (share := _jaccard(right, each)) is not None]
        between[index] = np.mean(shares) if shares else np.nan
        other = _jaccard(right, sets[sides.gold[(index + 1) % items]])
        beside[index] = np.nan if other is None or items == 1 else other
    known = between[np.isfinite(between)]
    error = float(known.std(ddof=1) / math.sqrt(len(known))) if len(known) > 1 else 0.0
    return Overlap(
        _mean(between) or 0.0,
        error,
        _mean(between[sides.same_last]),
        _mean(between[~sides.same_last]),
        _mean(beside) or 0.0,
    )


def _jaccard(one: frozenset[int], other: frozenset[int]) -> float | None:
    either = len(one | other)
    return len(one & other) / either if either else None


def _mean(values: NDArray[np.float64]) -> float | None:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else None


def layer_tests(features: Sequence[ActiveFeatures], sides: Sides, first_half: NDArray[np.bool_]) -> list[LayerTests]:
    """Test every dictionary's features, one row a text."""
    screened = [_screen(each, sides, first_half) for each in features]
    q = adjusted(np.concatenate([p for _, _, p in screened])) if screened else np.zeros(0)
    found, start = [], 0
    for each, (ids, z, p) in zip(features, screened, strict=True):
        mine = q[start : start + len(ids)]
        start += len(ids)
        order = np.lexsort((-np.abs(z), p))
        significant = int((mine <= LEVEL).sum())
        listed = order[: significant or LISTED_ANYWAY]
        columns = _columns(each, ids[listed], len(sides.n_tokens))
        tests = [
            _closely(sides, first_half, int(ids[k]), x, float(z[k]), float(p[k]), float(mine[k]))
            for k, x in zip(listed, columns, strict=True)
        ]
        confirmed = sum(test.confirmed for test in tests)
        found.append(LayerTests(len(ids), significant, confirmed, tuple(tests[:LISTED])))
    return found


def _screen(
    features: ActiveFeatures, sides: Sides, half: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Ids, z and p of every feature that is active in enough items of the half."""
    texts = np.repeat(half, sides.counts)
    rows = np.repeat(np.arange(len(texts)), np.diff(features.indptr))
    inside = texts[rows]
    item_of = np.repeat(np.arange(len(half)), sides.counts)
    pairs = np.unique(np.stack([features.ids[inside], item_of[rows[inside]]]), axis=1)
    ids, counts = np.unique(pairs[0], return_counts=True)
    ids = ids[counts >= LEAST_ITEMS]
    z, p = np.zeros(len(ids)), np.ones(len(ids))
    for start in range(0, len(ids), _TOGETHER):
        part = ids[start : start + _TOGETHER]
        contrasts = sides.contrasts(np.stack(list(_columns(features, part, len(texts))), axis=1))
        squares = np.add.reduceat(contrasts**2, sides.first[:-1], axis=0) / sides.counts[:, None]
        deviation = np.sqrt(squares[half].sum(axis=0))
        sums = contrasts[sides.gold][half].sum(axis=0)
        z[start : start + len(part)] = np.divide(sums, deviation, out=np.zeros_like(sums), where=deviation > 0)
        rough = normal_p(z[start : start + len(part)])
        for k in (rough < _EXACT_BELOW).nonzero()[0]:
            rough[k] = _exact(contrasts[:, k], sides, half)
        p[start : start + len(part)] = rough
    return ids, z, p


def _columns(features: ActiveFeatures, ids: NDArray[np.int64], texts: int) -> Iterator[NDArray[np.float64]]:
    """[texts] activations of each feature."""
    dense = np.zeros((len(ids), texts))
    order = np.argsort(ids)
    rows = np.repeat(np.arange(texts), np.diff(features.indptr))
    at = np.searchsorted(ids[order], features.ids)
    at[at == len(ids)] = 0
    hit = ids[order][at] == features.ids if len(ids) else np.zeros(len(at), dtype=bool)
    dense[order[at[hit]], rows[hit]] = features.values[hit]
    yield from dense


def _exact(contrasts: NDArray[np.float64], sides: Sides, which: NDArray[np.bool_]) -> float:
    """Of [texts] contrasts, over the items of ``which``."""
    most = int(sides.counts.max())
    values = np.full((len(which), most), np.nan)
    item_of = np.repeat(np.arange(len(which)), sides.counts)
    values[item_of, np.arange(len(item_of)) - sides.first[item_of]] = contrasts
    moving = which & (np.nan_to_num(values) != 0).any(axis=1)
    return exact_p(values[moving], (sides.gold - sides.first[:-1])[moving])


def _p(contrasts: NDArray[np.float64], sides: Sides, which: NDArray[np.bool_]) -> float:
    squares = np.add.reduceat(contrasts**2, sides.first[:-1]) / sides.counts
    deviation = math.sqrt(squares[which].sum())
    if not deviation:
        return 1.0
    rough = float(normal_p(np.array([contrasts[sides.gold][which].sum() / deviation]))[0])
    return _exact(contrasts, sides, which) if rough < _EXACT_BELOW else rough


def _closely(
    sides: Sides, half: NDArray[np.bool_], feature: int, x: NDArray[np.float64], z: float, p: float, q: float
) -> FeatureTest:
    contrasts = sides.contrasts(x)
    difference = contrasts[sides.gold]
    right = float(x[sides.gold][half].mean())
    active = np.maximum.reduceat(x, sides.first[:-1]) > 0
    alike = half & sides.same_last
    enough = (active & alike).sum() >= LEAST_ITEMS
    p_alike = _p(contrasts, sides, alike) if enough else None
    p_length = _p_length(difference[half], sides.contrasts(sides.n_tokens.astype(float))[sides.gold][half], p)
    there = float(difference[~half].mean()) if (~half).any() else 0.0
    p_there = _p(contrasts, sides, ~half)
    holds = q <= LEVEL and p_length <= LEVEL and (p_alike is None or p_alike <= LEVEL) and p_there <= LEVEL
    here = float(difference[half].mean())
    if p_alike is not None:
        holds = holds and difference[alike].sum() * here > 0
    return FeatureTest(
        feature,
        int((active & half).sum()),
        right,
        right - here,
        z,
        p,
        q,
        p_length,
        p_alike,
        there,
        p_there,
        bool(holds and there * here > 0),
    )


def _p_length(difference: NDArray[np.float64], longer: NDArray[np.float64], p: float) -> float:
    """Of the differences that a difference in length does not explain."""
    size = float((longer**2).sum())
    if not size:
        return p
    rest = difference - longer * float(longer @ difference) / size
    weight = 1 - longer * float(longer.sum()) / size
    deviation = math.sqrt(float(((weight * rest) ** 2).sum()))
    if not deviation:
        return 1.0
    rough = float(normal_p(np.array([(weight * rest).sum() / deviation]))[0])
    return flip_p(weight * rest) if rough < _EXACT_BELOW else rough
