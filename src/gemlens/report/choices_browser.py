"""The rows of the item browser: each item with its choices, their scores, and their strongest features by layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gemlens.records.choices import Choices
from gemlens.records.labels import Labels, label_text
from gemlens.report import visible
from gemlens.report.choices_json import strongest_of
from gemlens.report.links import neuronpedia_page

__all__ = ["browser"]

"""Dictionary's index -> feature -> what it is called."""

# Features shown of a choice and layer: a page of 918 items and 26 layers stays under 10 MB.
_FEW, _MANY_ITEMS, _FEW_OF_MANY = 10, 200, 4


def browser(found: Choices, labels: Labels) -> dict[str, Any]:
    """What the page's script reads."""
    few = _FEW if len(found.items) <= _MANY_ITEMS else _FEW_OF_MANY
    tops = [strongest_of(found, index) for index in range(len(found.dictionaries))]
    named: list[dict[str, str]] = []
    for index, of_texts in enumerate(tops):
        shown = {feature for top in of_texts for feature, _, _ in top[:few]}
        every = ((feature, visible.one_line(label_text(labels, index, feature))) for feature in sorted(shown))
        named.append({str(feature): label for feature, label in every if label})
    return {
        "layers": [
            {"site": info.site, "link": neuronpedia_page(info), "labels": named[index]}
            for index, info in enumerate(found.dictionaries)
        ],
        "scored": found.scored,
        "items": [_browsed(found, index, tops, few) for index in range(len(found.items))],
    }


def _browsed(found: Choices, index: int, tops: Sequence[Sequence[Any]], few: int) -> dict[str, Any]:
    item, start = found.items[index], int(found.first_text[index])
    return {
        "id": item.id,
        "question": visible.one_line(item.question),
        "gold": item.gold,
        "margin": round(found.margin(index), 3) if found.scored else None,
        "choices": [
            {
                "text": visible.one_line(item.choices[choice]),
                "score": round(float(found.log_likelihood[start + choice]), 3) if found.scored else None,
                "tokens": int(found.n_tokens[start + choice]),
                "last": visible.inline(found.last_token[start + choice]),
                "top": [
                    [[feature, float(f"{value:.4g}")] for feature, value, _ in top[start + choice][:few]]
                    for top in tops
                ],
            }
            for choice in range(len(item.choices))
        ],
    }
