"""An ``Attribution`` in a notebook: a fragment of HTML without script or style sheet."""

from __future__ import annotations

from gemlens.records.attribution import Attribution
from gemlens.records.labels import label_text
from gemlens.report.attribution import signed, terms
from gemlens.report.visible import number, one_line, token_name

__all__ = ["attribution_view"]

STRONGEST = 10
_CELL = "padding:1px 14px 1px 0;text-align:right"
# Transparent amber and teal, which leave text readable on a light and on a dark notebook.
_FOR, _AGAINST, _DEEPEST = "230,140,20", "20,150,160", 0.5


def attribution_view(attribution: Attribution) -> str:
    """Return the text shaded by effect, the sums, and the features of largest effect."""
    from markupsafe import Markup

    head = Markup("<b>{}</b>: {} · {}").format(
        one_line(attribution.target), number(attribution.value), attribution.method
    )
    warnings = [
        Markup('<div style="margin-top:4px">⚠ {}</div>').format(one_line(said)) for said in attribution.warnings
    ]
    html = Markup('<div style="font-size:14px;line-height:1.5;max-width:60em">{}{}{}{}{}</div>').format(
        head, Markup("").join(warnings), _text(attribution), _sums(attribution), _strongest(attribution)
    )
    return html.encode("utf-8", "replace").decode()


def _text(attribution: Attribution) -> str:
    from markupsafe import Markup

    totals = attribution.by_token()
    top = max(abs(float(total)) for total in totals) or 1.0
    words = []
    for token, total in zip(attribution.tokens, totals.tolist(), strict=True):
        style, said = "text-decoration:line-through;opacity:.75", "not read"
        if token.l0 is not None:
            shade = f"rgba({_FOR if total > 0 else _AGAINST},{abs(total) / top * _DEEPEST:.2f})"
            style, said = f"background:{shade};border-radius:3px;padding:2px 0", f"#{token.position} {signed(total)}"
        words.append(
            Markup('<span style="{}" title="{}">{}</span>').format(style, said, token.text or token_name(token))
        )
    whole = '<div style="margin:10px 0;white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.9">{}</div>'
    return Markup(whole).format(Markup("").join(words))


def _sums(attribution: Attribution) -> str:
    from markupsafe import Markup

    lines = [
        Markup("<div>{}: {} = {}; actual change {}</div>").format(
            each.dictionary.site,
            " ".join(f"{name} {signed(value)}" for name, value in terms(each)),
            signed(each.total),
            signed(each.change),
        )
        for each in attribution.completeness
    ]
    return Markup("").join(lines)


def _strongest(attribution: Attribution) -> str:
    from markupsafe import Markup

    last = '<td style="padding-left:14px">{5}</td>' if attribution.labels else ""
    row = '<tr><td style="{0}">{1}</td><td style="{0}">{2}</td><td style="{0}">{3}</td><td>{4}</td>' + last + "</tr>"
    rows = [
        Markup(row).format(
            _CELL,
            strong.feature,
            attribution.effects[strong.layer].dictionary.site,
            signed(strong.effect),
            token_name(attribution.tokens[strong.position]),
            one_line(label_text(attribution.labels, strong.layer, strong.feature)),
        )
        for strong in attribution.strongest(STRONGEST)
    ]
    heads = ("feature", "site", "effect")
    head = Markup("").join(Markup('<th style="{}">{}</th>').format(_CELL, name) for name in heads)
    whole = '<table style="color:inherit;font-size:inherit"><tr>{}<th>largest at</th>{}</tr>{}</table>'
    label = Markup('<th style="padding-left:14px">label</th>') if attribution.labels else ""
    return Markup(whole).format(head, label, Markup("").join(rows))
