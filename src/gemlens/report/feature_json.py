"""``FeaturePage`` as JSON, one object or one line a feature; the fields are described in ``docs/formats.md``."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

from gemlens.records import SCHEMA_VERSION
from gemlens.records.feature import FeaturePage
from gemlens.report.visible import escape_surrogates

__all__ = ["feature_to_dict", "feature_to_json", "feature_to_jsonl"]


def feature_to_dict(page: FeaturePage) -> dict[str, Any]:
    """Return the record as plain dicts, lists, strings and finite numbers, keys in the order of the file."""
    return {"schema_version": SCHEMA_VERSION} | {
        field.name: _plain(getattr(page, field.name)) for field in dataclasses.fields(page)
    }


def feature_to_json(page: FeaturePage) -> str:
    """Return the whole record as indented JSON that every UTF-8 file can hold."""
    return escape_surrogates(json.dumps(feature_to_dict(page), ensure_ascii=False, allow_nan=False, indent=1)) + "\n"


def feature_to_jsonl(page: FeaturePage) -> str:
    """Return it on one line."""
    return escape_surrogates(json.dumps(feature_to_dict(page), ensure_ascii=False, allow_nan=False)) + "\n"


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    # JSON has no NaN and no infinity; null keeps the file readable and the fault visible.
    return None if isinstance(value, float) and not math.isfinite(value) else value
