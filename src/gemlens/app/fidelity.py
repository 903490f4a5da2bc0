"""``gemlens fidelity``: does a dictionary say what the activations say?"""

from __future__ import annotations

from contextlib import ExitStack, suppress
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gemlens.app.console import notes, results, tell
from gemlens.app.load import load
from gemlens.app.options import (
    DEFAULT_MODEL,
    CategoryOption,
    Device,
    DeviceOption,
    IdsOption,
    ModelOption,
    ReleaseOption,
    check_sources,
    default_dictionary,
    was_given,
)
from gemlens.app.output import prepared
from gemlens.app.sweep import check_place
from gemlens.app.sweep import run as run_sweep
from gemlens.errors import GemlensError, InputError

if TYPE_CHECKING:
    from rich.console import Console

    from gemlens.data.corpus import Text
    from gemlens.lm.gemma import Model
    from gemlens.records import Fidelity
    from gemlens.scope.sae import SAE

__all__ = ["fidelity"]


def fidelity(
    context: typer.Context,
    texts: Annotated[
        list[Path] | None,
        typer.Option(
            help="Text the dictionary was not trained on: .txt; .jsonl or .parquet with 'text'; a folder of them; or a "
            "data set of the hub, as hf:OWNER/NAME; repeat it.",
            metavar="PATH",
        ),
    ] = None,
    mix: Annotated[
        list[Path] | None,
        typer.Option(
            help="Text like its training text, to count dead features over a million tokens (slow).", metavar="PATH"
        ),
    ] = None,
    model_id: ModelOption = DEFAULT_MODEL,
    sae_release: ReleaseOption = None,
    sae_category: CategoryOption = "resid_post",
    sae_id: IdsOption = None,
    sweep: Annotated[
        bool, typer.Option("--sweep", help="Measure every dictionary that the release has for one site, in one table.")
    ] = False,
    site: Annotated[
        str | None,
        typer.Option(help="With --sweep: the site, as resid_post or resid_post.12.  [default: resid_post]"),
    ] = None,
    layer: Annotated[
        int | None, typer.Option(help="With --sweep: the layer.  [default: the only one]", metavar="INT")
    ] = None,
    device: DeviceOption = Device.auto,
    export: Annotated[Path | None, typer.Option(help="Write the figures to this .json file.", metavar="FILE")] = None,
    plot: Annotated[
        Path | None, typer.Option(help="With --sweep: draw L0 against cost into this .svg file.", metavar="FILE")
    ] = None,
) -> None:
    """Measure how well a dictionary reconstructs what it reads, and what splicing it in costs the model."""
    if not texts:
        raise InputError("no text was given; name some with --texts: about 50 pages make the full 65,536 tokens")
    release, ids = default_dictionary(model_id, sae_release, sae_id)
    check_sources(model_id, release, sae_category, ids)
    for option, path, kind in (("--export", export, ".json"), ("--plot", plot, ".svg")):
        if path is not None and path.suffix != kind:
            raise InputError(f"{option} {path}: name a {kind} file, e.g. {option} fidelity{kind}")
    _check_sweep(sweep, {"--site": site, "--layer": layer, "--plot": plot}, sae_id)
    kind, number = check_place(site, layer)
    from gemlens.data.corpus import documents
    from gemlens.files import write
    from gemlens.report.fidelity import render, to_json

    files = documents([path.expanduser() for path in texts])
    mix_files = documents([path.expanduser() for path in mix]) if mix else None
    console = notes()
    with ExitStack() as stack:
        if export is not None:
            export = export.expanduser()
            stack.enter_context(prepared("--export", export.parent, [export.name]))
        if plot is not None:
            plot = plot.expanduser()
            stack.enter_context(prepared("--plot", plot.parent, [plot.name]))
        if sweep:
            run_sweep(
                console,
                model_id,
                release,
                site=kind,
                layer=number,
                category=sae_category.strip("/") if was_given(context, "sae_category") else None,
                files=files,
                mix=mix_files,
                device=device.value,
                export=export,
                plot=plot,
            )
            return
        dictionaries, model, _ = load(
            console, model_id, release, sae_category, ids, device=device.value, dtype="float32"
        )
        measured = [
            _suggest(_measure(console, model, dictionary, files, mix_files), release) for dictionary in dictionaries
        ]
        if export is not None:
            write(to_json(measured), export)
        with results() as table:
            for figures in measured:
                render(figures, table)
        if export is not None:
            tell(console, f"wrote {export}")


def _check_sweep(sweep: bool, only_with: dict[str, object], ids: list[str] | None) -> None:
    if sweep and ids:
        raise InputError(f"--sae-id {ids[0]} and --sweep exclude each other; --site and --layer say what to sweep over")
    if not sweep and (given := [option for option, value in only_with.items() if value is not None]):
        raise InputError(f"{given[0]} goes with --sweep; give that too, or name one dictionary with --sae-id")


def _suggest(figures: Fidelity, release: str) -> Fidelity:
    """A poor verdict with what to try next, if the release can be listed: offline, a hub repository cannot."""
    from gemlens.scope.listing import listing
    from gemlens.study.verdict import is_poor, suggest

    if is_poor(figures):
        with suppress(GemlensError):
            return suggest(figures, listing(release))
    return figures


def _measure(console: Console, model: Model, dictionary: SAE, files: list[Text], mix: list[Text] | None) -> Fidelity:
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from gemlens.data.corpus import read_documents
    from gemlens.study.fidelity import fidelity as study

    with ExitStack() as stack:
        report: dict[str, Any] = {}
        if console.is_terminal:  # where nothing can move, rich would leave an empty line
            columns = (TextColumn("Measuring {task.description}", markup=False), BarColumn(), TimeRemainingColumn())
            bar = stack.enter_context(Progress(*columns, console=console, transient=True))
            task = bar.add_task(dictionary.info.id, total=None)
            report = {"report": lambda done, total: bar.update(task, completed=done, total=total)}
        return study(
            model,
            dictionary,
            chain.from_iterable(map(read_documents, files)),
            mix=None if mix is None else chain.from_iterable(map(read_documents, mix)),
            **report,
        )
