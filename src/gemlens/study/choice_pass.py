"""One pass of the model over some items: scores, activations at wanted tokens, and the margin at every layer.

Forks of like length share a pass. The head runs on the tokens before scored ones only, each of them once; of the
residual streams, only the wanted tokens leave the hooks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gemlens.batched import of_like_length
from gemlens.lm.forks import read_forks
from gemlens.lm.gemma import Model
from gemlens.lm.scores import token_log_probabilities
from gemlens.sites import Site
from gemlens.study.choice_texts import Read, scored_pairs, wanted_tokens

__all__ = ["Around", "Passed", "Wanted", "run_items", "score_items"]

# Tokens of a pass, padding counted. Longer ones gain nothing on a CPU; attention masks are [forks, n, n].
_BATCH = 2048
# Tokens of padding that cost about as much as another pass.
_PADDING = 256


Around = Callable[[Sequence[Read]], AbstractContextManager[None]]


@dataclass(frozen=True, eq=False)
class Wanted:
    """Which activations are wanted of the items of a pass: rows, each token of an item once."""

    places: list[NDArray[np.int64]]
    """For each item, places in its fork."""
    of_text: list[NDArray[np.int64]]
    """For each text (choice by choice, item by item), its rows among those of all items."""

    @classmethod
    def of(cls, items: Sequence[Read], *, last: bool) -> Wanted:
        places, of_text, start = [], [], 0
        for item in items:
            mine, own = wanted_tokens(item, last=last)
            places.append(mine)
            of_text += [each + start for each in own]
            start += len(mine)
        return cls(places, of_text)

    @property
    def rows(self) -> int:
        return sum(map(len, self.places))


@dataclass(frozen=True, eq=False)
class Passed:
    """What a pass over items gives."""

    log_likelihood: NDArray[np.float64]
    """[texts]; NaN where nothing was scored."""
    activations: dict[Site, Tensor]
    """For each site [rows, d] on the CPU, in the model's dtype."""
    lens: NDArray[np.float64]
    """[layers, texts], log-likelihoods that the residual stream after some layers gives; NaN where not asked for."""


def run_items(
    model: Model,
    items: Sequence[Read],
    sites: Sequence[Site],
    wanted: Wanted,
    *,
    scored: bool = True,
    lens: Sequence[int] = (),
    lens_items: int = 0,
    around: Around = lambda _items: nullcontext(),
    report: Callable[[int], None] = lambda _items: None,
) -> Passed:
    """Read every item once.

    Args:
        sites: of the dictionaries.
        lens: layers whose residual streams are scored too.
        lens_items: for so many items, the first ones.
        around: a context for each pass, such as edits at the places of the items it is given.
        report: told how many items each pass has read.
    """
    counts = [len(item.begins) for item in items]
    first = np.cumsum([0, *counts])
    row = np.cumsum([0, *map(len, wanted.places)])
    likelihood = np.full(first[-1], np.nan)
    through = np.full((len(lens), first[-1]), np.nan)
    kept: dict[Site, Tensor] = {}
    for group in _groups(items):
        lensed = [index for index in group if index < lens_items] if lens else []
        with around([items[index] for index in group]):
            found = _read_group(model, items, group, sites, wanted, scored, lens, lensed)
        rows = _runs(row, group)
        for site, part in found.activations.items():
            if site not in kept:
                kept[site] = torch.empty(int(row[-1]), part.shape[1], dtype=part.dtype)
            kept[site][torch.from_numpy(rows)] = part.cpu()
        if scored:
            likelihood[_runs(first, group)] = found.log_likelihood
        if lensed:
            through[:, _runs(first, lensed)] = found.lens
        report(len(group))
    return Passed(likelihood, kept, through)


def score_items(
    model: Model, items: Sequence[Read], around: Around = lambda _items: nullcontext()
) -> NDArray[np.float64]:
    """[texts] log-likelihoods, by the same passes."""
    nothing = Wanted([np.zeros(0, dtype=np.int64) for _ in items], [])
    return run_items(model, items, [], nothing, around=around).log_likelihood


def _read_group(
    model: Model,
    items: Sequence[Read],
    group: Sequence[int],
    sites: Sequence[Site],
    wanted: Wanted,
    scored: bool,
    lens: Sequence[int],
    lensed: Sequence[int],
) -> Passed:
    """One pass. What a site is read for, features, lens or score, is asked for together and taken apart again."""
    last = Site(model.n_layers - 1, "resid_post")
    heads = [Site(layer, "resid_post") for layer in lens] if lensed else []
    asked = {index: scored_pairs(items[index]) for index in group} if scored or lensed else {}
    nothing = np.zeros(0, dtype=np.int64)
    uses: dict[Site, dict[str, list[NDArray[np.int64]]]] = {}
    for site in sites:
        uses.setdefault(site, {})["features"] = [wanted.places[index] for index in group]
    for site in heads:
        uses.setdefault(site, {})["lens"] = [asked[index][0] if index in lensed else nothing for index in group]
    if scored:
        uses.setdefault(last, {})["score"] = [asked[index][0] for index in group]
    places = {
        site: [np.concatenate(each) for each in zip(*kinds.values(), strict=True)] for site, kinds in uses.items()
    }
    read = read_forks(model, [items[index].fork for index in group], places)
    apart = {site: _apart(read[site], kinds) for site, kinds in uses.items()}
    return Passed(
        _likelihoods(model, apart[last]["score"], asked, group) if scored else np.zeros(0),
        {site: apart[site]["features"] for site in sites},
        np.array([_likelihoods(model, apart[site]["lens"], asked, lensed) for site in heads]),
    )


def _apart(tensor: Tensor, kinds: dict[str, list[NDArray[np.int64]]]) -> dict[str, Tensor]:
    """[places, d] of items with several kinds of places each, as one tensor a kind."""
    if len(kinds) == 1:
        return dict.fromkeys(kinds, tensor)
    parts = tensor.split([len(each) for item in zip(*kinds.values(), strict=True) for each in item])
    return {kind: torch.cat(parts[index :: len(kinds)]) for index, kind in enumerate(kinds)}


def _likelihoods(
    model: Model,
    residual: Tensor,
    asked: Mapping[int, tuple[NDArray[np.int64], ...]],
    group: Sequence[int],
) -> NDArray[np.float64]:
    """[texts of the items of ``group``], sums over their scored tokens."""
    rows, targets, texts, start, text = [], [], [], 0, 0
    for index in group:
        places, at, target, choice = asked[index]
        rows.append(at + start)
        targets.append(target)
        texts.append(choice + text)
        start += len(places)
        text += int(choice[-1]) + 1
    found = token_log_probabilities(
        model, residual, torch.from_numpy(np.concatenate(rows)), torch.from_numpy(np.concatenate(targets))
    )
    sums = np.zeros(text)
    np.add.at(sums, np.concatenate(texts), found.double().numpy())
    return sums


def _runs(starts: NDArray[np.int64], group: Sequence[int]) -> NDArray[np.int64]:
    """The indices that belong to the items of a group, one item after the other."""
    return np.concatenate([np.arange(starts[index], starts[index + 1]) for index in group])


def _groups(items: Sequence[Read]) -> list[list[int]]:
    return of_like_length([len(item.fork) for item in items], most=_BATCH, padding=_PADDING) if items else []
