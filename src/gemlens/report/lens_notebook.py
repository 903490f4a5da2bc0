"""Lenses in a notebook: fragments of HTML without script or style sheet."""

from __future__ import annotations

from collections.abc import Sequence

from gemlens.records.labels import label_text
from gemlens.records.lens import FeatureLens, ResidualLens
from gemlens.report.lens import heading, percent, token_list
from gemlens.report.visible import inline, one_line, token_name

__all__ = ["feature_view", "residual_view"]

SHOWN = 10
_CELL = "padding:1px 14px 1px 0;text-align:left;vertical-align:top"
_DEEPEST = 0.5


def feature_view(lens: FeatureLens) -> str:
    """Return a table of the tokens that each feature speaks for and against."""
    named = bool(lens.labels)
    rows = [
        [
            str(each.feature),
            *([label_text(lens.labels, 0, each.feature)] if named else []),
            *(", ".join(text for text, _ in token_list(end, SHOWN)) for end in (each.top, each.bottom)),
        ]
        for each in lens.features
    ]
    return _view(heading(lens), lens.warnings, ["feature", *(["label"] if named else []), "for", "against"], rows)


def residual_view(lens: ResidualLens) -> str:
    """Return what each layer predicts after each token, shaded by its probability."""
    rows = [
        [
            str(layer),
            *(inline(lens.texts[token]) for token in lens.token_ids[layer, :, 0].tolist()),
        ]
        for layer in reversed(range(lens.layers))
    ]
    shades = [[0.0, *lens.probability[layer, :, 0].tolist()] for layer in reversed(range(lens.layers))]
    heads = ["layer", *(token_name(token) for token in lens.tokens)]
    said = f"What each layer predicts next: {percent(float(lens.probability[-1, -1, 0]))} for the last"
    return _view(said, lens.warnings, heads, rows, shades)


def _view(
    head: str,
    warnings: Sequence[str],
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    shades: Sequence[Sequence[float]] | None = None,
) -> str:
    from markupsafe import Markup

    def cell(row: int, column: int) -> str:
        share = shades[row][column] if shades else 0.0
        style = f"{_CELL};background:rgba(230,140,20,{share * _DEEPEST:.2f})" if share else _CELL
        return Markup('<td style="{}">{}</td>').format(style, one_line(rows[row][column]))

    said = [Markup('<div style="margin-top:4px">⚠ {}</div>').format(one_line(text)) for text in warnings]
    first = Markup("").join(Markup('<th style="{}">{}</th>').format(_CELL, one_line(name)) for name in heads)
    body = Markup("").join(
        Markup("<tr>{}</tr>").format(Markup("").join(cell(row, column) for column in range(len(rows[row]))))
        for row in range(len(rows))
    )
    whole = (
        '<div style="font-size:14px;line-height:1.5;overflow-x:auto"><b>{}</b>{}'
        '<table style="color:inherit;font-size:inherit;margin-top:6px"><tr>{}</tr>{}</table></div>'
    )
    html = Markup(whole).format(one_line(head), Markup("").join(said), first, body)
    return html.encode("utf-8", "replace").decode()
