"""The pages of a ``Steering`` and of an ``Ablation``: what was changed, what came of it, and how strongly."""

from __future__ import annotations

from typing import Any, NamedTuple

from gemlens.records import DictionaryInfo, Provenance
from gemlens.records.edits import Ablation, Steering
from gemlens.records.labels import label_text
from gemlens.report import visible
from gemlens.report.ablation import heading, name_of
from gemlens.report.dose import dose_plot
from gemlens.report.links import neuronpedia_page
from gemlens.report.page import render
from gemlens.report.steering import labels_of, subject
from gemlens.report.visible import number, one_line

__all__ = ["ablation_to_html", "level", "steering_to_html"]

# Shades of KL in nats: each step is about three times the one before.
_STEPS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)


class _Cell(NamedTuple):
    """A token as the template draws it."""

    level: int
    parts: list[tuple[str, str]]
    said: str


def level(kl: float) -> int:
    """0 to 6, how dark a token is shaded."""
    return sum(kl >= step for step in _STEPS)


def steering_to_html(steering: Steering) -> str:
    """Return one HTML file that works offline."""
    neutral = 1.0 if steering.mode == "scale" else 0.0
    doses = [
        {
            "strength": f"{dose.strength:g}",
            "perplexity": number(dose.perplexity),
            "kl": f"{dose.kl:.3f}",
            "neutral": dose.strength == neutral,
            "cells": [
                _cell(token.text, token.token, token.kl, f"KL {token.kl:.3f}, surprise {token.loss:.2f} nats")
                for token in dose.tokens
            ],
        }
        for dose in steering.doses
    ]
    return render(
        "edits",
        facts=_facts(steering.model_id, steering.provenance, [steering.dictionary] if steering.dictionary else []),
        kind="steering",
        record=steering,
        title=steering.prompt,
        lead=f"Steering {subject(steering)}: {steering.mode}, strength in {steering.unit}; {steering.positions}.",
        links=_links(steering.dictionary, steering.features),
        labels=labels_of(steering),
        doses=doses,
        plots=[
            (
                "Perplexity",
                "Of each answer under the model without steering. Where it climbs, the answer stops being language.",
                dose_plot(steering, lambda dose: dose.perplexity, "perplexity"),
            ),
            (
                "KL(steered || unsteered)",
                "Nats a token, mean over the answer: how far steering moves what comes next.",
                dose_plot(steering, lambda dose: dose.kl, "KL"),
            ),
        ],
    )


def ablation_to_html(ablation: Ablation) -> str:
    """Return one HTML file that works offline."""
    most = max((max(each.before, each.after) for each in ablation.next_tokens), default=1.0) or 1.0
    features = [
        {
            "link": _link(ablation.dictionaries[each.dictionary], each.feature_id),
            "id": each.feature_id,
            "label": one_line(label_text(ablation.labels, each.dictionary, each.feature_id)),
            "site": ablation.dictionaries[each.dictionary].site,
            "max": number(each.max_activation) if each.position is not None else "silent",
            "on": "" if each.position is None else name_of(ablation.tokens[each.position]),
            "tokens": each.active_tokens,
            "kl": f"{each.kl:.4f}",
            "kl_last": f"{each.kl_last:.4f}",
            "loss": f"{each.loss_change:+.4f}",
        }
        for each in ablation.features
    ]
    return render(
        "edits",
        facts=_facts(ablation.model_id, ablation.provenance, list(ablation.dictionaries)),
        kind="ablation",
        record=ablation,
        title=ablation.prompt,
        lead=f"{heading(ablation)[0].upper()}{heading(ablation)[1:]}.",
        cells=[
            _cell(
                each.text,
                each.token,
                each.kl,
                f"KL {each.kl:.4f} nats" + ("" if each.edited else ", not edited"),
            )
            for each in ablation.tokens
        ],
        features=features,
        next_tokens=[
            {
                "text": visible.inline(each.text) or "∅",
                "before": f"{each.before:.4f}",
                "after": f"{each.after:.4f}",
                "widths": [f"{100 * share / most:.2f}" for share in (each.before, each.after)],
            }
            for each in ablation.next_tokens
        ],
    )


def _cell(text: str, piece: str, kl: float, said: str) -> _Cell:
    parts: list[tuple[str, str]] = [*visible.parts(text)] or [("piece", visible.inline(piece) or "∅")]
    return _Cell(level(kl), parts, said)


def _links(dictionary: DictionaryInfo | None, features: tuple[int, ...]) -> list[tuple[int, str]]:
    found = [(each, _link(dictionary, each)) for each in features] if dictionary is not None else []
    return [(feature, link) for feature, link in found if link is not None]


def _link(dictionary: DictionaryInfo | None, feature: int) -> str | None:
    page = None if dictionary is None else neuronpedia_page(dictionary)
    return None if page is None else f"{page}{feature}"


def _facts(model_id: str, made: Provenance, dictionaries: list[DictionaryInfo]) -> list[tuple[str, str]]:
    facts: list[tuple[str, Any]] = [("Model", _at(model_id, made.model_revision))]
    facts += [("Dictionary", _at(f"{d.release}/{d.category}/{d.id}", d.revision)) for d in dictionaries]
    sampled = "greedy" if made.temperature is None else f"temperature {made.temperature:g}, top-p {made.top_p:g}"
    versions = f"gemlens {made.gemlens_version}, torch {made.torch_version}, transformers {made.transformers_version}"
    return [
        *facts,
        ("Decoding", f"{sampled}, seed {made.seed}"),
        ("Numbers", f"{made.dtype} on {made.device}"),
        ("Made with", versions),
        ("Created", made.created),
    ]


def _at(name: str, revision: str | None) -> str:
    return f"{name} @ {revision}" if revision else name
