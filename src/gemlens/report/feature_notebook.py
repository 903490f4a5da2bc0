"""A feature in a notebook: a fragment with inline styles, and Neuronpedia's own dashboard below where there is one.

As in ``report.notebook``, no script, no style sheet and no id. The dashboard is a frame of Neuronpedia's page, which
the reader's browser asks for; without a network it stays empty and nothing above it is missing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gemlens.records.feature import Example, FeaturePage, TokenLogit
from gemlens.report.feature_html import drawn, frequency, signed, token_name
from gemlens.report.links import neuronpedia_page
from gemlens.report.notebook import DEEPEST, FAINT
from gemlens.report.visible import number, one_line

if TYPE_CHECKING:
    from markupsafe import Markup

__all__ = ["feature_view"]

_PER_LEVEL = 4
_EMBED = "?embed=true&embedexplanation=true&embedplots=true&embedtest=true&height=300"


def feature_view(page: FeaturePage) -> str:
    """Return title, figures, examples by level, tokens, and the frame."""
    from markupsafe import Markup

    info = page.dictionary
    label = Markup(" · {} <span style='{}'>by {}</span>").format(
        one_line(page.label.text), FAINT, one_line(page.label.source)
    ) if page.label else ""  # fmt: skip
    head = Markup("<b>Feature {}</b>{} · {} · {}").format(
        page.feature_id, label, info.site, one_line("/".join(filter(None, [info.release, info.category, info.id])))
    )
    strongest = number(page.max_activation) if page.max_activation else "none"
    fires = frequency(page) if page.never_fired or page.frequency is None else f"on {frequency(page)}"
    figures = Markup("<div style='{}'>fires {}, strongest {}</div>").format(FAINT, fires, strongest)
    warnings = [Markup('<div style="margin-top:4px">⚠ {}</div>').format(one_line(text)) for text in page.warnings]
    never = Markup('<div style="margin-top:8px">It never fired on the tokens read for this evidence.</div>')
    html = Markup('<div style="font-size:14px;line-height:1.5;max-width:60em">{}{}{}{}{}{}{}</div>').format(
        head,
        figures,
        Markup("").join(warnings),
        never if page.never_fired else "",
        _examples(page),
        _tokens("promotes", page.promoted) + _tokens("suppresses", page.suppressed),
        _dashboard(page),
    )
    return html.encode("utf-8", "replace").decode()


def _examples(page: FeaturePage) -> Markup:
    from markupsafe import Markup

    rows = []
    for index, level in enumerate(page.levels):
        shown = level.examples[: _PER_LEVEL * (2 if index == 0 else 1)]
        for at, example in enumerate(shown):
            edge = "border-top:1px solid rgba(128,128,128,.35);" if index and at == 0 else ""
            rows.append(
                Markup(
                    '<tr><td style="{}text-align:right;vertical-align:top;padding:2px 12px 2px 0;{}">{}</td>'
                    '<td style="{}text-align:left;white-space:pre-wrap;padding:2px 0">{}</td></tr>'
                ).format(edge, FAINT, number(example.activation), edge, _words(example, page.max_activation))
            )
    table = '<table style="color:inherit;font-size:inherit;margin-top:8px;border-collapse:collapse">{}</table>'
    return Markup(table).format(Markup("").join(rows)) if rows else Markup("")


def _words(example: Example, top: float) -> Markup:
    from markupsafe import Markup

    start, stop = max(0, example.peak - 14), example.peak + 11
    words = [Markup("…")] if example.cut_before or start else []
    for at, token in enumerate(example.tokens[:stop]):
        if at < start:
            continue
        text = "".join(part for _, part in drawn([token]))
        if token.activation is None:
            words.append(
                Markup('<span style="{}">{}</span>').format(FAINT, text)
                if token.is_special
                else Markup("{}").format(text)
            )
            continue
        shade = min(1.0, token.activation / top) * DEEPEST if top > 0 else 0
        edge = ";outline:1px solid" if at == example.peak else ""
        words.append(
            Markup('<span style="background:rgba(230,140,20,{:.2f});border-radius:3px{}" title="{}">{}</span>').format(
                shade, edge, number(token.activation), text
            )
        )
    return Markup("").join(words)


def _tokens(name: str, found: tuple[TokenLogit, ...]) -> Markup:
    from markupsafe import Markup

    said = "  ".join(f"{token_name(each)} {signed(each.logit)}" for each in found)
    line = '<div style="margin-top:6px"><span style="{}">{}</span> <span style="white-space:pre-wrap">{}</span></div>'
    return Markup(line).format(FAINT, name, said) if found else Markup("")


def _dashboard(page: FeaturePage) -> Markup:
    from markupsafe import Markup

    place = neuronpedia_page(page.dictionary)
    if place is None:
        return Markup("")
    frame = (
        '<iframe src="{}{}{}" title="Neuronpedia" width="100%" height="300" loading="lazy" '
        'referrerpolicy="no-referrer" style="border:1px solid rgba(128,128,128,.35);border-radius:6px;margin-top:10px">'
        "</iframe>"
    )
    return Markup(frame).format(place, page.feature_id, _EMBED)
