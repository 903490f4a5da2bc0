"""The page of one feature, or of several in one file; complete without a script.

Text runs that are shaded alike are one element, and a shade is a class (``s1`` to ``s20``), since the page's policy
allows no inline styles: a page of thirty examples is some fifteen kilobytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from math import ceil
from typing import Any

from gemlens.records import DictionaryInfo
from gemlens.records.feature import Example, ExampleToken, FeaturePage, Related, TokenLogit
from gemlens.report.feature_charts import histogram, positions
from gemlens.report.links import neuronpedia_page
from gemlens.report.page import render
from gemlens.report.visible import inline, number, one_line, parts

__all__ = ["SHADES", "drawn", "facts", "frequency", "share_of", "signed", "feature_to_html", "token_name", "view"]

SHADES = 20

Link = Callable[[int], str | None]
"""Feature -> where its page is, if it has one."""


def feature_to_html(page: FeaturePage) -> str:
    """Return one HTML file that works offline."""
    return render("feature", facts=facts(page), views=[view(page)], back=None, title=_title(page))


def view(page: FeaturePage, link: Link = lambda _feature: None) -> dict[str, Any]:
    """What the template draws of one feature.

    Args:
        link: to pages of other features.
    """
    out = neuronpedia_page(page.dictionary)
    return {
        "id": page.feature_id,
        "title": _title(page),
        "label": page.label,
        "page": page,
        "path": _path(page.dictionary),
        "frequency": frequency(page),
        "strongest": number(page.max_activation) if page.max_activation else "none",
        "levels": [_level(page, index) for index in range(len(page.levels))],
        "shown": len(page.examples),
        "histogram": histogram(page.histogram) if page.histogram else None,
        "positions": positions(page.positions) if page.positions else None,
        "promoted": _bars([(token_name(each), each.logit) for each in page.promoted]),
        "suppressed": _bars([(token_name(each), each.logit) for each in page.suppressed]),
        "neighbours": _related(page.neighbours, link),
        "coactive": _related(page.coactive, link),
        "basis": _related(page.basis, lambda _index: None),
        "neurons": _related(page.neurons, lambda _index: None),
        "neuronpedia": f"{out}{page.feature_id}" if out else None,
    }


def facts(page: FeaturePage) -> list[tuple[str, str]]:
    """What made it, for the footer: of the evidence, alike for all features of a dictionary."""
    info = page.dictionary
    found = [("Dictionary", _path(info) + (f" @ {info.revision}" if info.revision else ""))]
    if page.model_id:
        found.append(("Model", page.model_id))
    if page.tokens_read is not None:
        found.append(("Read for it", f"{page.tokens_read:,} tokens"))
    if page.texts:
        more = f" and {len(page.texts) - 8} more" if len(page.texts) > 8 else ""
        found.append(("Texts", ", ".join(map(one_line, page.texts[:8])) + more))
    return [*found, ("Evidence", page.source)]


def frequency(page: FeaturePage) -> str:
    """How often it fires, in words."""
    if page.frequency is None:
        return "not counted"
    if page.frequency <= 0:
        return "never"
    if page.frequency > 1:  # no share: a file that counts
        return f"{page.frequency:,.0f} tokens"
    every = 1 / page.frequency
    said = f"1 of {every:,.0f} tokens" if every >= 10 else f"{100 * page.frequency:.0f} % of tokens"
    return said + (f" ({round(page.frequency * page.tokens_read):,})" if page.tokens_read else "")


def share_of(value: float | None, top: float) -> int:
    """0 to ``SHADES``: anything active is visibly so."""
    if value is None or not value > 0 or not top > 0:
        return 0
    return max(1, min(SHADES, ceil(value / top * SHADES)))


def _title(page: FeaturePage) -> str:
    return one_line(page.label.text) if page.label else f"Feature {page.feature_id}"


def _path(info: DictionaryInfo) -> str:
    return "/".join(filter(None, [info.release, info.category, info.id]))


def _level(page: FeaturePage, index: int) -> dict[str, Any]:
    level = page.levels[index]
    highest = index == 0
    return {
        "range": f"{number(level.low)} to {number(level.high)}" if not highest else f"above {number(level.low)}",
        "name": "Strongest" if highest else f"{75 - 25 * index} to {100 - 25 * index} % of the strongest",
        "on_file": level.on_file,
        "examples": [_example(example, page.max_activation) for example in level.examples],
    }


def _example(example: Example, top: float) -> dict[str, Any]:
    cells = [(_look(token, at == example.peak, top), token) for at, token in enumerate(example.tokens)]
    runs = []
    for (classes, tip), group in groupby(cells, key=lambda cell: cell[0]):
        parts = drawn([token for _, token in group])
        if classes and parts[:1] and parts[0][1][:1] == " " and len(parts[0][1]) > 1:
            # A line may break at the space in front: the box would begin at the end of the line before.
            runs.append({"classes": "", "tip": "", "parts": [("text", " ")]})
            parts[0] = (parts[0][0], parts[0][1][1:])
        runs.append({"classes": classes, "tip": tip, "parts": parts})
    return {
        "activation": number(example.activation),
        "runs": runs,
        "before": example.cut_before,
        "after": example.cut_after,
        "where": f"sequence {example.sequence}, token {example.position}",
    }


def _look(token: ExampleToken, is_peak: bool, top: float) -> tuple[str, str]:
    """Classes and tooltip; equal for neighbours that are drawn as one."""
    shade = share_of(token.activation, top)
    classes = [f"s{shade}"] if shade else []
    if is_peak:
        classes.append("peak")
    if token.is_special:
        classes.append("special")
    return " ".join(classes), number(token.activation) if token.activation is not None else ""


def drawn(tokens: Sequence[ExampleToken]) -> list[tuple[str, str]]:
    """Text on one line: what cannot be seen by a sign. A byte that adds nothing shows its piece where it fired."""
    found: list[tuple[str, str]] = []
    for token in tokens:
        text = token.text
        if not text and token.activation is not None:
            found.append(("piece", inline(token.token)))
        for kind, part in parts(text):
            sign = {"newline": "↵" * len(part), "tab": "⇥" * len(part)}.get(kind)
            found.append((kind, part) if sign is None else ("sign", sign))
    merged = [(kind, "".join(part for _, part in run)) for kind, run in groupby(found, key=lambda each: each[0])]
    return [(kind, part) for kind, part in merged if part]


def token_name(token: TokenLogit) -> str:
    """A token that stands alone, what cannot be seen by a sign."""
    return inline(token.text) or f"#{token.token_id}"


def _bars(pairs: Sequence[tuple[str, float]]) -> list[dict[str, Any]]:
    top = max((abs(value) for _, value in pairs), default=0)
    return [{"name": name, "value": signed(value), "share": share_of(abs(value), top)} for name, value in pairs]


def _related(found: Sequence[Related], link: Link) -> list[dict[str, Any]]:
    top = max((abs(each.value) for each in found), default=0)
    return [
        {
            "name": str(each.index),
            "href": link(each.index),
            "value": f"{each.value:.2f}".replace("-", "−"),
            "negative": each.value < 0,
            "share": share_of(abs(each.value), top),
        }
        for each in found
    ]


def signed(value: float) -> str:
    """Two digits after the point, as logits need, with a sign."""
    return f"{value:+.2f}".replace("-", "−")
