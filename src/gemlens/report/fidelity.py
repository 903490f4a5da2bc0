"""A ``Fidelity`` record in the terminal and as JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gemlens.records import Fidelity, LossWith

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["render", "to_dict", "to_json"]


def to_dict(figures: Fidelity) -> dict[str, Any]:
    """The record as plain values, the derived figures included."""
    return dataclasses.asdict(figures) | {
        "ce_recovered": figures.ce_recovered,
        "ce_recovered_mean": figures.ce_recovered_mean,
    }


def to_json(results: Sequence[Fidelity]) -> str:
    """A JSON list, one object a dictionary."""
    return json.dumps([to_dict(result) for result in results], indent=2) + "\n"


def render(figures: Fidelity, console: Console) -> None:
    """Print the figures, then what they mean."""
    from rich.table import Table
    from rich.text import Text

    info = figures.dictionary
    console.print()
    console.print(Text(f"{info.release}/{info.category}/{info.id} on {figures.model_id}", style="bold"))
    for warning in figures.warnings:
        console.print(Text.assemble(("warning: ", "bold yellow"), warning))
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim")
    table.add_column(justify="right")
    table.add_column(style="dim")
    for row in _rows(figures):
        table.add_row(*row)
    console.print(table)
    for sentence in figures.verdict:
        console.print(Text(f"• {sentence}"))


def _rows(figures: Fidelity) -> list[tuple[str, str, str]]:
    return [
        ("L0", f"{figures.l0:.1f}", f"of {figures.dictionary.width:,} features; {figures.l0_at_bos:,.0f} at BOS"),
        ("variance explained", f"{figures.variance_explained:.3f}", f"of {figures.writes}; FVU {figures.fvu:.3f}"),
        *_linear(figures),
        ("  without the 1 % largest norms", f"{figures.variance_explained_trimmed:.3f}", ""),
        (
            "  tutorial's formula",
            f"{figures.variance_explained_tutorial:.3f}",
            f"the mean alone scores {figures.variance_explained_tutorial_of_mean:.3f}",
        ),
        ("cosine", f"{figures.cosine:.3f}", ""),
        ("never fired", f"{figures.silent:.1%}", f"of the features, on {figures.tokens_measured:,} tokens"),
        *_dead(figures),
        ("CE clean", f"{figures.ce_clean:.3f}", f"nats, on {figures.ce_tokens:,} tokens"),
        ("CE spliced", f"{figures.spliced.ce:.3f}", _difference(figures.spliced)),
        ("CE mean-ablated", f"{figures.mean_ablated.ce:.3f}", _difference(figures.mean_ablated)),
        ("CE zeroed", f"{figures.zeroed.ce:.3f}", _difference(figures.zeroed)),
        ("recovered against the mean", f"{figures.ce_recovered_mean:.3f}", ""),
        ("recovered against zeroing", f"{figures.ce_recovered:.3f}", "flatters: the mean alone scores high here"),
    ]


def _linear(figures: Fidelity) -> list[tuple[str, str, str]]:
    name = "PCA" if figures.variance_explained_linear is None else "linear map"
    rows = [
        (f"  {name} of rank {figures.l0:.0f}", f"{figures.variance_explained_pca:.3f}", "fitted on the same tokens")
    ]
    if figures.variance_explained_linear is not None:
        rows.append(("  linear map of any rank", f"{figures.variance_explained_linear:.3f}", ""))
    return rows


def _dead(figures: Fidelity) -> list[tuple[str, str, str]]:
    if figures.dead is None:
        return []
    return [("dead", f"{figures.dead:.1%}", f"never fired on {figures.dead_tokens:,} tokens of the training mix")]


def _difference(loss: LossWith) -> str:
    return f"{loss.above_clean:+.3f} ± {loss.standard_error:.3f} to clean"
