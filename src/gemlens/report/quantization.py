"""A ``QuantizationCost`` record in the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gemlens.records import QuantizationCost

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["render"]


def render(cost: QuantizationCost, console: Console) -> None:
    """Print before, after, and what became of the active features."""
    from rich.table import Table
    from rich.text import Text

    before, after = cost.exact, cost.quantized
    console.print(Text(f"{before.dictionary.release}/{before.dictionary.id} on {before.model_id}", style="bold"))
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column()
    for name in ("before", "after", "change"):
        table.add_column(name, justify="right")
    for name, first, second, digits in (
        ("L0", before.l0, after.l0, 2),
        ("variance explained", before.variance_explained, after.variance_explained, 4),
        ("CE spliced", before.spliced.ce, after.spliced.ce, 4),
    ):
        table.add_row(name, f"{first:.{digits}f}", f"{second:.{digits}f}", f"{second - first:+.{digits}f}")
    console.print(table)
    console.print(
        f"{cost.kept:.2%} of the active features are still active, {cost.added:.2%} more have become so, "
        f"on {before.tokens_measured:,} tokens; cross-entropy on {before.ce_tokens:,}"
    )
