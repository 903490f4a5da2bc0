"""The long part of multiple choice: scores and features of all items, window by window, kept as they are done."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gemlens.lm.gemma import Model
from gemlens.records.analysis import ActiveFeatures, DictionaryInfo
from gemlens.records.choices import Pooling
from gemlens.study.choice_features import Source, encode_texts, stacked, streamed
from gemlens.study.choice_parts import Parts
from gemlens.study.choice_pass import Wanted, run_items
from gemlens.study.choice_texts import Read
from gemlens.study.fit_check import check_fit, site_width

__all__ = ["Gathered", "Report", "Run", "gather"]

# Activations of a window, over all sites. More means fewer times that dictionaries are loaded.
_WINDOW_BYTES = 256 << 20
_WINDOW_ITEMS = 512

Report = Callable[[str, int, int], None]


@dataclass(frozen=True, eq=False)
class Run:
    """What is to be done."""

    model: Model
    sources: Sequence[Source]
    items: Sequence[Read]
    token: Pooling
    scored: bool
    lens: tuple[int, ...]
    lens_items: int
    parts: Parts
    report: Report


class Gathered(NamedTuple):
    log_likelihood: NDArray[np.float64]
    """[texts]"""
    lens: NDArray[np.float64]
    """[layers, texts]"""
    features: list[ActiveFeatures]
    infos: list[DictionaryInfo]
    warnings: list[str]


def gather(run: Run) -> Gathered:
    """Read every item and let every dictionary see it; memory holds one window, one dictionary and the next."""
    likelihood, lens = [], []
    parts: list[list[ActiveFeatures]] = [[] for _ in run.sources]
    said: list[dict] = []
    windows = list(_windows(run))
    for number, window in enumerate(windows):
        scores, seen = _window(run, number, len(windows), *window)
        likelihood.append(scores["log_likelihood"].numpy())
        lens.append(scores["lens"].numpy())
        said = [json.loads(bytes(tensors["said"].tolist())) for tensors in seen]
        for mine, tensors in zip(parts, seen, strict=True):
            mine.append(ActiveFeatures(*(tensors[name].numpy() for name in ("indptr", "ids", "values"))))
    return Gathered(
        np.concatenate(likelihood),
        np.concatenate(lens, axis=1),
        [stacked(each) for each in parts],
        [DictionaryInfo(**each["info"]) for each in said],
        [warning for each in said for warning in each["warnings"]],
    )


def _window(
    run: Run, number: int, windows: int, first: int, last: int
) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    """Scores of some items, and what each dictionary finds in them: made, or made before."""
    items, count = run.items[first:last], len(run.sources)
    wanted = Wanted.of(items, last=run.token == "last")
    names = [f"{number:04}-{index:03}" for index in range(count)]
    seen = [run.parts.read(name) for name in names]
    todo = [index for index, each in enumerate(seen) if each is None]
    scores = run.parts.read(f"{number:04}-model")
    if scores is None or any(_at(run.sources[index]) not in scores for index in todo):
        scores = _read(run, wanted, first, last)
        run.parts.keep(f"{number:04}-model", scores)
    for index, sae in zip(todo, streamed([run.sources[index] for index in todo]), strict=True):
        run.report(f"{sae.info.category}/{sae.info.id}", number * count + index, windows * count)
        about = {"info": dataclasses.asdict(sae.info), "warnings": check_fit(run.model, sae)}
        found = encode_texts(sae, scores[_at(run.sources[index])], wanted.of_text, run.token)
        arrays = {name: torch.from_numpy(getattr(found, name)) for name in ("indptr", "ids", "values")}
        seen[index] = arrays | {"said": torch.tensor(list(json.dumps(about).encode()), dtype=torch.uint8)}
        run.parts.keep(names[index], seen[index] or {})
    small = {name: each for name, each in scores.items() if not name.startswith("at ")}
    if len(small) < len(scores):  # all have seen the activations
        run.parts.keep(f"{number:04}-model", small)
    return small, [each for each in seen if each is not None]


def _at(source: Source) -> str:
    return f"at {source.site}"


def _read(run: Run, wanted: Wanted, first: int, last: int) -> dict[str, Tensor]:
    done = first

    def told(items: int) -> None:
        nonlocal done
        done += items
        run.report("Reading items", done, len(run.items))

    passed = run_items(
        run.model,
        run.items[first:last],
        sorted({source.site for source in run.sources}),
        wanted,
        scored=run.scored,
        lens=run.lens,
        lens_items=max(0, min(run.lens_items, last) - first),
        report=told,
    )
    scores = {"log_likelihood": torch.from_numpy(passed.log_likelihood), "lens": torch.from_numpy(passed.lens)}
    return scores | {f"at {site}": x for site, x in passed.activations.items()}


def _windows(run: Run) -> Iterator[tuple[int, int]]:
    """First and last item of each, by the order alone."""
    widths = sum(site_width(run.model, site) for site in {source.site for source in run.sources})
    first, rows = 0, 0
    for index, item in enumerate(run.items):
        mine = sum(1 if run.token == "last" else len(item.scored(choice)) for choice in range(len(item.begins)))
        full = (rows + mine) * widths * run.model.dtype.itemsize > _WINDOW_BYTES or index - first >= _WINDOW_ITEMS
        if full and index > first:
            yield first, index
            first, rows = index, 0
        rows += mine
    yield first, len(run.items)
