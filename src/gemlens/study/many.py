"""The dictionaries of a listing, measured on the same text: as many at once as memory should hold.

What is held together shares every pass over the text. A dictionary that cannot be read does not cost the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch

from gemlens.errors import GemlensError, InputError
from gemlens.lm.gemma import Model
from gemlens.records import Fidelity
from gemlens.scope.listing import Listed
from gemlens.scope.load import load_clt, load_sae
from gemlens.study.fidelity import fidelities
from gemlens.study.fit_check import check_fit
from gemlens.study.outputs import Dictionary, outputs
from gemlens.study.verdict import suggest

__all__ = ["Many", "Texts", "load_listed", "measure"]

HELD_BYTES = 1 << 30
"""Weights of dictionaries measured together, beyond the last of them: one of 262k features of Gemma 3 270M, a dozen of
16k."""

Texts = Callable[[], Iterable[str]]
"""Documents, from the first each time it is called."""


class Many(NamedTuple):
    measured: list[tuple[Listed, Fidelity]]
    """In the order given; of a CLT one for each layer."""
    failed: list[tuple[Listed, GemlensError]]


def measure(
    model: Model,
    release: str,
    found: Sequence[Listed],
    texts: Texts,
    *,
    mix: Texts | None = None,
    revision: str | None = None,
    device: str | torch.device = "cpu",
    report: Callable[[Sequence[Listed], int, int], None] = lambda _which, _done, _total: None,
) -> Many:
    """Measure all dictionaries of ``found`` by the fidelity protocol.

    Args:
        report: called with the dictionaries that are measured together, rows done and rows to do.

    Raises:
        InputError: no dictionary was given, or too little text.
        GemlensError: none of them could be loaded: what went wrong with the first.
    """
    if not found:
        raise InputError("no dictionary was given to measure; see gemlens.scope.listing")
    many = Many([], [])

    def load(each: Listed) -> Dictionary:
        dictionary = load_listed(release, each, revision=revision, device=device)
        check_fit(model, dictionary)
        return dictionary

    for group in _groups(found, load, many.failed):
        figures = fidelities(
            model,
            [dictionary for _, dictionary in group],
            texts(),
            mix=None if mix is None else mix(),
            report=partial(report, [each for each, _ in group]),
        )
        listed = [each for each, dictionary in group for _ in outputs(dictionary)]
        many.measured.extend((each, suggest(result, found)) for each, result in zip(listed, figures, strict=True))
    if not many.measured:
        raise many.failed[0][1]
    return many


def load_listed(
    release: str, each: Listed, *, revision: str | None = None, device: str | torch.device = "cpu"
) -> Dictionary:
    """Load what a listing names; raises as the loaders do."""
    load: Callable[..., Dictionary] = load_clt if each.is_clt else load_sae
    return load(release, each.path, revision=revision, device=device)


def _groups(
    found: Sequence[Listed], load: Callable[[Listed], Dictionary], failed: list[tuple[Listed, GemlensError]]
) -> Iterator[list[tuple[Listed, Dictionary]]]:
    """Dictionaries up to ``HELD_BYTES`` at a time; a group is emptied before the next is loaded."""
    group: list[tuple[Listed, Dictionary]] = []
    for each in found:
        try:
            group.append((each, load(each)))
        except GemlensError as error:  # hours of others must not be lost to one damaged file
            failed.append((each, error))
        if sum(dictionary.nbytes for _, dictionary in group) >= HELD_BYTES:
            yield group
            group.clear()
    if group:
        yield group
