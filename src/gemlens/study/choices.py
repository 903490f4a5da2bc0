"""Multiple choice at every layer: what fires for the right answer and not for the wrong one.

1. Items to tokens; what their choices share is read once (``lm.forks``).
2. Windows of items: one forward pass for scores, for activations at the wanted tokens of every site, and for the
   logit lens of the first few items.
3. In each window every dictionary in turn, loaded while the one before it works; of its features what fires is kept.
4. Over all items: accuracy, overlap of right and wrong, tests of every feature (``study.choice_tests``).
5. Dictionaries once more, those with something to show: examples token by token, and ablation on the held-out half.

With a folder, each part of 2 and 3 and each ablation is kept there as it is done, and a run that was killed goes on.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from gemlens import __version__
from gemlens.errors import InputError
from gemlens.lm.gemma import Model, module_at
from gemlens.lm.text import texts as texts_of
from gemlens.records.analysis import ActiveFeatures
from gemlens.records.choices import Cause, Choices, Example, Item, LayerTests, MarginLens, Pooling, Skipped
from gemlens.scope.sae import SAE
from gemlens.study.analysis import provenance_of
from gemlens.study.choice_ablation import Ablations, ablatable
from gemlens.study.choice_cause import chosen_features, drawn_features, held_out_cause
from gemlens.study.choice_examples import examples_of, shown_features
from gemlens.study.choice_features import POOLINGS, Source, streamed
from gemlens.study.choice_gather import Report, Run, gather
from gemlens.study.choice_parts import Parts
from gemlens.study.choice_tests import Sides, accuracies, halves, layer_tests, overlap, per_text
from gemlens.study.choice_texts import read_texts

__all__ = ["choices"]


def choices(
    model: Model,
    dictionaries: Sequence[SAE | Source],
    items: Iterable[Item],
    *,
    dataset: str = "",
    token: Pooling = "last",
    top_k: int = 100,
    scored: bool = True,
    lens_items: int = 50,
    cause: int = 0,
    draws: int = 20,
    seed: int = 0,
    folder: Path | None = None,
    skipped: Sequence[Skipped] = (),
    report: Report = lambda _what, _done, _total: None,
) -> Choices:
    """Score every choice of every item, and record what fires for each of them.

    Args:
        dictionaries: SAEs or transcoders; a ``Source`` is loaded when its turn comes and let go after it.
        items: see ``data.items.read_items``.
        dataset: what the items are called, for the record.
        token: features of the ``last`` token of a choice; their ``mean`` or ``max`` over its tokens; or ``all`` tokens.
        top_k: features that views list for each choice and dictionary; all of them are kept and tested.
        scored: False for texts that are only to be compared.
        lens_items: items of which the margin is followed through the layers.
        cause: so many features are ablated on the held-out half; 0 leaves that out.
        draws: of other features, to hold each ablation against.
        seed: of the halves and the draws.
        folder: keeps what is done, for a run that may be killed; ``choice_parts.remove`` takes it away.
        skipped: what was left out before, for the record.
        report: told what is going on, steps done and steps to do.

    Example:
        >>> items = read_items("builtin").items
        >>> found = choices(load_model("starter"), [load_sae("starter", "resid_post/layer_12_…")], items)
        >>> found.accuracies[0].share, found.tests[0].features[0]

    Raises:
        InputError: no item that can be read, no dictionary, or an option out of range.
        MismatchError: a dictionary that does not fit the model.
        WeightsError: the model computes values that are not finite.
    """
    items = list(items)
    _check(dictionaries, items, token, top_k, lens_items, cause, draws)
    sources = [each if isinstance(each, Source) else Source.of(each) for each in dictionaries]
    for source in sources:
        module_at(model, source.site)  # raises for a layer that the model lacks
    kept, read, too_long = read_texts(model, items)
    if not kept:
        raise InputError(f"no item can be read; the first of {len(too_long)}: {too_long[0].reason}")
    lens_layers = _lens_layers(model, sources) if scored and lens_items else ()
    about = _about(model, kept, token, scored, lens_layers, lens_items, sources)
    run = Run(model, sources, read, token, scored, lens_layers, lens_items, Parts(folder, about), report)
    likelihood, through, features, infos, warnings = gather(run)
    n_tokens = np.array([len(item.scored(c)) for item in read for c in range(len(item.begins))])
    last_id = np.array([item.fork.ids[path[-1]] for item in read for path in item.fork.paths])
    sides, half = Sides.of(kept, n_tokens, last_id), halves(len(kept), seed)
    row_text, row_position = _rows(n_tokens, token)
    one_each = [per_text(each, row_text, len(n_tokens)) for each in features]
    report("Testing features", 0, 1)
    tests = layer_tests(one_each, sides, half)
    examples, caused = _look_again(run, one_each, sides, half, tests, cause, draws, seed)
    joined = sum(item.joined for item in read)
    return Choices(
        model_id=model.name,
        dataset=dataset,
        token=token,
        top_k=top_k,
        items=tuple(kept),
        dictionaries=tuple(infos),
        scored=scored,
        log_likelihood=likelihood,
        n_tokens=n_tokens,
        last_token=tuple(texts_of(model, [each])[0] for each in last_id.tolist()),
        last_token_id=last_id,
        features=tuple(features),
        row_text=row_text,
        row_position=row_position,
        first_half=half,
        accuracies=accuracies(kept, likelihood) if scored else (),
        overlaps=tuple(overlap(each, sides) for each in one_each),
        tests=tuple(tests),
        lens=_lens(lens_layers, through, sides, min(lens_items, len(kept))) if lens_layers else None,
        examples=tuple(examples),
        cause=caused,
        skipped=tuple(sorted([*skipped, *too_long], key=lambda each: each.id)),
        warnings=(*_said(joined, len(kept)), *dict.fromkeys(warnings)),
        provenance=provenance_of(model, seed),
    )


def _check(
    dictionaries: Sequence[SAE | Source],
    items: Sequence[Item],
    token: Pooling,
    top_k: int,
    lens_items: int,
    cause: int,
    draws: int,
) -> None:
    if not dictionaries:
        raise InputError("no dictionary was given; load one with load_sae, or list some with scope.series")
    if not items:
        raise InputError("no item was given; read some with data.items.read_items")
    if token not in POOLINGS:
        raise InputError(f"token {token!r}: take {', '.join(POOLINGS)}")
    if top_k < 1:
        raise InputError(f"top_k {top_k}: at least 1 feature a choice")
    if lens_items < 0 or cause < 0 or draws < 1:
        raise InputError(f"lens_items {lens_items}, cause {cause}, draws {draws}: at least 0, 0 and 1")


def _look_again(
    run: Run,
    features: Sequence[ActiveFeatures],
    sides: Sides,
    half: NDArray,
    tests: Sequence[LayerTests],
    cause: int,
    draws: int,
    seed: int,
) -> tuple[list[Example], Cause | None]:
    """Step 5."""
    chosen = chosen_features(tests, cause)
    drawn = drawn_features(features, chosen, draws, seed) if chosen else []
    both = [*chosen, *(each for draw in drawn for each in draw)]
    needed = {index: [feature for dictionary, feature in both if dictionary == index] for index in range(len(tests))}
    which = [index for index, each in enumerate(tests) if each.features or needed[index]]
    selected, examples = {}, []
    for index, sae in zip(which, streamed([run.sources[index] for index in which]), strict=True):
        run.report("Examples", which.index(index), len(which))
        if needed[index]:
            selected[index] = ablatable(sae, needed[index])
        examples += examples_of(run.model, sae, index, shown_features(tests[index]), features[index], run.items, sides)
    if not chosen:
        return examples, None
    other = (~half).nonzero()[0]
    if not len(other):
        raise InputError("cause: one item has no other half; take more items")
    there = [run.items[index] for index in other.tolist()]
    counts = [len(item.begins) for item in there]
    first = np.cumsum([0, *counts])
    gold = first[:-1] + (sides.gold - sides.first[:-1])[other]
    of_half = Sides(first, gold, np.zeros(first[-1], dtype=np.int64), sides.same_last[other])
    run.report("Scoring the held-out half", 0, 1)
    ablations = Ablations(run.model, there, selected, partial(_kept, run.parts, f"seed {seed}"))
    return examples, held_out_cause(ablations, of_half, chosen, drawn, partial(run.report, "Ablating"))


def _kept(parts: Parts, of: str, name: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    return parts.get("cause-" + hashlib.sha256(f"{of} {name}".encode()).hexdigest()[:24], make)


def _rows(n_tokens: NDArray, token: Pooling) -> tuple[NDArray, NDArray]:
    """The text and the token's place in it of each row of features."""
    if token != "all":
        return np.arange(len(n_tokens)), n_tokens - 1
    return np.repeat(np.arange(len(n_tokens)), n_tokens), np.concatenate([np.arange(n) for n in n_tokens])


def _lens_layers(model: Model, sources: Sequence[Source]) -> tuple[int, ...]:
    """Those of the dictionaries, and the last, whose margin is the model's own."""
    return tuple(sorted({*(source.site.layer for source in sources), model.n_layers - 1}))


def _lens(layers: tuple[int, ...], through: NDArray, sides: Sides, items: int) -> MarginLens:
    margins = np.zeros((len(layers), items))
    for index in range(items):
        scores = through[:, sides.first[index] : sides.first[index + 1]]
        gold = int(sides.gold[index] - sides.first[index])
        margins[:, index] = scores[:, gold] - np.delete(scores, gold, axis=1).max(axis=1)
    return MarginLens(layers, tuple(range(items)), margins)


def _about(
    model: Model,
    items: Sequence[Item],
    token: Pooling,
    scored: bool,
    lens: tuple[int, ...],
    lens_items: int,
    sources: Sequence[Source],
) -> dict[str, object]:
    """What parts depend on."""
    said = json.dumps([dataclasses.asdict(item) for item in items])
    return {
        "model": model.name,
        "revision": model.revision,
        "dtype": str(model.dtype),
        "device": str(model.device),
        "items": hashlib.sha256(said.encode("utf-8", "surrogatepass")).hexdigest(),
        "token": token,
        "scored": scored,
        "lens": [*lens, lens_items],
        "dictionaries": [f"{source.site} {source.name}" for source in sources],
        "gemlens": __version__,
    }


def _said(joined: int, items: int) -> Iterator[str]:
    if joined:
        yield (
            f"in {joined} of {items} items a token spans the end of the context: it is scored with the choice, which "
            "tokenisers apart from this one may split otherwise"
        )
