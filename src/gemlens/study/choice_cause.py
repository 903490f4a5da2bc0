"""Do the features that tell right from wrong decide anything? They are taken away where the scored logits are computed.

1. On the first half of the items the features are chosen that fire most surely more for right choices.
2. On the other half they are ablated at every token before a scored one (``study.choice_ablation``).
3. The change in margin and accuracy is held against draws of other features of the same dictionaries that are active
   about as often.

All features at once and each alone; each draw likewise, so that every effect has a draw of its own kind beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from gemlens.errors import InputError
from gemlens.records.analysis import ActiveFeatures
from gemlens.records.choices import Cause, CauseEffect, LayerTests
from gemlens.study.choice_ablation import Ablations, Named
from gemlens.study.choice_tests import Sides

__all__ = ["chosen_features", "drawn_features", "held_out_cause"]

_ALIKE = 40
"""Features that a draw is made from: those active in the most similar number of texts."""


def chosen_features(tests: Sequence[LayerTests], count: int) -> list[Named]:
    """Of all dictionaries, those with the smallest p that fire more for right choices, by the first half alone."""
    found = [
        (test.p, -abs(test.z), dictionary, test.feature_id)
        for dictionary, each in enumerate(tests)
        for test in each.features
        if test.difference > 0
    ]
    return [(dictionary, feature) for _, _, dictionary, feature in sorted(found)[:count]]


def drawn_features(
    features: Sequence[ActiveFeatures], chosen: Sequence[Named], draws: int, seed: int
) -> list[list[Named]]:
    """For each draw, a stand-in for each chosen feature: of its dictionary, active in about as many texts.

    Raises:
        InputError: a dictionary has too few features that are ever active.
    """
    generator = np.random.default_rng(seed)
    pools = []
    for dictionary, feature in chosen:
        ids, counts = np.unique(features[dictionary].ids, return_counts=True)
        mine = int(counts[ids == feature][0])
        others = ~np.isin(ids, [each for index, each in chosen if index == dictionary])
        ids, counts = ids[others], counts[others]
        pools.append(ids[np.argsort(np.abs(counts - mine), kind="stable")[:_ALIKE]])
    found: list[list[Named]] = []
    for _ in range(draws):
        taken: list[Named] = []
        for (dictionary, _), pool in zip(chosen, pools, strict=True):
            free = [int(each) for each in pool if (dictionary, int(each)) not in taken]
            if not free:
                raise InputError(f"cause {len(chosen)}: too few features are active to draw others; take fewer")
            taken.append((dictionary, free[int(generator.integers(len(free)))]))
        found.append(taken)
    return found


def held_out_cause(
    ablations: Ablations,
    sides: Sides,
    chosen: Sequence[Named],
    draws: Sequence[Sequence[Named]],
    report: Callable[[int, int], None] = lambda _done, _total: None,
) -> Cause:
    """Ablate on the items of ``ablations``, whose ``sides`` these are, what is ``chosen`` and its ``draws``."""
    sets: list[tuple[Named, ...]] = [tuple(chosen), *((each,) for each in chosen)]
    stand_ins: list[list[tuple[Named, ...]]] = [
        [tuple(draw) for draw in draws],
        *([(draw[k],) for draw in draws] for k in range(len(chosen))),  # type: ignore[list-item]
    ]
    if len(chosen) == 1:
        sets, stand_ins = sets[:1], stand_ins[:1]
    total, done = len(sets) * (1 + len(draws)), 0
    clean = _margins(ablations.clean, sides)

    def margins(features: Sequence[Named]) -> NDArray[np.float64]:
        nonlocal done
        report(done, total)
        done += 1
        return _margins(ablations.without(features), sides)

    effects = []
    for features, others in zip(sets, stand_ins, strict=True):
        changed, drawn = margins(features), [margins(each) for each in others]
        change = changed - clean
        effects.append(
            CauseEffect(
                tuple(features),
                float((changed > 0).mean()),
                float(changed.mean()),
                float(change.mean()),
                float(change.std(ddof=1) / math.sqrt(len(change))) if len(change) > 1 else 0.0,
                tuple(float((each > 0).mean()) for each in drawn),
                tuple(float((each - clean).mean()) for each in drawn),
            )
        )
    alone = tuple(effects[1:]) or tuple(effects)
    return Cause(len(ablations), float((clean > 0).mean()), float(clean.mean()), effects[0], alone)


def _margins(scores: NDArray[np.float64], sides: Sides) -> NDArray[np.float64]:
    others = scores.copy()
    others[sides.gold] = -np.inf
    return scores[sides.gold] - np.maximum.reduceat(others, sides.first[:-1])
