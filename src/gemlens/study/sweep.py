"""Which dictionary of a site to take: the fidelity of all of them on the same text, and the Pareto front.

A dictionary is on the front if no other has both fewer active features a token and a lower cost in nats: the rest are
beaten on both counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch

from gemlens.errors import GemlensError, InputError
from gemlens.lm.gemma import Model
from gemlens.records import Fidelity, Sweep, SweepPoint
from gemlens.scope.listing import Listed
from gemlens.scope.load import load_sae
from gemlens.study.fidelity import fidelity
from gemlens.study.verdict import suggest

__all__ = ["front", "sweep"]

Texts = Callable[[], Iterable[str]]


def sweep(
    model: Model,
    release: str,
    found: Sequence[Listed],
    texts: Texts,
    *,
    mix: Texts | None = None,
    revision: str | None = None,
    device: str | torch.device = "cpu",
    report: Callable[[Listed, int, int], None] = lambda _which, _done, _total: None,
) -> Sweep:
    """Measure dictionaries of one site one after another; no two are in memory at once.

    Args:
        found: of one site and layer, see ``gemlens.scope.listing``.
        texts: called once a dictionary; see ``gemlens.fidelity``, as for ``mix``.
        report: called with the dictionary, rows done and rows to do.

    Raises:
        InputError: no dictionary was given, or too little text.
        GemlensError: none of them could be loaded: what went wrong with the first.
    """
    if not found:
        raise InputError("no dictionary was given to sweep over; see gemlens.scope.listing")
    measured: list[tuple[Listed, Fidelity]] = []
    failed: list[tuple[Listed, GemlensError]] = []

    def measure(which: Listed) -> Fidelity:
        # A function, so that the dictionary is gone when the next is loaded.
        return fidelity(
            model,
            load_sae(release, which.path, revision=revision, device=device),
            texts(),
            mix=None if mix is None else mix(),
            report=lambda done, total: report(which, done, total),
        )

    for each in found:
        try:
            measured.append((each, suggest(measure(each), found)))
        except InputError:  # the text is too short for all of them
            raise
        except GemlensError as error:  # hours of others must not be lost to one damaged file
            failed.append((each, error))
    if not measured:
        raise failed[0][1]
    figures = [result for _, result in measured]
    best = front([(result.l0, result.spliced.above_clean) for result in figures])
    points = [SweepPoint(result, each.l0, on_front) for (each, result), on_front in zip(measured, best, strict=True)]
    return Sweep(
        release=release,
        site=figures[0].dictionary.site,
        model_id=model.name,
        points=tuple(sorted(points, key=lambda point: (point.figures.dictionary.width, point.figures.l0))),
        failed=tuple((each.path, str(error)) for each, error in failed),
    )


def front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Whether each (L0, cost) is beaten by no other: as good in both, and better in one."""
    return [not any(a <= l0 and b <= cost and (a, b) != (l0, cost) for a, b in points) for l0, cost in points]
