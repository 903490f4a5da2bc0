"""``gemlens circuit open``, ``diff`` and ``upload``: graph files, whoever made them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gemlens.app.console import busy, notes, results, tell
from gemlens.app.measuring import progress
from gemlens.app.options import OutDirOption
from gemlens.app.output import prepared
from gemlens.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from gemlens.records.circuit import Circuit, NodeEvidence

__all__ = ["diff", "open_", "page_of", "upload"]

_PATHS = 8
_LARGE = 100 * 2**20

NodeThreshold = Annotated[
    float | None,
    typer.Option("--node-threshold", help="Prune: keep nodes up to this share of the influence.", metavar="SHARE"),
]
EdgeThreshold = Annotated[
    float | None,
    typer.Option("--edge-threshold", help="Prune: keep links that hold this share of what flows.", metavar="SHARE"),
]


def open_(
    source: Annotated[
        str,
        typer.Argument(help="Graph file (.json, .json.gz), or the address of a graph on Neuronpedia.", metavar="FILE"),
    ],
    node_threshold: NodeThreshold = None,
    edge_threshold: EdgeThreshold = None,
    paths: Annotated[int, typer.Option(help="Strongest paths to print.", metavar="COUNT")] = 10,
    out: Annotated[
        Path | None,
        typer.Option(help="The page, an .html file, or the file again, as .json.  [default: the file's name.html]"),
    ] = None,
    out_dir: OutDirOption = Path("outputs"),
) -> None:
    """Make a page of a graph file: one offline HTML to explore it in."""
    _check_thresholds(node_threshold, edge_threshold)
    if paths < 0:
        raise InputError(f"--paths {paths}: 0 is none, more is more")
    if out is not None and out.suffix not in (".html", ".json"):
        raise InputError(f"--out {out}: name an .html or a .json file")
    console = notes()
    circuit = _fetch(console, source) if "://" in source else _read(console, Path(source).expanduser())
    circuit = _pruned(console, circuit, node_threshold, edge_threshold)
    path = (out or out_dir / f"{_slug(circuit)}.html").expanduser()
    with prepared("--out" if out else "--out-dir", path.parent, [path.name]):
        from gemlens.files import write
        from gemlens.report.circuit_table import render
        from gemlens.report.graph_file import circuit_to_json
        from gemlens.study.circuit.paths import strongest_paths

        with busy(console, "Drawing"):
            write(circuit_to_json(circuit) if path.suffix == ".json" else page_of(circuit), path)
            ways = strongest_paths(circuit, paths, least=1) if paths and _has_target(circuit) else []
    with results() as table:
        render(circuit, ways, table)
    tell(console, f"wrote {path}")


def page_of(circuit: Circuit, evidence: Mapping[tuple[int, int], NodeEvidence] | None = None) -> str:
    """The page, with groups to suggest and the strongest paths in it."""
    from gemlens.report.circuit_page import check_size, to_html
    from gemlens.study.circuit.groups import suggest_groups
    from gemlens.study.circuit.paths import strongest_paths

    check_size(circuit)
    ways = strongest_paths(circuit, _PATHS, least=1) if _has_target(circuit) else []
    return to_html(circuit, evidence=evidence, groups=suggest_groups(circuit, evidence), paths=ways)


def _has_target(circuit: Circuit) -> bool:
    return any(node.kind == "target" for node in circuit.nodes)


def _check_thresholds(node_threshold: float | None, edge_threshold: float | None) -> None:
    from gemlens.study.circuit.prune import check_thresholds

    check_thresholds(1 if node_threshold is None else node_threshold, 1 if edge_threshold is None else edge_threshold)


def _read(console: Console, path: Path) -> Circuit:
    from gemlens.report.graph_file import read_circuit

    with progress(console) as show:
        return read_circuit(path, report=lambda done, total: show(f"Reading {path.name}", done, total))


def _pruned(console: Console, circuit: Circuit, node_threshold: float | None, edge_threshold: float | None) -> Circuit:
    """As it is where no threshold was given: the file was pruned by whoever made it."""
    if node_threshold is None and edge_threshold is None:
        return circuit
    from gemlens.study.circuit.prune import prune

    with busy(console, "Pruning"):
        return prune(
            circuit,
            node_threshold=1.0 if node_threshold is None else node_threshold,
            edge_threshold=1.0 if edge_threshold is None else edge_threshold,
        )


def _slug(circuit: Circuit) -> str:
    """A file's name from one that somebody else chose."""
    import re

    return re.sub(r"[^A-Za-z0-9_-]+", "-", str(circuit.metadata.get("slug", "")))[:80].strip("-") or "circuit"


def _fetch(console: Console, address: str) -> Circuit:
    raise InputError(f"{address}: addresses cannot be opened yet; download the JSON and open the file")


def diff() -> None:
    """What two graph files do not have in common."""


def upload() -> None:
    """A graph file to Neuronpedia."""
