"""The terminal's view of ``Choices``: accuracy, then a line a layer with its most telling feature."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gemlens.records.choices import Choices
from gemlens.records.labels import Labels, label_text
from gemlens.report.table import plain
from gemlens.report.visible import number

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["render"]


def render(found: Choices, console: Console, *, labels: Labels = ()) -> None:
    """Print it; whatever comes from the user or the model is a ``Text``."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    for warning in found.warnings:
        console.print(Text.assemble(("warning: ", "bold yellow"), plain(warning, console)))
    if found.skipped:
        first = found.skipped[0]
        said = f"{len(found.skipped)} rows were left out; the first, {first.id}: {first.reason}"
        console.print(Text.assemble(("warning: ", "bold yellow"), plain(said, console)))
    what = "items" if found.scored else "pairs"
    console.print(Text(plain(f"{len(found.items)} {what} of {found.dataset}, {found.model_id}", console), style="bold"))
    for each in found.accuracies:
        share, low, high = (f"{100 * value:.1f}" for value in (each.share, each.low, each.high))
        console.print(f"{each.name:8} {share} %   95 %: {low} to {high}   {each.correct} of {each.items}")
    console.print()
    table = Table(box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False, show_edge=False, header_style="dim")
    table.add_column("site", no_wrap=True)
    for header in ("shared", "found", "confirmed", "feature", "right", "wrong", "q"):
        table.add_column(plain(header, console), justify="right", no_wrap=True)
    if labels:
        table.add_column("label", no_wrap=True, overflow="ellipsis")
    for index, (info, overlap, tests) in enumerate(zip(found.dictionaries, found.overlaps, found.tests, strict=True)):
        row = [f"{overlap.right_wrong:.2f}", str(tests.significant), str(tests.confirmed)]
        if tests.features:
            best = min(tests.features, key=lambda test: (not test.confirmed, test.p))
            row += [str(best.feature_id), number(best.right), number(best.wrong), f"{best.q:.2g}"]
            row += [label_text(labels, index, best.feature_id)]
        table.add_row(*(Text(plain(cell, console)) for cell in [info.site, *row][: len(table.columns)]))
    console.print(table)
    if found.cause is not None:
        effect = found.cause.together
        drawn = effect.random_margin_change
        console.print()
        console.print(
            f"ablating {len(effect.features)} on {found.cause.items} other {what}: margin {effect.margin_change:+.2g} "
            f"nats, {len(drawn)} random draws {min(drawn):+.2g} to {max(drawn):+.2g}, p {effect.p:.2g}; accuracy "
            f"{100 * found.cause.accuracy:.1f} to {100 * effect.accuracy:.1f} %"
        )
