"""``gemlens catalog``: which dictionaries there are, offline; and what a hub repository holds beyond that."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from gemlens.app.console import busy, notes, results, tell
from gemlens.errors import InputError
from gemlens.scope.catalog import Entry, entries, find, neuronpedia_id

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["catalog"]

# The file that makes a folder a dictionary: npz of Gemma Scope 1, safetensors of 2, the first of a multi-layer one.
_PARAMS = ("params.npz", "params.safetensors", "params_layer_0.safetensors")
_Column = tuple[str, Literal["left", "right"]]


def catalog(
    model: Annotated[
        str | None, typer.Option("--model", help="Model, with or without google/: gemma-3-270m-it.", metavar="MODEL")
    ] = None,
    site: Annotated[
        str | None, typer.Option("--site", help="What it reads: resid_post, attn_out, ….", metavar="SITE")
    ] = None,
    layer: Annotated[int | None, typer.Option(help="Layer it reads.", metavar="INT")] = None,
    width: Annotated[str | None, typer.Option("--width", help="Features: 16k or 16384.", metavar="WIDTH")] = None,
    l0: Annotated[int | None, typer.Option("--l0", help="Mean number of active features.", metavar="INT")] = None,
    release: Annotated[
        str | None, typer.Option("--release", help="SAELens' release, or the hub repository.", metavar="RELEASE")
    ] = None,
    live: Annotated[
        str | None,
        typer.Option(help="Ask the hub what this repository holds, and compare.", metavar="REPO"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """List published dictionaries under SAELens' names; without any option, the releases."""
    filters = {"model": model, "site": site, "layer": layer, "width": width, "l0": l0, "release": release}
    given = {name: value for name, value in filters.items() if value is not None}
    if live is not None:
        if given:
            raise InputError(f"--live lists a whole repository; leave out --{', --'.join(given)}")
        _live(live if "/" in live else f"google/{live}", as_json)
        return
    found: Sequence[Entry] = find(**given) if given else entries()  # type: ignore[arg-type]
    if as_json:
        _print_json([_record(entry) for entry in found])
    elif given:
        _print_entries(found)
    else:
        _print_releases(found)


def _record(entry: Entry) -> dict[str, Any]:
    names = ("release", "id", "path", "model", "site", "layer", "width", "l0", "neuronpedia")
    return {name: getattr(entry, name) for name in names}


def _print_json(records: list[dict[str, Any]]) -> None:
    """One record a line, so that two listings can be compared with diff."""
    with results():
        lines = ",\n".join(json.dumps(record, ensure_ascii=False) for record in records)
        sys.stdout.write(f"[\n{lines}\n]\n")
        sys.stdout.flush()


def _print_entries(found: Iterable[Entry]) -> None:
    columns: list[_Column] = [("release", "left"), ("id", "left"), ("layer", "right"), ("width", "right")]
    columns += [("L0", "right"), ("neuronpedia", "left")]
    rows = [
        (
            entry.release,
            entry.id,
            "several" if entry.layer is None else str(entry.layer),
            entry.width_name,
            "" if entry.mean_l0 is None else str(entry.mean_l0),
            "yes" if neuronpedia_id(entry.repo, entry.path) else "no",
        )
        for entry in found
    ]
    with results() as console:
        _print_table(console, columns, rows)


def _print_releases(found: Iterable[Entry]) -> None:
    columns: list[_Column] = [("release", "left"), ("model", "left"), ("reads", "left"), ("kind", "left")]
    columns += [("dictionaries", "right")]
    counts: dict[tuple[str, ...], int] = {}
    for entry in found:
        if entry.site != "embed":  # four in a release of residual-stream dictionaries; a row would look like one more
            key = (entry.release, entry.model.removeprefix("google/"), entry.site, entry.kind)
            counts[key] = counts.get(key, 0) + 1
    with results() as console:
        _print_table(console, columns, [(*key, str(count)) for key, count in counts.items()])
    tell(notes(), "narrow it down with --model, --site, --layer, --width, --l0 or --release; --json lists everything")


def _live(repo: str, as_json: bool) -> None:
    """Compare what the hub lists with the catalogue, by folder."""
    from gemlens.hub import list_files

    console = notes()
    with busy(console, f"Listing {repo}"):
        files = [file.rpartition("/") for file in list_files(repo)]
    there = {folder for folder, _, name in files if name in _PARAMS and folder}
    known = {entry.path for entry in entries() if entry.repo == repo}
    news, gone = sorted(there - known), sorted(known - there)
    if as_json:
        both = sorted(there | known)
        _print_json([{"path": path, "hub": path in there, "catalogue": path in known} for path in both])
        return
    rows = [(path, "on the hub only") for path in news] + [(path, "in the catalogue only") for path in gone]
    if rows:
        with results() as out:
            _print_table(out, [("path", "left"), ("", "left")], rows)
    tell(
        console,
        f"{repo} holds {len(there)} dictionaries; the catalogue has {len(there & known)} of them, "
        f"lacks {len(news)}, and names {len(gone)} that are not there",
    )


def _print_table(console: Console, columns: list[_Column], rows: Sequence[tuple[str, ...]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False, show_edge=False, header_style="dim")
    for header, justify in columns:
        table.add_column(header, justify=justify, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    if not console.is_terminal:  # names are copied, or cut out by the next command: never broken to fit a page
        console.width = 1000
    console.print(table)
