"""A ``Steering`` in the terminal, as JSON and as JSONL (one row a strength)."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

from gemlens.records import SCHEMA_VERSION
from gemlens.records.edits import Dose, Steering
from gemlens.records.labels import label_text
from gemlens.report.label_fields import label_dicts
from gemlens.report.table import plain
from gemlens.report.visible import escape_surrogates, number, one_line

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["labels_of", "render", "subject", "to_dict", "to_json", "to_jsonl"]


def subject(steering: Steering) -> str:
    """What is steered, in words."""
    if steering.dictionary is None:
        return f"{steering.direction} at {steering.site}"
    many = "features" if len(steering.features) > 1 else "feature"
    return f"{many} {', '.join(map(str, steering.features))} of {steering.dictionary.id}, written at {steering.site}"


def labels_of(steering: Steering) -> list[tuple[int, str]]:
    """Of the features that have one, on one line each."""
    named = ((feature, label_text(steering.labels, 0, feature)) for feature in steering.features)
    return [(feature, one_line(label)) for feature, label in named if label]


def to_dict(steering: Steering) -> dict[str, Any]:
    """The record as plain values, the derived figures included."""
    found = {"schema_version": SCHEMA_VERSION} | dataclasses.asdict(steering)
    doses = [_dose(dose) for dose in steering.doses]
    return found | {"unit": steering.unit, "doses": doses, "labels": label_dicts(steering.labels)}


def to_json(steering: Steering) -> str:
    return escape_surrogates(json.dumps(to_dict(steering), ensure_ascii=False, allow_nan=False, indent=2)) + "\n"


def to_jsonl(steering: Steering) -> str:
    """Return one line a strength, each complete in itself."""
    info = steering.dictionary
    shared = {
        "model_id": steering.model_id,
        "prompt": steering.prompt,
        "dictionary": None if info is None else f"{info.release}/{info.category}/{info.id}",
        "features": list(steering.features),
        "labels": dict(labels_of(steering)),
        "direction": steering.direction,
        "site": steering.site,
        "mode": steering.mode,
        "relative_to": steering.relative_to,
    }
    rows = (json.dumps(shared | _dose(dose), ensure_ascii=False, allow_nan=False) for dose in steering.doses)
    return "".join(escape_surrogates(row) + "\n" for row in rows)


def _dose(dose: Dose) -> dict[str, Any]:
    figures = {"strength": dose.strength, "text": dose.text, "perplexity": dose.perplexity, "kl": dose.kl}
    return figures | {"tokens": [dataclasses.asdict(token) for token in dose.tokens]}


def render(steering: Steering, console: Console) -> None:
    """Print the completions side by side, each with its perplexity under the unsteered model and its KL."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    console.print()
    console.print(Text(plain(steering.prompt, console), style="bold"), no_wrap=True, overflow="ellipsis")
    said = f"{subject(steering)}; {steering.mode}, strength in {steering.unit}; {steering.positions}"
    console.print(Text(plain(said, console), style="dim"))
    for feature, label in labels_of(steering):
        console.print(Text.assemble((f"{feature}: ", "dim"), plain(label, console)))
    for warning in steering.warnings:
        console.print(Text.assemble(("warning: ", "bold yellow"), plain(warning, console)))
    table = Table(box=SIMPLE_HEAD, padding=(0, 2, 0, 0), pad_edge=False, show_edge=False, header_style="dim")
    for header in ("strength", "perplexity", "KL"):
        table.add_column(header, justify="right", no_wrap=True, vertical="top")
    table.add_column("the model adds", overflow="fold")
    for dose in steering.doses:
        table.add_row(f"{dose.strength:g}", number(dose.perplexity), f"{dose.kl:.3f}", Text(plain(dose.text, console)))
    console.print(table)
    console.print(Text("perplexity under the unsteered model; KL(steered || unsteered) in nats a token", style="dim"))
