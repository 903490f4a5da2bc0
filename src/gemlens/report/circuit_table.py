"""A circuit in the terminal: what it explains, how much of it, and the strongest ways through it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from gemlens.records.circuit import Circuit, CircuitNode, CircuitPath, NodeEvidence, shown_label
from gemlens.records.intervention import Verification
from gemlens.report.circuit_changes import changes_of, sides
from gemlens.report.table import plain
from gemlens.report.visible import inline, number

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

__all__ = ["node_name", "render", "render_changes", "render_verification"]

_WIDEST = 24

Known = Mapping[tuple[int, int], NodeEvidence]
"""What is known of features, by layer and number."""


def node_name(circuit: Circuit, node: CircuitNode, evidence: Known | None = None) -> str:
    """What a node is called on one line: a token by its text, a feature by layer, number and label."""
    if node.kind == "token":
        at = circuit.tokens[node.position] if node.position < len(circuit.tokens) else node.label
        return f"{inline(at)} #{node.position}"
    if node.kind == "target":
        return inline(shown_label(node)) or node.id
    if node.kind == "error":
        return f"error {node.layer} #{node.position}"
    known = (evidence or {}).get((node.layer or 0, node.feature or 0))
    label = node.label or (known.label if known else "")
    named = f" {inline(label)[:_WIDEST]}" if label else ""
    return f"{node.layer}/{node.feature} #{node.position}{named}"


def render(circuit: Circuit, paths: Sequence[CircuitPath], console: Console, *, evidence: Known | None = None) -> None:
    """Print warnings, targets, scores and paths; what comes from the model or a file is never markup."""
    from rich.text import Text

    for warning in circuit.warnings:
        console.print(Text.assemble(("warning: ", "bold yellow"), plain(warning, console)))
    prompt = str(circuit.metadata.get("prompt", ""))
    console.print(Text(plain(prompt, console), style="bold"), no_wrap=True, overflow="ellipsis")
    console.print(Text(_counts(circuit), style="dim"))
    console.print()
    console.print(_targets(circuit, console))
    console.print()
    if said := _scores(circuit):
        console.print(Text(said))
        console.print()
    if paths:
        console.print(Text("Strongest paths: share of the target, all its inputs counted by size", style="bold"))
        for path in paths:
            console.print(_path(circuit, path, console, evidence))


def render_changes(circuit: Circuit, console: Console, *, top: int) -> None:
    """Print what a difference gained, lost and changed, the most influential first."""
    from rich.text import Text

    both = sides(circuit) or ("", "")
    for title, name in zip(("First", "Second"), both, strict=True):
        console.print(Text.assemble((f"{title:8}", "dim"), plain(name, console)), no_wrap=True, overflow="ellipsis")
    found = changes_of(circuit)
    for title, changes in zip(("Gained", "Lost", "Changed"), found, strict=True):
        console.print()
        console.print(Text.assemble((title, "bold"), f"  {len(changes):,} nodes" if len(changes) != 1 else "  1 node"))
        for index, said in changes[:top]:
            console.print(
                Text.assemble(
                    f"  {plain(node_name(circuit, circuit.nodes[index]), console)}  ", (plain(said, console), "dim")
                )
            )


def render_verification(found: Verification, console: Console) -> None:
    """Print what ablating each of the strongest features changes the first target by: predicted, and what happens."""
    from rich.table import Table
    from rich.text import Text

    target = plain(inline(found.targets[0].label), console)
    console.print()
    console.print(Text.assemble(("Ablated one at a time: change of ", "bold"), (target, "bold")))
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("feature")
    for name in ("activation", "predicted", "patterns frozen", "free"):
        table.add_column(name, justify="right")
    for node in found.nodes:
        changes = (node.predicted[0], node.constrained[0], node.free[0])
        name = f"{node.layer}/{node.feature} #{node.position}"
        table.add_row(name, number(node.activation), *(f"{change:+.3f}" for change in changes))
    console.print(table)
    console.print(
        f"Correlation with the predicted changes: {found.constrained_correlation:.3f} with patterns frozen, "
        f"{found.free_correlation:.3f} free"
    )


def _counts(circuit: Circuit) -> str:
    kinds = [node.kind for node in circuit.nodes]
    said = circuit.metadata.get("gemlens")
    active = said.get("active_features") if isinstance(said, dict) else None
    of = f" of {active:,} active" if isinstance(active, int) else ""
    parts = [f"{kinds.count('feature'):,} features{of}", f"{kinds.count('error'):,} errors"]
    return ", ".join([*parts, f"{len(circuit.tokens):,} tokens", f"{len(circuit.weights):,} links"])


def _targets(circuit: Circuit, console: Console) -> Text:
    from rich.text import Text

    text = Text("Targets  ")
    for index, node in enumerate(node for node in circuit.nodes if node.kind == "target"):
        text.append("   " if index else "")
        text.append(plain(node_name(circuit, node), console), style="bold")
        if node.probability is not None:
            text.append(f" {node.probability:.3f}", style="dim")
        elif isinstance(value := node.extra.get("value"), float):
            text.append(f" {number(value)}", style="dim")
    return text


def _scores(circuit: Circuit) -> str | None:
    said = circuit.metadata.get("gemlens")
    if not isinstance(said, dict):
        return None
    found = [said.get(f"{name}_score") for name in ("replacement", "completeness")]
    if not all(isinstance(value, float) for value in found):
        return None
    return f"Replacement score {found[0]:.3f}, completeness score {found[1]:.3f}: how much is features, not errors"


def _path(circuit: Circuit, path: CircuitPath, console: Console, evidence: Known | None) -> Text:
    from rich.text import Text

    names = [plain(node_name(circuit, circuit.nodes[index], evidence), console) for index in path.nodes]
    text = Text(f"{100 * path.share:+7.2f} %  ", style="dim")
    arrow = " → " if "utf" in console.encoding.lower() else " > "
    for index, name in enumerate(names):
        text.append(arrow if index else "", style="dim")
        text.append(name, style="bold" if index == len(names) - 1 else "")
    return text
