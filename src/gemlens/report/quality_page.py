"""The page of a ``QualityCard``: all transcoders at once, every figure by layer, a table, how often features fire."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from gemlens.records import QualityCard, width_name
from gemlens.report.axes import colour
from gemlens.report.density import histogram, tallest
from gemlens.report.fidelity import wrong
from gemlens.report.layers import by_layer
from gemlens.report.page import render
from gemlens.report.quality import COLUMNS, Series, cell, series

__all__ = ["to_html"]


class _Plot(NamedTuple):
    title: str
    hint: str
    svg: str


def to_html(card: QualityCard) -> str:
    """Return one HTML file that works offline."""
    groups = series(card)
    return render(
        "quality",
        facts=_facts(card),
        card=card,
        first=card.dictionaries[0],
        groups=groups,
        plots=_plots(groups),
        columns=[column for column in COLUMNS if any(column.value(each) is not None for each in card.dictionaries)],
        densities=[_densities(group) for group in groups],
        cell=cell,
        colour=colour,
        width_name=width_name,
        wrong=wrong,
        warnings=list(dict.fromkeys(said for each in card.dictionaries for said in each.warnings)),
    )


def _plots(groups: Sequence[Series]) -> list[_Plot]:
    members = [group.members for group in groups]
    return [
        _Plot(
            "Fraction of variance unexplained",
            "Of what passes the site that is written. 1 is no better than its mean.",
            by_layer(members, lambda each: each.fvu, "FVU"),
        ),
        _Plot(
            "Nats above clean",
            "What the model loses when this one site is spliced, ± standard error over rows.",
            by_layer(
                members,
                lambda each: each.spliced.above_clean,
                "nats above clean",
                log=True,
                error=lambda each: each.spliced.standard_error,
            ),
        ),
        _Plot(
            "Cross-entropy recovered, against the mean",
            "Of what replacing the site by its mean costs. 1 is the clean model, 0 the mean.",
            by_layer(members, lambda each: each.ce_recovered_mean, "recovered of mean", top=1.0),
        ),
        _Plot(
            "Cross-entropy recovered, against zeroing",
            "Of what replacing the site by zero costs. It flatters SAEs of residual streams.",
            by_layer(members, lambda each: each.ce_recovered, "recovered of zero", top=1.0),
        ),
    ]


def _densities(group: Series) -> list[str]:
    """One height for all dictionaries of a series, so that they compare."""
    top = max(tallest(each.density) for each in group.members) or 1.0
    return [histogram(each.density, each.dictionary.site, top=top) for each in group.members]


def _facts(card: QualityCard) -> list[tuple[str, str]]:
    made = card.provenance
    versions = f"gemlens {made.gemlens_version}, torch {made.torch_version}, transformers {made.transformers_version}"
    return [
        ("Model", f"{card.model_id} @ {made.model_revision}" if made.model_revision else card.model_id),
        ("Numbers", f"{made.dtype} on {made.device}"),
        ("Made with", versions),
        ("Created", made.created),
    ]
