"""What became of the nodes and links of a difference, for its page and its table."""

from __future__ import annotations

from typing import Any, NamedTuple

from gemlens.records.circuit import Circuit, CircuitNode
from gemlens.report.visible import number, one_line

__all__ = ["Changes", "changes_of", "sides"]

_LEAST = 0.1


class Changes(NamedTuple):
    """Nodes by index with what is to be said of them, the most telling first; tokens and targets are not counted."""

    gained: list[tuple[int, str]]
    lost: list[tuple[int, str]]
    changed: list[tuple[int, str]]
    """Of which activation or probability is another by a tenth or more."""


def sides(circuit: Circuit) -> tuple[str, str] | None:
    """What the two circuits of a difference are called; None of any other circuit."""
    said = circuit.metadata.get("difference")
    if not isinstance(said, dict):
        return None
    names = []
    for side in ("first", "second"):
        each = said.get(side)
        names.append(one_line(str(each.get("prompt") or each.get("slug"))) if isinstance(each, dict) else side)
    return names[0], names[1]


def changes_of(circuit: Circuit) -> Changes:
    """Gained, lost and changed nodes of a difference."""
    gained: list[tuple[float, int, str]] = []
    lost: list[tuple[float, int, str]] = []
    changed: list[tuple[float, int, str]] = []
    for index, node in enumerate(circuit.nodes):
        what = node.extra.get("difference")
        if what == "both":
            before, after = _value(node, "first"), _value(node, "second")
            if before is not None and after is not None and _relative(before, after) >= _LEAST:
                changed.append((_relative(before, after) * _weight(node), index, f"{number(before)} → {number(after)}"))
        elif node.kind in ("feature", "error"):
            side, found = ("second", gained) if what == "gained" else ("first", lost)
            value = _value(node, side)
            found.append((_weight(node), index, "" if value is None else number(value)))
    return Changes(
        *([(index, said) for _, index, said in sorted(each, reverse=True)] for each in (gained, lost, changed))
    )


def _value(node: CircuitNode, side: str) -> float | None:
    """The activation, or of a target the probability, on one side."""
    said: Any = node.extra.get(side)
    value = said.get("probability" if node.kind == "target" else "activation") if isinstance(said, dict) else None
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _relative(before: float, after: float) -> float:
    return abs(after - before) / max(abs(before), abs(after), 1e-12)


def _weight(node: CircuitNode) -> float:
    """Influence is a rank: small is important."""
    return 1.0 if node.influence is None else 1.0 - node.influence
