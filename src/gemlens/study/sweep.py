"""Which dictionary of a site to take: the fidelity of all of them on the same text, and the Pareto front.

A dictionary is on the front if no other has both fewer active features a token and a lower cost in nats: the rest are
beaten on both counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from gemlens.lm.gemma import Model
from gemlens.records import Sweep, SweepPoint
from gemlens.scope.listing import Listed
from gemlens.study.many import Texts, measure

__all__ = ["front", "sweep"]


def sweep(
    model: Model,
    release: str,
    found: Sequence[Listed],
    texts: Texts,
    *,
    mix: Texts | None = None,
    revision: str | None = None,
    device: str | torch.device = "cpu",
    report: Callable[[Sequence[Listed], int, int], None] = lambda _which, _done, _total: None,
) -> Sweep:
    """Measure dictionaries of one site, as many together as memory should hold.

    Args:
        found: of one site and layer, see ``gemlens.scope.listing``.
        texts: called once for those measured together; see ``gemlens.fidelity``, as for ``mix``.
        report: called with the dictionaries that are measured together, rows done and rows to do.

    Raises:
        InputError: no dictionary was given, or too little text.
        GemlensError: none of them could be loaded: what went wrong with the first.
    """
    measured, failed = measure(model, release, found, texts, mix=mix, revision=revision, device=device, report=report)
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
