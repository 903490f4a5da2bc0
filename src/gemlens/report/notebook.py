"""The notebook view: a fragment of HTML that needs no script, no style sheet and no id.

Notebooks strip scripts, share style sheets between cells and come light or dark; so every style is inline, colours
are the notebook's own, and shades are transparent amber, which leaves text readable on either ground.
"""

from __future__ import annotations

from itertools import groupby

from gemlens.records import Analysis, TokenRecord
from gemlens.report.links import neuronpedia_page
from gemlens.report.summary import peaks, scale, strongest
from gemlens.report.visible import inline, number, one_line, parts, token_name

__all__ = ["token_view"]

STRONGEST = 8
FAINT = "opacity:.75"
# The strongest shade keeps 4.5:1 between it and the text of a light and of a dark notebook.
DEEPEST = 0.5


def token_view(analysis: Analysis) -> str:
    """Return the text shaded by the strongest activation of the first dictionary, and a table of strongest features."""
    from markupsafe import Markup

    first = analysis.dictionaries[0]
    head = Markup("<b>{}</b> · {} · {}/{}").format(
        *map(one_line, (analysis.model_id, first.site, f"{first.release}/{first.category}", first.id))
    )
    warnings = [Markup('<div style="margin-top:4px">⚠ {}</div>').format(one_line(text)) for text in analysis.warnings]
    html = Markup('<div style="font-size:14px;line-height:1.5;max-width:60em">{}{}{}{}</div>').format(
        head, Markup("").join(warnings), _text(analysis), _strongest(analysis)
    )
    return html.encode("utf-8", "replace").decode()


def _text(analysis: Analysis) -> str:
    from markupsafe import Markup

    top = scale(analysis, 0) or 1.0
    shares = (min(1.0, float(value) / top) for value in peaks(analysis.activations[0]))
    shaded = zip(analysis.tokens, shares, strict=True)
    blocks = []
    for generated, run in groupby(shaded, key=lambda pair: pair[0].is_generated):
        edge = "border-left:3px solid rgba(230,140,20,.8);padding-left:10px;" if generated else ""
        style = f"{edge}margin:10px 0;white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.9"
        words = Markup("").join(_token(token, share) for token, share in run)
        blocks.append(Markup('<div style="{}">{}</div>').format(style, words))
    return Markup("").join(blocks)


def _token(token: TokenRecord, share: float) -> str:
    from markupsafe import Markup

    drawn = []
    for kind, part in parts(token.text) or [("escape", token_name(token))]:
        sign = {"newline": "↵", "tab": "⇥", "escape": part}.get(kind)
        drawn.append(part if sign is None else Markup('<span style="{}">{}</span>').format(FAINT, sign))
        if kind in ("newline", "tab"):
            drawn.append(part)
    style = f"background:rgba(230,140,20,{share * DEEPEST:.2f});border-radius:3px;padding:2px 0"
    if token.l0 is None:
        style = f"text-decoration:line-through;{FAINT}"
    return Markup('<span style="{}" title="{}">{}</span>').format(style, _tooltip(token), Markup("").join(drawn))


def _tooltip(token: TokenRecord) -> str:
    if token.l0 is None:
        return "not read"
    features = [f"{f.feature_id} ({number(f.activation)})" for f in token.features if f.dictionary == 0]
    return "\n".join([f"#{token.position} {inline(token.token)}", f"L0 {token.l0}", *features])


def _strongest(analysis: Analysis) -> str:
    from markupsafe import Markup

    page = neuronpedia_page(analysis.dictionaries[0])
    cell = 'style="text-align:right;padding:1px 14px 1px 0"'
    left = 'style="text-align:left;padding:1px 0 1px 14px"'
    rows = []
    for feature in strongest(analysis, 0, STRONGEST):
        peak = analysis.tokens[feature.token]
        name: str = str(feature.feature_id)
        if page is not None:
            name = Markup('<a href="{}{}" target="_blank" rel="noopener noreferrer">{}</a>').format(page, name, name)
        row = f"<tr><td {cell}>{{}}</td><td {cell}>{{}}</td><td {cell}>{{}}</td><td>{{}}</td>"
        numbers = (number(feature.max_activation), feature.active_tokens)
        label = analysis.label_of(0, feature.feature_id)
        called = Markup("<td {}>{}</td>").format(Markup(left), one_line(label.shown)) if label else ""
        rows.append(Markup(row).format(name, *numbers, token_name(peak)) + called + Markup("</tr>"))
    if not rows:
        return ""
    heads = Markup("").join(Markup(f"<th {cell}>{head}</th>") for head in ("feature", "max", "tokens"))
    last = Markup(f"<th {left}>label</th>") if analysis.labels and analysis.labels[0] else ""
    whole = '<table style="color:inherit;font-size:inherit"><tr>{}<th>strongest on</th>{}</tr>{}</table>'
    return Markup(whole).format(heads, last, Markup("").join(rows))
