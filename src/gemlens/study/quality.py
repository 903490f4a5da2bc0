"""The quality of a whole release: every dictionary by the fidelity protocol, every complete set of transcoders at once.

A set is transcoders of one name but for the layer, one for each layer of the model, or a CLT over all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch

from gemlens.errors import GemlensError
from gemlens.lm.gemma import Model
from gemlens.records import Fidelity, QualityCard, SetFidelity, series_name
from gemlens.scope.listing import Listed
from gemlens.scope.multilayer import MultiLayer
from gemlens.scope.sae import SAE
from gemlens.study.analysis import provenance_of
from gemlens.study.many import Texts, load_listed, measure
from gemlens.study.replacement import Transcoders
from gemlens.study.set_fidelity import set_fidelity

__all__ = ["quality_card"]


def quality_card(
    model: Model,
    release: str,
    found: Sequence[Listed],
    texts: Texts,
    *,
    names: Sequence[str] = (),
    mix: Texts | None = None,
    revision: str | None = None,
    device: str | torch.device = "cpu",
    report: Callable[[Sequence[Listed], int, int], None] = lambda _which, _done, _total: None,
    report_set: Callable[[str, int, int], None] = lambda _name, _done, _total: None,
) -> QualityCard:
    """Measure what ``found`` lists of a release, then its sets of transcoders.

    Args:
        found: see ``gemlens.scope.listing``.
        texts, mix: as for ``sweep``.
        names: what the texts are called, for the record.
        report: called with the dictionaries that are measured together, rows done and rows to do.
        report_set: called with a set's name, rows done and rows to do.

    Raises:
        InputError: no dictionary was given, or too little text.
        GemlensError: none of them could be loaded: what went wrong with the first.
    """
    measured, failed = measure(model, release, found, texts, mix=mix, revision=revision, device=device, report=report)
    reasons = [(each.path, str(error)) for each, error in failed]
    sets: list[SetFidelity] = []
    for name, members in complete_sets(measured, model.n_layers).items():
        try:
            transcoders = _load(release, members, revision, device)
            sets.append(set_fidelity(model, transcoders, texts(), report=partial(report_set, name)))
        except GemlensError as error:
            reasons.append((name, str(error)))
    return QualityCard(
        release=release,
        model_id=model.name,
        texts=tuple(names),
        dictionaries=tuple(sorted((figures for _, figures in measured), key=_order)),
        sets=tuple(sets),
        failed=tuple(reasons),
        provenance=provenance_of(model),
    )


def complete_sets(measured: Sequence[tuple[Listed, Fidelity]], n_layers: int) -> dict[str, list[Listed]]:
    """By name, the transcoders that have one for each of the model's MLPs; of a CLT the CLT."""
    series: dict[str, dict[str, Listed]] = {}
    for each, figures in measured:
        if figures.writes != figures.dictionary.site and figures.writes.startswith("mlp_out."):
            series.setdefault(series_name(each.path), {})[figures.writes] = each
    return {
        name: list(dict.fromkeys(by_layer.values())) for name, by_layer in series.items() if len(by_layer) == n_layers
    }


def _load(release: str, members: Sequence[Listed], revision: str | None, device: str | torch.device) -> Transcoders:
    loaded = [load_listed(release, each, revision=revision, device=device) for each in members]
    if isinstance(loaded[0], MultiLayer):
        return loaded[0]
    return [each for each in loaded if isinstance(each, SAE)]


def _order(figures: Fidelity) -> tuple[str, int, str]:
    path = figures.dictionary.path or figures.dictionary.id
    return series_name(path), figures.dictionary.layer, path
