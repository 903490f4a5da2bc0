"""A feature's page in few bytes: what the report of an analysis says of a feature when a reader points at it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gemlens.records.feature import Example, ExampleToken, FeaturePage
from gemlens.report.feature_html import drawn, frequency, token_name
from gemlens.report.visible import number

__all__ = ["glances"]

_STRONGEST, _WEAKER = 3, 3
_BEFORE, _AFTER = 110, 70
"""Characters on either side of the token that fires."""
_TOKENS = 8


def glances(pages: Mapping[int, FeaturePage]) -> dict[str, Any]:
    """Feature -> how often it fires and how strongly, what it promotes and suppresses, a few examples."""
    return {str(feature): _glance(page) for feature, page in sorted(pages.items())}


def _glance(page: FeaturePage) -> dict[str, Any]:
    return {
        "fires": frequency(page),
        "max": number(page.max_activation) if page.max_activation else None,
        "promoted": [token_name(each) for each in page.promoted[:_TOKENS]],
        "suppressed": [token_name(each) for each in page.suppressed[:_TOKENS]],
        "examples": [_example(each) for each in _chosen(page)],
    }


def _chosen(page: FeaturePage) -> list[Example]:
    """The strongest, and one of each lower level."""
    weaker = [level.examples[0] for level in page.levels[1:] if level.examples]
    strongest = list(page.levels[0].examples) if page.levels else []
    return strongest[: _STRONGEST + _WEAKER - len(weaker)] + weaker


def _example(example: Example) -> list[str]:
    tokens, peak = example.tokens, example.peak
    return [
        number(example.activation),
        _text(tokens[:peak])[-_BEFORE:],
        _text(tokens[peak : peak + 1]) or tokens[peak].token,
        _text(tokens[peak + 1 :])[:_AFTER],
    ]


def _text(tokens: tuple[ExampleToken, ...]) -> str:
    return "".join(part for _, part in drawn(tokens))
