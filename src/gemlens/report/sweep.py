"""A ``Sweep`` record in the terminal and as JSON."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from gemlens.records import SCHEMA_VERSION, Sweep, SweepPoint, width_name
from gemlens.report.fidelity import to_dict as figures_to_dict
from gemlens.report.fidelity import wrong

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["render", "to_dict", "to_json"]


def to_dict(sweep: Sweep) -> dict[str, Any]:
    """The record as plain values."""
    return {
        "schema_version": SCHEMA_VERSION,
        "release": sweep.release,
        "site": sweep.site,
        "model_id": sweep.model_id,
        "points": [
            {"l0_named": point.l0_named, "on_front": point.on_front} | figures_to_dict(point.figures)
            for point in sweep.points
        ],
        "failed": [{"path": path, "reason": reason} for path, reason in sweep.failed],
    }


def to_json(sweep: Sweep) -> str:
    return json.dumps(to_dict(sweep), indent=2) + "\n"


def render(sweep: Sweep, console: Console) -> None:
    """Print one line a dictionary, those on the Pareto front marked, then what is wrong with any."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    first = sweep.points[0].figures
    console.print()
    console.print(Text(f"{sweep.site} of {sweep.release} on {sweep.model_id}", style="bold"))
    table = Table(box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False, show_edge=False, header_style="dim")
    table.add_column("")
    for header in ("width", "L0\nnamed", "L0\nmeasured", "variance\nexplained", "nats above\nclean", "recovered"):
        table.add_column(header, justify="right", no_wrap=True)
    told_apart = len({(point.figures.dictionary.width, point.l0_named) for point in sweep.points}) == len(sweep.points)
    if not told_apart:
        table.add_column("dictionary", overflow="fold")
    for point in sweep.points:
        cells = _row(point) + ([] if told_apart else [point.figures.dictionary.path or ""])
        table.add_row(*cells, style="bold" if point.on_front else "")
    console.print(table)
    notes = (
        f"recovered: of the {first.mean_ablated.above_clean:.3f} nats that replacing {first.writes} by its mean costs",
        "* on the Pareto front: none here has both fewer active features and a lower cost",
    )
    for note in notes:
        console.print(Text(note, style="dim"))
    for point in sorted((point for point in sweep.points if point.on_front), key=lambda point: point.figures.l0):
        console.print(Text(f"  {point.figures.dictionary.path}"), soft_wrap=True)
    for point in sweep.points:
        for said in wrong(point.figures):
            console.print(Text(f"• {point.figures.dictionary.id}: {said}"))


def _row(point: SweepPoint) -> list[str]:
    figures, cost = point.figures, point.figures.spliced
    info = figures.dictionary
    return [
        "*" if point.on_front else "",
        width_name(info.width),
        point.l0_named or "",
        f"{figures.l0:.1f}",
        f"{figures.variance_explained:.3f}",
        f"{cost.above_clean:.3f} ± {cost.standard_error:.3f}",
        f"{figures.ce_recovered_mean:.1%}",
    ]
