"""A ``QualityCard`` in the terminal and as JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from itertools import groupby
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

from gemlens.records import SCHEMA_VERSION, Fidelity, QualityCard, SetFidelity, series_name, width_name
from gemlens.report.fidelity import to_dict as figures_to_dict
from gemlens.report.fidelity import wrong

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["COLUMNS", "Series", "cell", "render", "series", "set_lines", "to_dict", "to_json"]


class Series(NamedTuple):
    """Dictionaries of one name but for the layer, or the layers of a CLT."""

    name: str
    kind: str
    """SAE, transcoder or CLT."""
    members: tuple[Fidelity, ...]
    """By layer."""

    @property
    def about(self) -> str:
        first = self.members[0]
        reads, writes = (site.partition(".")[0] for site in (first.dictionary.site, first.writes))
        many = "s" if len(self.members) > 1 and self.kind != "CLT" else ""
        return f"{self.kind}{many} {f'from {reads} to {writes}' if reads != writes else f'of {reads}'}"


def series(card: QualityCard) -> list[Series]:
    """In the card's order."""
    groups = groupby(card.dictionaries, lambda figures: series_name(_path(figures)))
    return [Series(name, _kind(members), members) for name, members in ((name, tuple(each)) for name, each in groups)]


def _kind(members: tuple[Fidelity, ...]) -> str:
    if members[0].writes == members[0].dictionary.site:
        return "SAE"
    return "CLT" if len(members) > len({_path(each) for each in members}) else "transcoder"


def _path(figures: Fidelity) -> str:
    return figures.dictionary.path or figures.dictionary.id


def to_dict(card: QualityCard) -> dict[str, Any]:
    """The record as plain values, the derived figures included."""
    return {
        "schema_version": SCHEMA_VERSION,
        "release": card.release,
        "model_id": card.model_id,
        "texts": list(card.texts),
        "dictionaries": [figures_to_dict(figures) for figures in card.dictionaries],
        "sets": [dataclasses.asdict(each) for each in card.sets],
        "failed": [{"path": path, "reason": reason} for path, reason in card.failed],
        "provenance": dataclasses.asdict(card.provenance),
    }


def to_json(card: QualityCard) -> str:
    return json.dumps(to_dict(card), indent=2) + "\n"


class Column(NamedTuple):
    name: str
    header: str
    """The same in two short lines."""
    value: Callable[[Fidelity], float | None]
    say: Callable[[float], str]


COLUMNS = (
    Column("L0", "\nL0", lambda figures: figures.l0, "{:.1f}".format),
    Column("FVU", "\nFVU", lambda figures: figures.fvu, "{:.3f}".format),
    Column("variance explained", "variance\nexplained", lambda figures: figures.variance_explained, "{:.3f}".format),
    Column("nats above clean", "nats\nabove", lambda figures: figures.spliced.above_clean, "{:.3f}".format),
    Column("recovered of mean", "recov.\nof mean", lambda figures: figures.ce_recovered_mean, "{:.1%}".format),
    Column("recovered of zero", "recov.\nof zero", lambda figures: figures.ce_recovered, "{:.1%}".format),
    Column("dead", "\ndead", lambda figures: figures.dead, "{:.1%}".format),
)
"""Of a table with a line a dictionary, beside its site and width."""
_MEANING = "nats above clean; recovered: the share of those that replacing the site by its mean, or by zero, costs"


def render(card: QualityCard, console: Console) -> None:
    """Print a line a dictionary, the median of each series, all transcoders at once, then what is wrong with any."""
    from rich.text import Text

    console.print()
    console.print(Text(f"{card.release} on {card.model_id}", style="bold"))
    for each in series(card):
        console.print(Text.assemble("\n", (each.name, "bold"), (f"  {each.about}", "dim")), soft_wrap=True)
        console.print(_table(each))
    for found in card.sets:
        first, *rest = set_lines(found)
        console.print(Text(f"\n{first}", style="bold"), soft_wrap=True)
        for line in rest:
            console.print(Text(f"  {line}"))
    any_of = card.dictionaries[0]
    said = f"on {any_of.tokens_measured:,} tokens, cross-entropy on {any_of.ce_tokens:,}; {_MEANING}"
    console.print(Text(f"\n{said}", style="dim"))
    for figures in card.dictionaries:
        for said in wrong(figures):
            console.print(Text(f"• {_path(figures)}: {said}"))
    for warning in dict.fromkeys(warning for figures in card.dictionaries for warning in figures.warnings):
        console.print(Text.assemble(("warning: ", "bold yellow"), warning))


def set_lines(found: SetFidelity) -> list[str]:
    """What is measured, then the figures, a line each."""
    cost = found.spliced
    return [
        f"{found.name}: all {len(found.layers)} MLPs replaced at once",
        f"KL to the clean model {found.kl:.3f} ± {found.kl_standard_error:.3f} nats a token",
        f"the same likeliest token at {found.agreement:.1%} of {found.tokens:,}",
        f"{cost.above_clean:.3f} ± {cost.standard_error:.3f} nats above clean, which is {found.ce_clean:.3f}",
        f"with the errors of a clean pass, no logit is off by more than {found.logit_error:.1e}",
    ]


def _table(of: Series) -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False, header_style="dim")
    table.add_column("\nsite", min_width=13, no_wrap=True)
    table.add_column("\nwidth", justify="right", min_width=5)
    columns = [column for column in COLUMNS if any(column.value(each) is not None for each in of.members)]
    for column in columns:
        table.add_column(column.header, justify="right", no_wrap=True)
    for each in of.members:
        table.add_row(
            each.dictionary.site, width_name(each.dictionary.width), *(cell(column, [each]) for column in columns)
        )
    if len(of.members) > 2:
        table.add_row("median", "", *(cell(column, of.members) for column in columns), style="dim")
    return table


def cell(column: Column, members: Sequence[Fidelity]) -> str:
    """The median over ``members``; empty where none has the figure."""
    values = [value for each in members if (value := column.value(each)) is not None]
    return column.say(median(values)) if values else ""
