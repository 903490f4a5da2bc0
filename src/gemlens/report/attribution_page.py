"""The page of an ``Attribution``: the text shaded by effect, signed bars, the sums, predicted against actual.

The template writes everything that can be read without a script, shades included; the script shades by one feature.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from gemlens.records.attribution import Attribution, Strong
from gemlens.records.labels import label_text
from gemlens.report import visible
from gemlens.report.attribution import baselines, signed, terms
from gemlens.report.facts import facts_of
from gemlens.report.links import neuronpedia_page
from gemlens.report.page import render
from gemlens.report.scatter import scatter
from gemlens.report.visible import number, one_line, token_name

__all__ = ["to_html"]

STRONGEST = 30
LEVELS = 8
"""Shades of each sign."""


class _Row(NamedTuple):
    """A feature as the template draws it."""

    feature: int
    site: str
    link: str | None
    label: str
    """Empty where nobody said."""
    effect: str
    share: float
    """Of the largest effect, from -100 to 100."""
    token: str
    position: int
    activation: str
    tokens: int


def to_html(attribution: Attribution) -> str:
    """Return one HTML file that works offline."""
    strongest = attribution.strongest(STRONGEST)
    totals = attribution.by_token().tolist()
    top = max((abs(total) for total in totals), default=0.0)
    return render(
        "attribution",
        facts=facts_of(attribution.model_id, attribution.provenance, [e.dictionary for e in attribution.completeness]),
        attribution=attribution,
        value=number(attribution.value),
        baseline=baselines(attribution),
        cells=[_cell(attribution, index, totals[index], top) for index in range(len(totals))],
        top=signed(top).lstrip("+"),
        rows=_rows(attribution, strongest),
        sums=[(each, terms(each)) for each in attribution.completeness],
        signed=signed,
        plot=scatter(attribution.removed) if attribution.removed else None,
        correlation=attribution.correlation,
        data={
            "totals": [_rounded(total) for total in totals],
            "features": [_column(attribution, s) for s in strongest],
        },
    )


def level(value: float, top: float) -> int:
    """-LEVELS to LEVELS: how a token is shaded.

    By the square root: one token often holds most of an effect, and the others have to be told apart as well.
    """
    return round(math.copysign(LEVELS * math.sqrt(abs(value) / top), value)) if top else 0


def _cell(attribution: Attribution, index: int, total: float, top: float) -> dict[str, Any]:
    token = attribution.tokens[index]
    parts: list[tuple[str, str]] = [*visible.parts(token.text)] or [("piece", token_name(token))]
    shade = level(total, top)
    classes = ["token", f"{'for' if shade > 0 else 'against'}-{abs(shade)}" if shade else ""]
    if token.l0 is None:
        classes = ["token", "unread"]
    if token.is_special:
        classes.append("special")
    said = f"features {signed(total)}, error {signed(float(attribution.errors()[index]))}"
    said = "not read" if token.l0 is None else said
    return {"classes": " ".join(filter(None, classes)), "parts": parts, "said": f"{token_name(token)} #{index}: {said}"}


def _rows(attribution: Attribution, strongest: list[Strong]) -> list[_Row]:
    most = max((abs(strong.effect) for strong in strongest), default=0.0) or 1.0
    found = []
    for strong in strongest:
        info = attribution.effects[strong.layer].dictionary
        page = neuronpedia_page(info)
        found.append(
            _Row(
                feature=strong.feature,
                site=info.site,
                link=None if page is None else f"{page}{strong.feature}",
                label=one_line(label_text(attribution.labels, strong.layer, strong.feature)),
                effect=signed(strong.effect),
                share=round(100 * strong.effect / most, 1),
                token=token_name(attribution.tokens[strong.position]),
                position=strong.position,
                activation=number(strong.activation),
                tokens=strong.tokens,
            )
        )
    return found


def _column(attribution: Attribution, strong: Strong) -> list[list[float]]:
    """Positions and effects of one feature."""
    effects = attribution.effects[strong.layer]
    mine = effects.feature == strong.feature
    return [effects.position[mine].tolist(), [_rounded(value) for value in effects.effect[mine].tolist()]]


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
