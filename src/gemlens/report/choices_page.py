"""The page of ``Choices``: accuracy, what right and wrong share, what tells them apart, why it may not matter, items.

The template writes all that can be read without a script; the item browser gets its rows as JSON.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby, pairwise
from typing import Any, NamedTuple

import numpy as np

from gemlens.records.choices import CauseEffect, Choices, Example, FeatureTest
from gemlens.records.labels import Labels, label_text
from gemlens.report import visible
from gemlens.report.axes import colour
from gemlens.report.choices_browser import browser
from gemlens.report.layers import Point, plot
from gemlens.report.links import neuronpedia_page
from gemlens.report.page import render

__all__ = ["to_html"]

_LISTED = 5
_SHADES = 8


class _Figure(NamedTuple):
    title: str
    hint: str
    key: list[str]
    svg: str


def to_html(found: Choices, *, labels: Labels = ()) -> str:
    """Return one HTML file that works offline."""
    return render(
        "choices",
        facts=_facts(found),
        found=found,
        title=f"Multiple choice: {found.dataset}" if found.scored else f"Contrast: {found.dataset}",
        figures=[_overlap(found), _counts(found), *_lens(found)],
        layers=[_layer(found, index, labels) for index in range(len(found.dictionaries))],
        examples=[
            (site, [_example(found, each, labels) for each in group])
            for site, group in groupby(found.examples, key=lambda each: found.dictionaries[each.dictionary].site)
        ],
        cause=_cause(found, labels),
        notes=[*_notes(found), *found.warnings],
        one_line=visible.one_line,
        colour=colour,
        data=browser(found, labels),
    )


def _notes(found: Choices) -> list[str]:
    said = []
    first = found.first_text
    same = sum(len(set(found.last_token_id[a:b].tolist())) == 1 for a, b in pairwise(first))
    if found.token == "last" and same:
        said.append(
            f"In {same} of {len(found.items)} items both sides end in one token: there, features of the last token can "
            "differ by the context alone."
            + (" In the others they differ by the token to begin with." if same < len(found.items) else "")
        )
    if found.skipped:
        shown = "; ".join(f"{each.id}: {each.reason}" for each in found.skipped[:5])
        more = f" and {len(found.skipped) - 5} more" if len(found.skipped) > 5 else ""
        said.append(f"{len(found.skipped)} rows were left out: {shown}{more}")
    return said


def _overlap(found: Choices) -> _Figure:
    errors = [each.standard_error for each in found.overlaps]
    none = [0.0] * len(errors)
    series: dict[str, tuple[list[float | None], list[float]]] = {
        "right and wrong": ([each.right_wrong for each in found.overlaps], errors),
        "right, and right of the next item": ([each.right_right for each in found.overlaps], none),
    }
    others: list[float | None] = [each.other_last for each in found.overlaps]
    if len(_kinds(found)) == 1 and any(each is not None for each in others):
        series["right and wrong with one last token"] = ([each.same_last for each in found.overlaps], none)
        series["with different ones"] = (others, none)
    groups = {
        name: points
        for said, (values, halves) in series.items()
        for name, points in _by_kind(found, said, values, halves).items()
    }
    return _Figure(
        "What right and wrong share",
        "Features that fire for both, over those that fire for either; mean over items ± standard error.",
        list(groups),
        plot(list(groups.values()), "shared", top=1.0),
    )


def _counts(found: Choices) -> _Figure:
    kinds: dict[str, list[float | None]] = {
        "q at most 0.05": [each.significant for each in found.tests],
        "confirmed on the other half, and by both controls": [each.confirmed for each in found.tests],
    }
    groups = {
        name: points
        for said, values in kinds.items()
        for name, points in _by_kind(found, said, values, [0.0] * len(values)).items()
    }
    top = max(1.0, *(1.05 * point.value for points in groups.values() for point in points))
    return _Figure(
        "Features that tell right from wrong",
        "Tested on one half of the items, over every feature that is active in ten of them; false discovery rate 5 %.",
        list(groups),
        plot(list(groups.values()), "features", top=top),
    )


def _kinds(found: Choices) -> list[str]:
    return list(dict.fromkeys(info.site.partition(".")[0] for info in found.dictionaries))


def _by_kind(
    found: Choices, name: str, values: Sequence[float | None], errors: Sequence[float]
) -> dict[str, list[Point]]:
    """A line for each kind of site: two in one would go up and down between them."""
    kinds = _kinds(found)
    groups: dict[str, list[Point]] = {}
    for info, value, error in zip(found.dictionaries, values, errors, strict=True):
        said = name if len(kinds) == 1 else f"{info.site.partition('.')[0]}: {name}"
        if value is not None:
            groups.setdefault(said, []).append(Point(info.layer, value, error, f"{info.site}, {name}"))
    return groups


def _lens(found: Choices) -> list[_Figure]:
    lens = found.lens
    if lens is None:
        return []
    n = lens.margins.shape[1]
    error = lens.margins.std(axis=1, ddof=1) / math.sqrt(n) if n > 1 else np.zeros(len(lens.layers))
    right = (lens.margins > 0).mean(axis=1)
    margins = [
        Point(layer, float(mean), float(half), f"layer {layer}")
        for layer, mean, half in zip(lens.layers, lens.margins.mean(axis=1), error, strict=True)
    ]
    shares = [
        Point(layer, float(share), math.sqrt(share * (1 - share) / n), f"layer {layer}")
        for layer, share in zip(lens.layers, right, strict=True)
    ]
    through = f"Through the model's own norm and head (logit lens), over the scored tokens of {n} items"
    return [
        _Figure(
            "Margin, if the model stopped there",
            f"Right less best wrong, in nats; mean ± standard error. {through}.",
            ["margin"],
            plot([margins], "margin"),
        ),
        _Figure(
            "Right answers, if the model stopped there",
            f"Share of items with a margin above 0, ± standard error. {through}.",
            ["share"],
            plot([shares], "share right", top=1.0),
        ),
    ]


def _layer(found: Choices, index: int, labels: Labels) -> dict[str, Any]:
    info, tests = found.dictionaries[index], found.tests[index]
    shown = sorted(tests.features, key=lambda test: (not test.confirmed, test.p))[:_LISTED]
    link = neuronpedia_page(info)
    return {
        "site": info.site,
        "name": f"{info.release}/{info.category}/{info.id}",
        "tested": tests.tested,
        "significant": tests.significant,
        "confirmed": tests.confirmed,
        "rows": [_row(test, _label(labels, index, test.feature_id), link) for test in shown],
    }


def _row(test: FeatureTest, label: str, link: str | None) -> dict[str, Any]:
    return {
        "feature": test.feature_id,
        "label": label,
        "link": None if link is None else f"{link}{test.feature_id}",
        "confirmed": test.confirmed,
        "active": test.items,
        "right": visible.number(test.right),
        "wrong": visible.number(test.wrong),
        "z": f"{test.z:+.2f}",
        "ps": [_p(test.p), _p(test.q), _p(test.p_length), _p(test.p_same_last), _p(test.held_out_p)],
        "held_out": f"{'+' if test.held_out_difference >= 0 else '-'}{visible.number(abs(test.held_out_difference))}",
    }


def _p(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.2f}" if value >= 0.1 else f"{value:.3f}" if value >= 0.001 else f"{value:.0e}"


def _example(found: Choices, example: Example, labels: Labels) -> dict[str, Any]:
    item = found.items[example.item]
    top = max((token.activation for text in example.texts for token in text), default=0.0)
    texts = [
        {
            "right": choice == item.gold,
            "tokens": [
                {
                    "text": _drawn(token.text),
                    "shade": math.ceil(_SHADES * token.activation / top) if top > 0 and token.activation > 0 else 0,
                    "scored": token.scored,
                    "tip": f"{visible.inline(token.text)} {visible.number(token.activation)}",
                }
                for token in text
            ],
        }
        for choice, text in enumerate(example.texts)
    ]
    return {
        "site": found.dictionaries[example.dictionary].site,
        "feature": example.feature_id,
        "label": _label(labels, example.dictionary, example.feature_id),
        "id": item.id,
        "top": visible.number(top),
        "texts": sorted(texts, key=lambda text: not text["right"]),
    }


def _label(labels: Labels, index: int, feature: int) -> str:
    return visible.one_line(label_text(labels, index, feature))


def _drawn(text: str) -> str:
    signs = {"newline": "↵", "tab": "⇥"}
    return "".join(signs.get(kind, part) for kind, part in visible.parts(text)) or "∅"


def _cause(found: Choices, labels: Labels) -> dict[str, Any] | None:
    cause = found.cause
    if cause is None:
        return None
    together = [("all at once", cause.together)] if len(cause.together.features) > 1 else []
    rows = [*together, *((_feature_name(found, each, labels), each) for each in cause.alone)]
    return {
        "half": cause.items,
        "accuracy": f"{100 * cause.accuracy:.1f}",
        "margin": f"{cause.margin:.3f}",
        "rows": [_effect(name, each, cause.accuracy) for name, each in rows],
    }


def _feature_name(found: Choices, effect: CauseEffect, labels: Labels) -> str:
    dictionary, feature = effect.features[0]
    label = _label(labels, dictionary, feature)
    return f"{found.dictionaries[dictionary].site}, feature {feature}" + (f": {label}" if label else "")


def _effect(name: str, effect: CauseEffect, accuracy: float) -> dict[str, str]:
    drawn = effect.random_margin_change
    return {
        "name": name,
        "margin": f"{effect.margin_change:+.2g} ± {effect.margin_error:.2g}",
        "accuracy": f"{100 * (effect.accuracy - accuracy):+.1f}",
        "random": f"{np.mean(drawn):+.2g} ({min(drawn):+.2g} to {max(drawn):+.2g})",
        "random_accuracy": f"{100 * (np.mean(effect.random_accuracy) - accuracy):+.1f}",
        "p": _p(effect.p),
    }


def _facts(found: Choices) -> list[tuple[str, str]]:
    made = found.provenance
    versions = f"gemlens {made.gemlens_version}, torch {made.torch_version}, transformers {made.transformers_version}"
    names = dict.fromkeys(f"{info.release}/{info.category}" for info in found.dictionaries)
    return [
        ("Model", f"{found.model_id} @ {made.model_revision}" if made.model_revision else found.model_id),
        ("Dictionaries", ", ".join(names)),
        ("Numbers", f"{made.dtype} on {made.device}, seed {made.seed}"),
        ("Made with", versions),
    ]
