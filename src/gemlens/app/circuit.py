"""``gemlens circuit``: which features, errors and tokens the next token is made of, and through which ways."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gemlens.app.circuit_files import diff, open_, upload
from gemlens.app.circuit_targets import Wanted, check_options, parse_targets
from gemlens.app.console import busy, notes, results, tell
from gemlens.app.load import load_model_only
from gemlens.app.measuring import progress
from gemlens.app.options import (
    DEFAULT_MODEL,
    ChatOption,
    Device,
    DeviceOption,
    Dtype,
    DtypeOption,
    ModelOption,
    OutDirOption,
    SystemOption,
    check_sources,
    parse_count,
    was_given,
)
from gemlens.app.output import prepared
from gemlens.errors import InputError
from gemlens.lm.starter import STARTER_NAME
from gemlens.scope.starter import STARTER_RELEASE

if TYPE_CHECKING:
    from rich.console import Console

    from gemlens.lm.gemma import Model
    from gemlens.records.circuit import Circuit
    from gemlens.records.graph import Graph
    from gemlens.scope.sets import TranscoderSet
    from gemlens.study.replacement import Transcoders

__all__ = ["circuit"]

_NAME = "circuit"
_RELEASE = "google/gemma-scope-2-270m-it"


class Export(StrEnum):
    html = "html"
    json = "json"
    safetensors = "safetensors"


circuit = typer.Typer(add_completion=False, rich_markup_mode=None)
circuit.command("open", short_help="Any graph file, or a graph of Neuronpedia, as a page.")(open_)
circuit.command("diff", short_help="What two graph files do not have in common, as a page.")(diff)
circuit.command("upload", short_help="A graph file to Neuronpedia.")(upload)


@circuit.callback(invoke_without_command=True)
def _trace(
    context: typer.Context,
    prompt: Annotated[
        str | None, typer.Option(help="Text whose next token is explained; - for standard input.", metavar="TEXT")
    ] = None,
    system: SystemOption = None,
    model_id: ModelOption = DEFAULT_MODEL,
    transcoders: Annotated[
        str | None,
        typer.Option(
            help=f"Release or folder with a transcoder for each layer, or a CLT.  [default: {_RELEASE}; "
            "the starter's with --model-id starter]",
            metavar="RELEASE",
        ),
    ] = None,
    transcoder_set: Annotated[
        str | None,
        typer.Option(
            help="Which of its sets, e.g. transcoder_all/layer_*_width_16k_l0_small_affine, or a part of that name.  "
            "[default: the narrowest and sparsest of all layers]",
            metavar="NAME",
        ),
    ] = None,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Leave MLPs without a transcoder as errors.")
    ] = False,
    targets: Annotated[
        list[str] | None,
        typer.Option(
            help="What to explain: a token (' Paris', id:9079), a difference (' Paris|| London'), a feature "
            "(feature:12.345@6); repeat it.  [default: the likeliest tokens]",
            metavar="TARGET",
        ),
    ] = None,
    mass: Annotated[
        float, typer.Option(help="Without --targets: tokens up to this probability, at most 10.", metavar="SHARE")
    ] = 0.95,
    node_threshold: Annotated[
        float, typer.Option(help="Keep the nodes that hold this share of the influence.", metavar="SHARE")
    ] = 0.8,
    edge_threshold: Annotated[
        float, typer.Option(help="Keep the links that hold this share of what flows between them.", metavar="SHARE")
    ] = 0.98,
    max_features: Annotated[
        str, typer.Option(help="Feature nodes to compute, the most important ones; 'all' for all.", metavar="COUNT")
    ] = "7500",
    memory: Annotated[
        float, typer.Option(help="GB that the graph may take beyond model and transcoders.", metavar="GB")
    ] = 4.0,
    paths: Annotated[int, typer.Option(help="Strongest paths to print.", metavar="COUNT")] = 10,
    verify: Annotated[
        int, typer.Option(help="Ablate so many of the strongest features, and compare what happens.", metavar="COUNT")
    ] = 0,
    chat: ChatOption = None,
    device: DeviceOption = Device.auto,
    dtype: DtypeOption = Dtype.float32,
    export: Annotated[
        list[Export] | None,
        typer.Option(
            "--export",
            help="File to write: html (the page), json (graph file), safetensors (all of the graph); repeat it.  "
            "[default: table only]",
            metavar="KIND",
        ),
    ] = None,
    out_dir: OutDirOption = Path("outputs"),
) -> None:
    """Trace what the next token of a prompt is made of, through the features of transcoders or a CLT."""
    if context.invoked_subcommand is not None:
        _refuse_options(context)
        return
    wanted = parse_targets(targets or [])
    check_options(
        prompt,
        mass,
        node_threshold,
        edge_threshold,
        memory,
        paths,
        verify,
        was_mass=bool(wanted) and was_given(context, "mass"),
    )
    most = None if max_features == "all" else parse_count("--max-features", max_features)
    release = transcoders or (STARTER_RELEASE if model_id == STARTER_NAME else _RELEASE)
    check_sources(model_id, release, "", [])
    from gemlens.app.prompts import read_prompts
    from gemlens.scope.sets import find_set

    text = read_prompts(prompt or "", None, system)[0].text
    kinds = list(dict.fromkeys(export or []))
    out_dir = out_dir.expanduser()
    console = notes()
    with ExitStack() as stack:
        if kinds:
            stack.enter_context(prepared("--out-dir", out_dir, [f"{_NAME}.{kind.value}" for kind in kinds]))
        chosen = find_set(release, transcoder_set)
        model, dictionaries = _load(console, model_id, chosen, device.value, dtype.value)
        graph = _graph(
            console,
            model,
            dictionaries,
            text,
            wanted,
            mass,
            {
                "max_features": most,
                "memory": int(memory * 1e9),
                "system": system,
                "chat": chat,
                "allow_missing": allow_missing,
            },
        )
        _show(console, graph, model, dictionaries, kinds, out_dir, node_threshold, edge_threshold, paths)
        if verify:
            _verify(console, graph, model, dictionaries, verify, wanted)


def _refuse_options(context: typer.Context) -> None:
    """Options of tracing before the name of another command would mean nothing there."""
    given = [name for name in context.params if was_given(context, name)]
    if given:
        option = "--" + given[0].replace("_", "-")
        raise InputError(
            f"{option} goes with tracing a prompt; with {context.invoked_subcommand}, give options after its name"
        )


def _load(console: Console, model_id: str, chosen: TranscoderSet, device: str, dtype: str) -> tuple[Model, Transcoders]:
    model, place = load_model_only(console, model_id, chosen.release, device=device, dtype=dtype)
    from gemlens.scope.sets import load_set

    with busy(console, f"Loading {chosen.name}"):
        return model, load_set(chosen, device=place)


def _graph(
    console: Console,
    model: Model,
    dictionaries: Transcoders,
    text: str,
    wanted: Sequence[Wanted],
    mass: float,
    settings: dict[str, Any],
) -> Graph:
    from gemlens.study.circuit.targets import salient
    from gemlens.study.circuit.trace import circuit as trace

    with progress(console) as show:
        return trace(
            model,
            dictionaries,
            text,
            targets=[each.made() for each in wanted] or salient(mass=mass),
            report=lambda done, total: show("Tracing", done, total),
            **settings,
        )


def _show(
    console: Console,
    graph: Graph,
    model: Model,
    dictionaries: Transcoders,
    kinds: Sequence[Export],
    out_dir: Path,
    node_threshold: float,
    edge_threshold: float,
    paths: int,
) -> None:
    from gemlens.report.circuit_table import render
    from gemlens.study.circuit.paths import strongest_paths
    from gemlens.study.circuit.prune import prune

    with busy(console, "Pruning"):
        found = prune(graph, node_threshold=node_threshold, edge_threshold=edge_threshold)
        ways = strongest_paths(found, paths, least=1) if paths else []
    written = [_write(kind, graph, found, model, dictionaries, out_dir) for kind in kinds]
    with results() as table:
        render(found, ways, table)
    for path in written:
        tell(console, f"wrote {path}")


def _write(kind: Export, graph: Graph, found: Circuit, model: Model, dictionaries: Transcoders, out_dir: Path) -> Path:
    from gemlens.files import write

    path = out_dir / f"{_NAME}.{kind.value}"
    if kind is Export.safetensors:
        from gemlens.report.graph_store import write_graph

        write_graph(graph, path)
    elif kind is Export.json:
        from gemlens.report.graph_file import circuit_to_json

        write(circuit_to_json(found), path)
    else:
        from gemlens.app.circuit_files import page_of
        from gemlens.study.circuit.evidence import evidence_of

        write(page_of(found, evidence_of(model, dictionaries, found)), path)
    return path


def _verify(
    console: Console, graph: Graph, model: Model, dictionaries: Transcoders, count: int, wanted: Sequence[Wanted]
) -> None:
    from gemlens.report.circuit_table import render_verification
    from gemlens.study.circuit.intervene import verify

    with busy(console, f"Ablating {count} features"):
        found = verify(model, dictionaries, graph, count, targets=[each.made() for each in wanted] or None)
    with results() as table:
        render_verification(found, table)
