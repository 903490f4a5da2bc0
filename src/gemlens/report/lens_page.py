"""The pages of a ``FeatureLens`` and of a ``ResidualLens``; neither needs a script."""

from __future__ import annotations

from typing import NamedTuple

from gemlens.records.labels import label_text
from gemlens.records.lens import FeatureLens, ResidualLens
from gemlens.report.facts import facts_of
from gemlens.report.lens import heading, percent, token_list
from gemlens.report.links import neuronpedia_page
from gemlens.report.page import render
from gemlens.report.visible import inline, one_line, token_name

__all__ = ["features_to_html", "residual_to_html"]

LEVELS = 8
"""Shades of a probability."""


class _Cell(NamedTuple):
    """What one layer predicts after one token."""

    text: str
    level: int
    said: str
    """All that is listed, for the pointer."""
    own: bool
    """The token that the whole model holds likeliest."""


def features_to_html(lens: FeatureLens) -> str:
    """Return one HTML file that works offline."""
    page = neuronpedia_page(lens.dictionary)
    return render(
        "lens",
        facts=facts_of(lens.model_id, lens.provenance, [lens.dictionary]),
        title=f"{lens.dictionary.site} · {lens.dictionary.id}",
        lead=f"{heading(lens)}. Logits above what it adds to every token.",
        warnings=lens.warnings,
        features=[
            {
                "id": each.feature,
                "label": one_line(label_text(lens.labels, 0, each.feature)),
                "link": None if page is None else f"{page}{each.feature}",
                "ends": [("for", token_list(each.top)), ("against", token_list(each.bottom))],
                "agreement": None if each.agreement is None else percent(each.agreement),
            }
            for each in lens.features
        ],
        grid=None,
    )


def residual_to_html(lens: ResidualLens) -> str:
    """Return one HTML file that works offline."""
    return render(
        "lens",
        facts=facts_of(lens.model_id, lens.provenance, []),
        title=lens.prompt,
        lead="What each layer's residual stream would predict next after each token, through the model's own norm, "
        "head and soft-cap. The darker, the likelier; framed where it is what the whole model predicts.",
        warnings=lens.warnings,
        features=[],
        grid={
            "tokens": [(token_name(token), token.l0 is None) for token in lens.tokens],
            "rows": [
                (layer, [_cell(lens, layer, position) for position in range(len(lens.tokens))])
                for layer in reversed(range(lens.layers))
            ],
        },
    )


def _cell(lens: ResidualLens, layer: int, position: int) -> _Cell:
    ids, chances = lens.token_ids[layer, position].tolist(), lens.probability[layer, position].tolist()
    pairs = [f"{inline(lens.texts[token])} {percent(chance)}" for token, chance in zip(ids, chances, strict=True)]
    return _Cell(
        text=inline(lens.texts[ids[0]]) or "∅",
        level=round(LEVELS * chances[0]),
        said=f"layer {layer}: {', '.join(pairs)}",
        own=int(lens.rank[layer, position]) == 0,
    )
