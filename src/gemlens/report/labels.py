"""Labels in the terminal: what a search found, and one feature's evidence for whoever labels it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gemlens.records.labels import Context, Counts, Label, PhraseFeature
from gemlens.report.table import plain
from gemlens.report.visible import inline, number

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

__all__ = ["render_contexts", "render_labels", "render_phrase", "said_of"]

_BEFORE, _AFTER = 12, 6


def render_labels(labels: Sequence[Label], console: Console) -> None:
    """One row a label, under the dictionary that it belongs to."""
    from rich.text import Text

    for dictionary in dict.fromkeys(label.dictionary for label in labels):
        console.print()
        console.print(Text(plain(dictionary, console), style="dim"))
        table = _table()
        for header, justify in (("feature", "right"), ("label", "left"), ("source", "left"), ("AUC", "right")):
            table.add_column(header, justify=justify, overflow="fold")  # type: ignore[arg-type]
        for label in labels:
            if label.dictionary == dictionary:
                score = f"{label.score.auc:.2f}" if label.score else ""
                source = label.model if label.model and label.source != "neuronpedia" else label.source
                shown = Text(plain(label.shown, console))
                if label.polysemantic:
                    shown.append(" (several meanings)", style="dim")
                table.add_row(str(label.feature), shown, Text(plain(source, console), style="dim"), score)
        console.print(table)


def render_phrase(features: Sequence[PhraseFeature], console: Console) -> None:
    """Features that a phrase leads to, those of each dictionary together."""
    from rich.text import Text

    for dictionary in dict.fromkeys(each.dictionary for each in features):
        console.print()
        console.print(Text(plain(dictionary, console), style="dim"))
        table = _table()
        columns = ("feature", "right"), ("fires on", "right"), ("in general", "right"), ("max", "right")
        for header, justify in (*columns, ("strongest on", "left"), ("label", "left")):
            table.add_column(header, justify=justify, overflow="fold")  # type: ignore[arg-type]
        for each in features:
            if each.dictionary != dictionary:
                continue
            fires = f"{each.fired} of {each.tokens}" if each.fired else "its label only"
            rate = "" if each.base_rate is None else f"{each.base_rate:.3%}"
            peak = number(each.max_activation) if each.fired else ""
            strongest = Text(plain(inline(each.strongest_on), console))
            label = Text(plain(each.label.shown, console) if each.label else "", style="bold" if each.by_label else "")
            table.add_row(str(each.feature), fires, rate, peak, strongest, label)
        console.print(table)


def render_contexts(contexts: Sequence[Context], console: Console) -> None:
    """Passages, strongest first, the tokens on which the feature fires in brackets and coloured."""
    from rich.text import Text

    for count, context in enumerate(contexts, 1):
        peak = context.peak
        first, last = max(0, peak - _BEFORE), peak + _AFTER + 1
        line = Text(f"{count:3}  {number(max(context.activations)):>6}  ", style="dim")
        for token, activation in zip(context.tokens[first:last], context.activations[first:last], strict=True):
            line.append(_token(token, activation, console))
        console.print(line, overflow="fold")


def said_of(counts: Counts, what: str) -> str:
    """One line: ``12,034 features with a label, 4,346 without, 4 failed``."""
    parts = [f"{counts.found:,} features with {what}", f"{counts.missing:,} without", f"{counts.failed:,} failed"]
    return ", ".join(parts) + (f"; {counts.labels:,} labels in all" if counts.labels > counts.found else "")


def _token(token: str, activation: float, console: Console) -> Text:
    from rich.text import Text

    shown = plain(token.replace("\n", "↵").replace("\t", "⇥"), console) if token.strip() else inline(token)
    # `plain` keeps words, not the space before them.
    shown = (" " if token[:1] == " " and not shown.startswith((" ", "·")) else "") + shown
    return Text(f"[{shown}]" if activation > 0 else shown, style="bold yellow" if activation > 0 else "")


def _table() -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    return Table(box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False, show_edge=False, header_style="dim")
