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
_SAVED = ("pinnedIds", "supernodes", "clerps", "pruningThreshold", "densityThreshold")

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
    _check_out(out)
    console = notes()
    circuit = _fetch(console, source) if "://" in source else _read(console, Path(source).expanduser())
    circuit = _pruned(console, circuit, node_threshold, edge_threshold)
    path = _written(console, circuit, out, out_dir)
    from gemlens.report.circuit_table import render
    from gemlens.study.circuit.paths import strongest_paths

    ways = strongest_paths(circuit, paths, least=1) if paths and _has_target(circuit) else []
    with results() as table:
        render(circuit, ways, table)
    tell(console, f"wrote {path}")


def _check_out(out: Path | None) -> None:
    if out is not None and out.suffix not in (".html", ".json"):
        raise InputError(f"--out {out}: name an .html or a .json file")


def _written(console: Console, circuit: Circuit, out: Path | None, out_dir: Path) -> Path:
    """Where the page, or the file, was written."""
    from gemlens.files import write
    from gemlens.report.graph_file import circuit_to_json

    path = (out or out_dir / f"{_slug(circuit)}.html").expanduser()
    with prepared("--out" if out else "--out-dir", path.parent, [path.name]), busy(console, "Drawing"):
        write(circuit_to_json(circuit) if path.suffix == ".json" else page_of(circuit), path)
    return path


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
    """A graph of Neuronpedia, in the view that its address asks for."""
    from gemlens.external.neuronpedia_graphs import download, parse_address
    from gemlens.report.graph_file import circuit_from_json, with_view

    asked = parse_address(address)
    with busy(console, f"Fetching {asked.slug}"):
        data = download(asked)
    return with_view(circuit_from_json(data), asked.view)


def diff(
    first: Annotated[Path, typer.Argument(help="Graph file.", metavar="FIRST")],
    second: Annotated[Path, typer.Argument(help="Graph file that is held against it.", metavar="SECOND")],
    top: Annotated[int, typer.Option(help="Nodes to list of each kind of change.", metavar="COUNT")] = 8,
    out: Annotated[
        Path | None, typer.Option(help="The page, an .html file, or a graph file, as .json.  [default: NAMES.html]")
    ] = None,
    out_dir: OutDirOption = Path("outputs"),
) -> None:
    """Show what two graphs do not have in common: nodes and links that one gains, loses, or has otherwise."""
    if top < 0:
        raise InputError(f"--top {top}: 0 is none, more is more")
    _check_out(out)
    console = notes()
    from gemlens.report.circuit_table import render_changes
    from gemlens.study.circuit.difference import difference

    circuits = [_read(console, path.expanduser()) for path in (first, second)]
    with busy(console, "Comparing"):
        both = difference(*circuits)
    path = _written(console, both, out, out_dir)
    with results() as table:
        render_changes(both, table, top=top)
    tell(console, f"wrote {path}")


def upload(
    file: Annotated[Path, typer.Argument(help="Graph file; its pins and groups go along.", metavar="FILE")],
    slug: Annotated[
        str | None, typer.Option(help="What it is called there.  [default: the file's own]", metavar="NAME")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", help="What its model is called there.  [default: the file's 'scan']", metavar="MODEL"),
    ] = None,
) -> None:
    """Upload a graph file to Neuronpedia. The key of your account is read from NEURONPEDIA_API_KEY."""
    from gemlens.external.neuronpedia_graphs import save_view
    from gemlens.external.neuronpedia_graphs import upload as send
    from gemlens.report.graph_file import circuit_to_json, renamed, view_to_dict

    console = notes()
    circuit = renamed(_read(console, file.expanduser()), slug=slug, scan=model)
    name = str(circuit.metadata["slug"])
    with busy(console, f"Uploading {name}"):
        address = send(circuit_to_json(circuit).encode(), name)
        if circuit.view.pinned:
            view = {key: value for key, value in view_to_dict(circuit.view).items() if key in _SAVED}
            save_view(str(circuit.metadata["scan"]), name, view)
    with results() as said:
        said.print(address, soft_wrap=True)
