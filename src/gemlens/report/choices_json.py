"""``Choices`` as the JSON of one object an item, and what made it and what was found as a file beside it.

The fields are described in ``docs/choices.md``. Layers are keys: the layer's number for the first kind of site, as
``mlp_in.12`` for others.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from gemlens.records import SCHEMA_VERSION
from gemlens.records.choices import Choices
from gemlens.report.visible import escape_surrogates

__all__ = ["layer_keys", "strongest_of", "summary_json", "to_json"]

Top = list[tuple[int, float, int]]
"""Feature, activation, the token's place among the scored ones; strongest first."""


def to_json(found: Choices) -> str:
    """Return the list of items, as UTF-8 can hold it."""
    keys = layer_keys(found)
    tops = [strongest_of(found, index) for index in range(len(found.dictionaries))]
    # A line an item: hundreds of features each, which nobody reads one a line.
    rows = (_line(_item(found, index, keys, tops)) for index in range(len(found.items)))
    return "[\n" + ",\n".join(rows) + "\n]\n"


def layer_keys(found: Choices) -> list[str]:
    """What each dictionary's layer is called: its number if its site is of the first dictionary's kind, else the site.

    Two dictionaries of one site are told apart by their ids.
    """
    first = found.dictionaries[0].site.partition(".")[0]
    keys = []
    for info in found.dictionaries:
        key = str(info.layer) if info.site.partition(".")[0] == first else info.site
        taken = sum(other.site == info.site for other in found.dictionaries) > 1
        keys.append(f"{key} {info.id}" if taken else key)
    return keys


def strongest_of(found: Choices, dictionary: int) -> list[Top]:
    """For each text its ``top_k`` features of one dictionary; of several tokens, each feature at its strongest."""
    features = found.features[dictionary]
    rows = np.repeat(np.arange(len(features.indptr) - 1), np.diff(features.indptr))
    texts = found.row_text[rows]
    # By text, strongest first, then by id; of one feature at several tokens only the first stays.
    order = np.lexsort((features.ids, -features.values, texts))
    tops: list[Top] = [[] for _ in found.n_tokens]
    seen: list[set[int]] = [set() for _ in found.n_tokens]
    places = found.row_position[rows]
    columns = (texts[order], features.ids[order], features.values[order], places[order])
    for text, feature, value, place in zip(*(column.tolist() for column in columns), strict=True):
        if len(tops[text]) < found.top_k and feature not in seen[text]:
            seen[text].add(feature)
            tops[text].append((feature, float(value), place))
    return tops


def summary_json(found: Choices) -> str:
    """Return all that is not of one item: provenance, accuracy, overlaps, tests, lens, causes, skipped rows."""
    lens = found.lens
    return _text(
        {
            "schema_version": SCHEMA_VERSION,
            "model_id": found.model_id,
            "dataset": found.dataset,
            "token": found.token,
            "top_k": found.top_k,
            "items": len(found.items),
            "dictionaries": [dataclasses.asdict(info) for info in found.dictionaries],
            "accuracy": [dataclasses.asdict(each) | {"share": each.share} for each in found.accuracies],
            "overlap": _by_dictionary(found, found.overlaps),
            "tests": _by_dictionary(found, found.tests),
            "first_half": [item.id for item, first in zip(found.items, found.first_half, strict=True) if first],
            "margin_lens": None
            if lens is None
            else {
                "layers": list(lens.layers),
                "example_ids": [found.items[index].id for index in lens.items],
                "margins": [[_number(value) for value in row] for row in lens.margins.tolist()],
            },
            "cause": None if found.cause is None else dataclasses.asdict(found.cause),
            "skipped": [dataclasses.asdict(each) for each in found.skipped],
            "warnings": list(found.warnings),
            "provenance": dataclasses.asdict(found.provenance),
        }
    )


def _by_dictionary(found: Choices, values: Sequence[Any]) -> list[dict[str, Any]]:
    return [
        {"site": info.site} | dataclasses.asdict(value) for info, value in zip(found.dictionaries, values, strict=True)
    ]


def _item(found: Choices, index: int, keys: list[str], tops: list[list[Top]]) -> dict[str, Any]:
    item, start = found.items[index], int(found.first_text[index])
    details = [_details(found, start + choice, item.choices[choice], keys, tops) for choice in range(len(item.choices))]
    wrong = [each for choice, each in enumerate(details) if choice != item.gold]
    row: dict[str, Any] = {"example_id": item.id, "question": item.question}
    if found.scored:
        scores = found.log_likelihood[start : start + len(item.choices)]
        row["model_is_correct"] = int(scores.argmax()) == item.gold
    row["positive_solution_details"] = details[item.gold]
    if len(wrong) == 1:
        row["negative_solution_details"] = wrong[0]
    else:
        row["negative_solutions_details"] = wrong
    return row


def _details(found: Choices, text: int, said: str, keys: list[str], tops: list[list[Top]]) -> dict[str, Any]:
    row: dict[str, Any] = {"text": said}
    score = float(found.log_likelihood[text])
    if found.scored:
        row["log_likelihood"] = _number(score)
        row["log_likelihood_per_char"] = _number(score / max(len(said), 1))
    row["n_tokens"] = int(found.n_tokens[text])
    row["active_features_by_layer"] = {
        key: [_feature(found, dictionary, *top) for top in tops[dictionary][text]]
        for dictionary, key in enumerate(keys)
    }
    return row


def _feature(found: Choices, dictionary: int, feature: int, activation: float, place: int) -> dict[str, Any]:
    info = found.dictionaries[dictionary]
    row = {"feature_id": feature, "activation": _number(activation), "layer": info.layer, "site": info.site}
    return row | {"position": place} if found.token == "all" else row


def _number(value: float) -> float | None:
    """Seven digits hold a float32; JSON has no NaN and no infinity."""
    return float(f"{value:.7g}") if math.isfinite(value) else None


def _line(value: Any) -> str:
    return escape_surrogates(json.dumps(value, ensure_ascii=False, allow_nan=False))


def _text(value: Any) -> str:
    return escape_surrogates(json.dumps(value, ensure_ascii=False, allow_nan=False, indent=1)) + "\n"
