"""Do the features that tell right from wrong decide anything? They are taken away where the scored logits are computed.

1. On the first half of the items the features are chosen that fire most surely more for right choices.
2. On the other half they are ablated at every token before a scored one: from the last of the context to the last but
   one of the choice. (The last token itself, at which they were found, feeds no scored logit.) A feature's own
   contribution, ``activation x decoder row``, is subtracted from what its dictionary writes; its error stays.
3. The change in margin and accuracy is held against draws of other features of the same dictionaries that are active
   about as often.

All features at once and each alone; each draw likewise, so that every effect has a draw of its own kind beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gemlens.errors import InputError
from gemlens.lm.forks import flat_places
from gemlens.lm.gemma import Model, module_at, writing
from gemlens.lm.hooks import read
from gemlens.records.analysis import ActiveFeatures
from gemlens.records.choices import Cause, CauseEffect, LayerTests
from gemlens.scope.sae import SAE
from gemlens.sites import Site
from gemlens.study.choice_pass import score_items
from gemlens.study.choice_tests import Sides
from gemlens.study.choice_texts import Read, scored_pairs

__all__ = ["Slice", "chosen_features", "drawn_features", "held_out_cause", "slice_of"]

Named = tuple[int, int]
"""Dictionary and feature."""
_ALIKE = 40
"""Features that a draw is made from: those active in the most similar number of texts."""


@dataclass(frozen=True, eq=False)
class Slice:
    """Some features of one dictionary, as an edit needs them."""

    reads: Site
    writes: Site
    ids: list[int]
    encoder: Tensor
    """[features, d_in]"""
    b_enc: Tensor
    threshold: Tensor
    decoder: Tensor
    """[features, d_out]"""

    def contribution(self, x: Tensor, which: Tensor) -> Tensor:
        """[n, d_out] that features ``which`` add at activations ``x`` [n, d_in]."""
        pre = x.to(self.encoder) @ self.encoder[which].T + self.b_enc[which]
        return torch.where(pre > self.threshold[which], pre, 0.0) @ self.decoder[which]


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


def slice_of(sae: SAE, ids: Sequence[int]) -> Slice:
    """Copies, so that the dictionary can go.

    Raises:
        InputError: a dictionary whose features fire by what others do (TopK).
    """
    wanted = torch.tensor(sorted(set(ids)), device=sae.b_enc.device)
    least = sae.activation.least(sae.threshold[wanted])
    if least is None:
        raise InputError(
            f"{sae.info.id} keeps the largest activations of a token; --cause needs thresholds: leave it out"
        )
    encoder, decoder = sae.encoder.rows(wanted).clone(), sae.decoder.rows(wanted).clone()
    return Slice(sae.reads, sae.writes, wanted.tolist(), encoder, sae.b_enc[wanted].clone(), least.clone(), decoder)


def held_out_cause(
    model: Model,
    items: Sequence[Read],
    sides: Sides,
    slices: dict[int, Slice],
    chosen: Sequence[Named],
    draws: Sequence[Sequence[Named]],
    report: Callable[[int, int], None] = lambda _done, _total: None,
) -> Cause:
    """Ablate on ``items``, whose ``sides`` these are.

    Args:
        slices: of each dictionary, what is chosen or drawn.
    """
    sets: list[tuple[Named, ...]] = [tuple(chosen), *((each,) for each in chosen)]
    stand_ins: list[list[tuple[Named, ...]]] = [
        [tuple(draw) for draw in draws],
        *([(draw[k],) for draw in draws] for k in range(len(chosen))),  # type: ignore[list-item]
    ]
    if len(chosen) == 1:
        sets, stand_ins = sets[:1], stand_ins[:1]
    total, done = 1 + len(sets) * (1 + len(draws)), 0

    def margins(features: Sequence[Named]) -> NDArray[np.float64]:
        nonlocal done
        scores = score_items(model, items, lambda group: _ablated(model, group, slices, features))
        done += 1
        report(done, total)
        return _margins(scores, sides)

    clean = margins(())
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
    return Cause(len(items), float((clean > 0).mean()), float(clean.mean()), effects[0], alone)


def _margins(scores: NDArray[np.float64], sides: Sides) -> NDArray[np.float64]:
    others = scores.copy()
    others[sides.gold] = -np.inf
    return scores[sides.gold] - np.maximum.reduceat(others, sides.first[:-1])


@contextmanager
def _ablated(
    model: Model, group: Sequence[Read], slices: dict[int, Slice], features: Sequence[Named]
) -> Iterator[None]:
    """Without some features at the tokens whose logits are scored."""
    places = flat_places([item.fork for item in group], [scored_pairs(item)[0] for item in group]).to(model.device)
    by_dictionary: dict[int, list[int]] = {}
    for dictionary, feature in features:
        by_dictionary.setdefault(dictionary, []).append(feature)
    with ExitStack() as stack:
        for dictionary, ids in by_dictionary.items():
            part = slices[dictionary]
            which = torch.tensor([part.ids.index(each) for each in ids], device=part.encoder.device)
            stack.enter_context(_without(model, part, which, places))
        yield


@contextmanager
def _without(model: Model, part: Slice, which: Tensor, places: Tensor) -> Iterator[None]:
    if part.reads == part.writes:

        def edit(x: Tensor) -> Tensor:
            flat = x.flatten(0, 1).clone()
            flat[places] -= part.contribution(flat[places], which).to(flat)
            return flat.view_as(x)

        with writing(model, part.writes, edit):
            yield
        return
    with read(*module_at(model, part.reads), keep=lambda x: x.flatten(0, 1)[places]) as seen:

        def less(x: Tensor) -> Tensor:
            flat = x.flatten(0, 1).clone()
            flat[places] -= part.contribution(seen.pop(), which).to(flat)
            return flat.view_as(x)

        with writing(model, part.writes, less):
            yield
