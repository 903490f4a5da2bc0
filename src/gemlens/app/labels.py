"""``gemlens labels``: what features are called."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gemlens.app.console import busy, notes, results, tell
from gemlens.app.label_explain import auto, explain, score
from gemlens.app.label_hand import add
from gemlens.app.label_options import LabelIdOption, LabelReleaseOption, chosen, chosen_keys
from gemlens.app.measuring import progress
from gemlens.errors import InputError, NotFoundError

if TYPE_CHECKING:
    from gemlens.records.labels import Label
    from gemlens.scope.label_names import Named

__all__ = ["labels"]

labels = typer.Typer(add_completion=False, rich_markup_mode=None)


@labels.callback(invoke_without_command=True)
def _root(context: typer.Context) -> None:
    """Download, search, write, explain and score labels of features; they are kept in one file of this machine."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@labels.command(short_help="Labels that hold some words.")
def search(
    query: Annotated[str, typer.Argument(help="Words; in quotes, words that stand together.", metavar="WORDS")],
    sae_release: LabelReleaseOption = None,
    sae_id: LabelIdOption = None,
    limit: Annotated[int, typer.Option(help="Labels to show at most.", metavar="INT")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Search the labels that are stored, of all dictionaries or of some."""
    from gemlens.report.labels import render_labels
    from gemlens.scope.label_schema import is_store
    from gemlens.scope.labels import LabelStore, label_file

    if limit < 1:
        raise InputError(f"--limit {limit}: 1 or more")
    if not is_store(label_file()):
        raise NotFoundError("no label is stored yet; get some: gemlens labels download, import, add, auto or explain")
    with LabelStore() as store:
        found = store.search(query, dictionaries=chosen_keys(store, sae_release, sae_id), limit=limit)
    if as_json:
        _print_json(found)
        return
    with results() as console:
        render_labels(found, console)
    if not found:
        tell(notes(), f"no label holds {' '.join(query.split())[:100]!r}; try fewer words")


def _print_json(found: list[Label]) -> None:
    with results():
        lines = ",\n".join(json.dumps(dataclasses.asdict(label), ensure_ascii=False) for label in found)
        sys.stdout.write(f"[\n{lines}\n]\n" if lines else "[]\n")
        sys.stdout.flush()


@labels.command(short_help="Labels from Neuronpedia.")
def download(
    sae_release: LabelReleaseOption = None,
    sae_id: LabelIdOption = None,
    neuronpedia_id: Annotated[
        str | None,
        typer.Option(
            help="MODEL/SOURCE, as gemma-2-2b/20-gemmascope-res-16k.  [default: what the catalogue knows]",
            metavar="ID",
        ),
    ] = None,
    out_dir: Annotated[
        Path | None,
        typer.Option(help="Also write feature_labels.json and metadata.json below this folder.", metavar="FOLDER"),
    ] = None,
    tokens: Annotated[
        bool, typer.Option("--tokens/--no-tokens", help="Top tokens and largest activations as well.")
    ] = True,
    api: Annotated[
        bool, typer.Option("--api/--no-api", help="Ask for features that the bulk export lacks, fifty at a time.")
    ] = True,
    again: Annotated[bool, typer.Option("--again", help="From the start, to see what has come to be since.")] = False,
) -> None:
    """Store all labels that Neuronpedia has of a dictionary. Stopped at any moment, the same command goes on."""
    from gemlens.report.labels import said_of
    from gemlens.scope.label_download import download as get
    from gemlens.scope.label_layout import write_layout
    from gemlens.scope.labels import LabelStore

    dictionary = chosen(sae_release, sae_id)
    console = notes()
    with LabelStore() as store:
        with progress(console) as show:
            counts = get(
                store, dictionary, neuronpedia=neuronpedia_id, facts=tokens, api=api, again=again,
                report=lambda what, done, total: show(f"Reading {what}", done, total),
            )  # fmt: skip
        tell(console, f"{dictionary.key}: {said_of(counts, 'a label')}")
        for reason in counts.reasons[:5]:
            tell(console, f"warning: {reason}")
        if out_dir is not None:
            known = store.dictionaries().get(dictionary.key, dictionary)
            tell(console, f"wrote {write_layout(store, known, out_dir.expanduser(), failed=counts.failed)}")
        if counts.failed:
            raise NotFoundError(f"{counts.failed:,} features could not be asked for; the same command tries them again")


@labels.command("import", short_help="Labels from a file.")
def import_(
    file: Annotated[
        Path,
        typer.Argument(
            help=".csv, .parquet or .jsonl with 'feature' and 'text'; feature_labels.json or its folder.",
            metavar="FILE",
        ),
    ],
    sae_release: LabelReleaseOption = None,
    sae_id: LabelIdOption = None,
    source: Annotated[
        str | None, typer.Option(help="Who says so, where the file does not.  [default: its name]", metavar="NAME")
    ] = None,
) -> None:
    """Store labels from a file: all of it, or nothing."""
    from gemlens.scope import label_progress
    from gemlens.scope.label_files import read_rows
    from gemlens.scope.label_layout import read_layout
    from gemlens.scope.labels import LabelStore

    file = file.expanduser()
    dictionary = chosen(sae_release, sae_id) if sae_release or sae_id else None
    console = notes()
    with LabelStore() as store, busy(console, f"Reading {file}"), store.writing():
        if file.is_dir() or file.suffix.lower() == ".json":
            owner, found, facts = read_layout(file, dictionary)
            store.declare(owner)
            new = store.add(found)
            label_progress.add_facts(store, owner.key, facts)
        else:
            declared: set[str] = set()

            def each() -> list[Label]:
                every = []
                for owner, label in read_rows(file, dictionary, source or file.name):
                    if not isinstance(owner, str) and owner.key not in declared:
                        declared.add(owner.key)
                        store.declare(owner)
                    every.append(label)
                return every

            new = store.add(each())
    tell(console, f"{new:,} new labels from {file}")


@labels.command(short_help="Labels to a file.")
def export(
    out: Annotated[
        Path,
        typer.Argument(
            help="FILE.csv, FILE.parquet, or a folder for feature_labels.json and metadata.json.", metavar="FILE|FOLDER"
        ),
    ],
    sae_release: LabelReleaseOption = None,
    sae_id: LabelIdOption = None,
) -> None:
    """Write labels of all dictionaries, or of some."""
    from gemlens.scope.label_files import write_csv, write_parquet
    from gemlens.scope.label_layout import write_layout
    from gemlens.scope.labels import LabelStore

    out = out.expanduser()
    console = notes()
    writers: dict[str, Callable[..., int]] = {".csv": write_csv, ".parquet": write_parquet}
    write = writers.get(out.suffix.lower())
    if write is None and out.suffix and not out.is_dir():
        raise InputError(f"{out} is no .csv or .parquet file, and a folder's name has no ending; name one of them")
    with LabelStore() as store:
        keys = chosen_keys(store, sae_release, sae_id)
        known: dict[str, Named] = store.dictionaries()
        todo = [key for key in known if keys is None or key in keys]
        if not todo:
            raise NotFoundError("no such label is stored; get some: gemlens labels download, import, add or auto")
        if write is not None:
            tell(console, f"wrote {write(store.every(todo), out):,} labels to {out}")
            return
        for key in todo:
            tell(console, f"wrote {write_layout(store, known[key], out)}")


labels.command(short_help="Look at a feature's examples, and say what it is.")(add)
labels.command(short_help="Let a language model say what features are.")(explain)
labels.command(short_help="How well labels tell what features fire on.")(score)
labels.command(short_help="Labels from top tokens and shared words, without any model.")(auto)
