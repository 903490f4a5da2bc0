"""Scores of items without some features, at every token whose logits are scored.

Those tokens are from the last of the context to the last but one of the choice. (The last token itself, at which the
features were found, feeds no scored logit.) A feature's own contribution, ``activation x decoder row``, is subtracted
from what its dictionary writes; its error stays.

A choice on whose tokens none of the features fires keeps its score: at the first dictionary nothing is taken away, so
nothing at any after it. Features are sparse, so that most choices need no pass for most of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gemlens.errors import InputError
from gemlens.lm.forks import flat_places, fork
from gemlens.lm.gemma import Model, module_at, writing
from gemlens.lm.hooks import read
from gemlens.scope.sae import SAE
from gemlens.scope.selected import Selected, select
from gemlens.study.choice_pass import score_items
from gemlens.study.choice_texts import Read, ids_of, scored_pairs

__all__ = ["Ablations", "Kept", "Named", "ablatable", "ablated"]

Named = tuple[int, int]
"""Dictionary and feature."""

Kept = Callable[[str, Callable[[], dict[str, Tensor]]], dict[str, Tensor]]
"""Of a name and what makes some tensors: these, made now or in an earlier run."""


def ablatable(sae: SAE, ids: Sequence[int]) -> Selected:
    """Some features by themselves, so that the dictionary can go.

    Raises:
        InputError: a dictionary whose features fire by what others do (TopK).
    """
    if sae.activation.least(sae.threshold) is None:
        raise InputError(
            f"{sae.info.id} keeps the largest activations of a token; --cause needs thresholds: leave it out"
        )
    return select(sae, ids)


class Ablations:
    """Scores of some items without the features asked for; the model reads a choice again only where one fires.

    Args:
        parts: by dictionary, the features that may be asked for.
    """

    def __init__(self, model: Model, items: Sequence[Read], parts: Mapping[int, Selected], kept: Kept) -> None:
        self._model, self._items, self._parts, self._kept = model, items, parts, kept
        self._known: dict[frozenset[Named], NDArray[np.float64]] = {}
        found = kept(repr([(key, part.ids) for key, part in sorted(parts.items())]), self._untouched)
        self._fires = {key: found[str(key)].numpy() for key in parts}
        self.clean: NDArray[np.float64] = found["scores"].numpy()
        """[texts] log-likelihoods, choice by choice, item by item, of the model itself."""

    def __len__(self) -> int:
        return len(self._items)

    def without(self, features: Sequence[Named]) -> NDArray[np.float64]:
        """[texts] log-likelihoods with ``features`` ablated together."""
        asked = frozenset(features)
        if asked not in self._known:
            made = self._kept(repr(sorted(asked)), lambda: {"scores": torch.from_numpy(self._scores(sorted(asked)))})
            self._known[asked] = made["scores"].numpy()
        return self._known[asked]

    def _scores(self, features: Sequence[Named]) -> NDArray[np.float64]:
        changed = np.zeros(len(self.clean), dtype=bool)
        for key, feature in features:
            changed |= self._fires[key][:, self._parts[key].ids.index(feature)]
        scores = self.clean.copy()
        if changed.any():
            some = list(_with_choices(self._items, changed))
            scores[changed] = score_items(
                self._model, some, lambda group: ablated(self._model, group, self._parts, features)
            )
        return scores

    def _untouched(self) -> dict[str, Tensor]:
        """``scores`` [texts]; by dictionary [texts, features], whether they fire at any token before a scored one."""
        model, items, parts = self._model, self._items, self._parts
        first = np.cumsum([0, *(len(item.begins) for item in items)])
        text_of = {id(item): int(start) for item, start in zip(items, first[:-1], strict=True)}
        fires = {key: np.zeros((int(first[-1]), len(part)), dtype=bool) for key, part in parts.items()}

        @contextmanager
        def watched(group: Sequence[Read]) -> Iterator[None]:
            places = _places(model, group)
            with ExitStack() as stack:
                passed = {
                    key: stack.enter_context(read(*module_at(model, part.reads), keep=partial(_fires, part, places)))
                    for key, part in parts.items()
                }
                yield
            seen = {key: tensor.cpu().numpy() for key, (tensor,) in passed.items()}
            start = 0
            for item in group:
                where, at, _, choice = scored_pairs(item)
                for key, fired in seen.items():
                    np.logical_or.at(fires[key], text_of[id(item)] + choice, fired[start + at])
                start += len(where)

        scores = torch.from_numpy(score_items(model, items, watched))
        return {"scores": scores} | {str(key): torch.from_numpy(each) for key, each in fires.items()}


@contextmanager
def ablated(
    model: Model, group: Sequence[Read], parts: Mapping[int, Selected], features: Sequence[Named]
) -> Iterator[None]:
    """A pass over the forks of ``group`` runs without ``features`` at the tokens before scored ones."""
    places = _places(model, group)
    by_dictionary: dict[int, list[int]] = {}
    for key, feature in features:
        by_dictionary.setdefault(key, []).append(parts[key].ids.index(feature))
    with ExitStack() as stack:
        for key, which in by_dictionary.items():
            stack.enter_context(_without(model, parts[key], which, places))
        yield


@contextmanager
def _without(model: Model, part: Selected, which: list[int], places: Tensor) -> Iterator[None]:
    (writes,) = part.writes

    def contribution(x: Tensor) -> Tensor:
        return part.encode(x)[:, which] @ part.rows[writes][which]

    def less(x: Tensor, what: Tensor) -> Tensor:
        flat = x.flatten(0, 1).clone()
        flat[places] -= what.to(flat)
        return flat.view_as(x)

    if part.reads == writes:
        with writing(model, writes, lambda x: less(x, contribution(x.flatten(0, 1)[places]))):
            yield
        return
    with (
        read(*module_at(model, part.reads), keep=lambda x: contribution(x.flatten(0, 1)[places])) as seen,
        writing(model, writes, lambda x: less(x, seen.pop())),
    ):
        yield


def _fires(part: Selected, places: Tensor, x: Tensor) -> Tensor:
    """[places, features], of activations [forks, n, d]."""
    return part.encode(x.flatten(0, 1)[places]) > 0


def _places(model: Model, group: Sequence[Read]) -> Tensor:
    """Of tokens before scored ones, in the rows of a pass."""
    return flat_places([item.fork for item in group], [scored_pairs(item)[0] for item in group]).to(model.device)


def _with_choices(items: Sequence[Read], wanted: NDArray[np.bool_]) -> Iterator[Read]:
    """The items that have a wanted choice [texts], each with those alone."""
    start = 0
    for item in items:
        mine = wanted[start : start + len(item.begins)].nonzero()[0].tolist()
        start += len(item.begins)
        if len(mine) == len(item.begins):
            yield item
        elif mine:
            texts = [ids_of(item, choice) for choice in mine]
            yield Read(fork(texts), tuple(item.begins[choice] for choice in mine), item.joined)
