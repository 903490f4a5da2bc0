"""The page of one analysis: the text shaded by activation, each token's features, and the strongest of them all.

The template writes everything that can be read without a script; the numbers that the script shades by go along as
JSON: for each dictionary the peak of every token and the columns of every feature that the page names.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import Any

import numpy as np

from gemlens.records import Analysis, TokenRecord
from gemlens.records.feature import FeaturePage
from gemlens.report import visible
from gemlens.report.glance import glances
from gemlens.report.links import neuronpedia_page
from gemlens.report.page import render
from gemlens.report.summary import columns, l0, peaks, scale, strongest
from gemlens.report.visible import one_line

__all__ = ["to_html"]

STRONGEST = 20

Labels = Mapping[int, Mapping[int, str]]
Evidence = Mapping[int, Mapping[int, FeaturePage]]


def to_html(analysis: Analysis, *, labels: Labels | None = None, evidence: Evidence | None = None) -> str:
    """Return one HTML file that works offline.

    Args:
        labels: dictionary index -> feature -> what it is called, instead of the record's own.
        evidence: dictionary index -> feature -> its page (``evidence_of``): what else a feature fires on, and what it
            promotes, is then shown when a reader points at it or chooses it.
    """
    known = evidence or {}
    named = labels or {
        k: {feature: one_line(label.shown) for feature, label in of_one.items()}
        for k, of_one in enumerate(analysis.labels)
    }
    return render(
        "analysis",
        analysis=analysis,
        runs=_runs(analysis.tokens),
        facts=_provenance(analysis),
        generated=sum(token.is_generated for token in analysis.tokens),
        data={
            "tokens": [_token(token) for token in analysis.tokens],
            "dictionaries": [
                _dictionary(analysis, k, named.get(k, {}), known.get(k, {})) for k in range(len(analysis.dictionaries))
            ],
        },
        has_evidence=any(known.values()),
        also=("glance",) if any(known.values()) else (),
    )


def _runs(tokens: Iterable[TokenRecord]) -> list[dict[str, Any]]:
    """Group tokens into stretches of prompt and of generated text."""
    return [
        {"generated": generated, "tokens": [_cell(token) for token in run]}
        for generated, run in groupby(tokens, key=lambda token: token.is_generated)
    ]


def _cell(token: TokenRecord) -> dict[str, Any]:
    """What the template draws: parts of the text, or the dimmed piece of a token that has no text of its own."""
    classes = ["token"]
    if token.l0 is None:
        classes.append("unread")
    if token.is_special:
        classes.append("special")
    if token.text.isspace():
        classes.append("blank")
    parts: list[tuple[str, str]] = [*visible.parts(token.text)] or [("piece", visible.token_name(token))]
    label = visible.token_name(token) if token.l0 is not None else f"{visible.token_name(token)}, not read"
    return {"classes": " ".join(classes), "parts": parts, "label": label}


def _token(token: TokenRecord) -> dict[str, Any]:
    return {
        "name": visible.token_name(token),
        "piece": visible.inline(token.token),
        "id": token.token_id,
        "position": token.position,
        "read": token.l0 is not None,
    }


def _dictionary(
    analysis: Analysis, k: int, labels: Mapping[int, str], evidence: Mapping[int, FeaturePage]
) -> dict[str, Any]:
    dictionary, active = analysis.dictionaries[k], analysis.activations[k]
    tops = [[f for f in token.features if f.dictionary == k] for token in analysis.tokens]
    summary = strongest(analysis, k, STRONGEST)
    named = {f.feature_id for top in tops for f in top} | {s.feature_id for s in summary}
    return {
        "site": dictionary.site,
        "link": neuronpedia_page(dictionary),
        "l0": l0(analysis, k),
        "peak": _numbers(peaks(active)),
        # The top of the colour scale; control tokens, which may be above it, get the full shade.
        "scale": _number(scale(analysis, k)),
        "top": [[[f.feature_id, _number(f.activation)] for f in top] for top in tops],
        "columns": {
            str(feature): [tokens.tolist(), _numbers(values)]
            for feature, (tokens, values) in columns(active, named).items()
        },
        "strongest": [
            {
                "id": s.feature_id,
                "max": _number(s.max_activation),
                "mean": _number(s.mean_activation),
                "token": s.token,
                "tokens": s.active_tokens,
            }
            for s in summary
        ],
        "labels": {str(feature): labels[feature] for feature in sorted(named) if labels.get(feature)},
        "evidence": glances({feature: page for feature, page in evidence.items() if feature in named}),
    }


def _number(value: float) -> float | None:
    """Four significant digits: what a shade, a bar and a printed activation need, in half the bytes."""
    return float(f"{value:.4g}") if math.isfinite(value) else None


def _numbers(values: np.ndarray) -> list[float | None]:
    return [_number(value) for value in values.tolist()]


def _provenance(analysis: Analysis) -> list[tuple[str, str]]:
    made = analysis.provenance
    facts = [("Model", _at(analysis.model_id, made.model_revision))]
    for dictionary in analysis.dictionaries:
        name = f"{dictionary.release}/{dictionary.category}/{dictionary.id}"
        facts.append(("Dictionary", _at(name, dictionary.revision)))
    if analysis.max_new_tokens:
        sampled = f"temperature {made.temperature:g}" if made.temperature is not None else "greedy"
        if made.temperature is not None and made.top_p is not None:
            sampled += f", top-p {made.top_p:g}"
        facts.append(("Decoding", f"{sampled}, at most {analysis.max_new_tokens} new tokens, seed {made.seed}"))
    versions = f"gemlens {made.gemlens_version}, torch {made.torch_version}, transformers {made.transformers_version}"
    return [
        *facts,
        ("Numbers", f"{made.dtype} on {made.device}"),
        ("Made with", versions),
        ("Created", made.created),
    ]


def _at(name: str, revision: str | None) -> str:
    return f"{name} @ {revision}" if revision else name
