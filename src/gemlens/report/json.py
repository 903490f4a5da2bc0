"""An ``Analysis`` as JSON (one object) and JSONL (one row a token); the fields are described in ``docs/formats.md``.

The flat fields ``sae_release``, ``sae_category``, ``sae_id`` and ``layer`` describe the first dictionary, so that a
reader who knows only one dictionary never has to look at ``dictionaries``.
"""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

from gemlens.records import SCHEMA_VERSION, Analysis, FeatureActivation, TokenRecord
from gemlens.records.labels import Label
from gemlens.report.label_fields import label_dict
from gemlens.report.visible import escape_surrogates

__all__ = ["to_dict", "to_json", "to_jsonl"]


def to_dict(analysis: Analysis) -> dict[str, Any]:
    """Return the record as plain dicts, lists, strings and finite numbers, keys in the order of the file."""
    first = analysis.dictionaries[0]
    return {
        "schema_version": SCHEMA_VERSION,
        "prompt": analysis.prompt,
        "system": analysis.system,
        "prompt_text": analysis.prompt_text,
        "model_id": analysis.model_id,
        "sae_release": first.release,
        "sae_category": first.category,
        "sae_id": first.id,
        "layer": first.layer,
        "top_k": analysis.top_k,
        "max_new_tokens": analysis.max_new_tokens,
        "dictionaries": [dataclasses.asdict(dictionary) for dictionary in analysis.dictionaries],
        "tokens": [_token(analysis, token) for token in analysis.tokens],
        "labels": [label_dict(k, label) for k, label in _named(analysis)],
        "warnings": list(analysis.warnings),
        "provenance": dataclasses.asdict(analysis.provenance),
    }


def to_json(analysis: Analysis) -> str:
    """Return the whole record as indented JSON that every UTF-8 file can hold."""
    return escape_surrogates(json.dumps(to_dict(analysis), ensure_ascii=False, allow_nan=False, indent=2)) + "\n"


def to_jsonl(analysis: Analysis, *, prompt_index: int | None = None) -> str:
    """Return one line a token, each complete in itself: rows of many prompts can be concatenated and filtered.

    ``prompt_index`` tells them apart again.
    """
    first = analysis.dictionaries[0]
    shared: dict[str, Any] = {} if prompt_index is None else {"prompt_index": prompt_index}
    shared |= {
        "model_id": analysis.model_id,
        "sae_release": first.release,
        "sae_category": first.category,
        "sae_id": first.id,
        "layer": first.layer,
        "top_k": analysis.top_k,
    }
    if len(analysis.dictionaries) > 1:
        shared["dictionaries"] = [f"{d.release}/{d.category}/{d.id}" for d in analysis.dictionaries]
    rows = (
        json.dumps(shared | _token(analysis, token), ensure_ascii=False, allow_nan=False) for token in analysis.tokens
    )
    return "".join(escape_surrogates(row) + "\n" for row in rows)


def _token(analysis: Analysis, token: TokenRecord) -> dict[str, Any]:
    return {
        "position": token.position,
        "token_id": token.token_id,
        "token": token.token,
        "text": token.text,
        "is_generated": token.is_generated,
        "is_special": token.is_special,
        "l0": token.l0,
        "features": [_feature(analysis, feature) for feature in token.features],
    }


def _feature(analysis: Analysis, feature: FeatureActivation) -> dict[str, Any]:
    # JSON has no NaN and no infinity; null keeps the file readable and the fault visible.
    activation = float(feature.activation)
    row: dict[str, Any] = {
        "feature_id": feature.feature_id,
        "activation": activation if math.isfinite(activation) else None,
    }
    if feature.dictionary:
        row["dictionary"] = feature.dictionary
    if label := analysis.label_of(feature.dictionary, feature.feature_id):
        row["label"] = label.shown
    return row


def _named(analysis: Analysis) -> list[tuple[int, Label]]:
    """Labels of the features that are listed, by dictionary and feature."""
    listed = sorted({(each.dictionary, each.feature_id) for token in analysis.tokens for each in token.features})
    return [(k, label) for k, feature in listed if (label := analysis.label_of(k, feature))]
