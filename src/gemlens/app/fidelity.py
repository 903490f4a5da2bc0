"""``gemlens fidelity``: does a dictionary say what the activations say?"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gemlens.app.console import notes, results, tell
from gemlens.app.load import load
from gemlens.app.measuring import progress, reader
from gemlens.app.options import (
    DEFAULT_MODEL,
    CategoryOption,
    Device,
    DeviceOption,
    IdsOption,
    ModelOption,
    OutDirOption,
    ReleaseOption,
    check_sources,
    default_dictionary,
    was_given,
)
from gemlens.app.output import prepared
from gemlens.app.quality import files_of
from gemlens.app.quality import run as run_all
from gemlens.app.sweep import check_place
from gemlens.app.sweep import run as run_sweep
from gemlens.errors import GemlensError, InputError
from gemlens.lm.starter import STARTER_NAME
from gemlens.scope.starter import STARTER_RELEASE

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
    everything: Annotated[
        bool,
        typer.Option(
            "--all",
            help="Measure every dictionary of the release, and its transcoders all at once; write a page of it.",
        ),
    ] = False,
    device: DeviceOption = Device.auto,
    export: Annotated[
        list[Path] | None,
        typer.Option(
            "--export",
            help="Write the figures to this .json file. With --all: html or json, or a file of either; repeat it.  "
            "[default with --all: both]",
            metavar="FILE",
        ),
    ] = None,
    out_dir: OutDirOption = Path("outputs"),
    plot: Annotated[
        Path | None, typer.Option(help="With --sweep: draw L0 against cost into this .svg file.", metavar="FILE")
    ] = None,
) -> None:
    """Measure how well a dictionary reconstructs what it reads, and what splicing it in costs the model."""
    if not texts:
        raise InputError("no text was given; name some with --texts: about 50 pages make the full 65,536 tokens")
    if sae_release == STARTER_RELEASE and not was_given(context, "model_id"):
        model_id = STARTER_NAME
    release, ids = default_dictionary(model_id, sae_release, sae_id)
    check_sources(model_id, release, sae_category, ids)
    _check_ways(
        {"--sweep": sweep, "--all": everything},
        {"--site": site, "--layer": layer, "--plot": plot},
        ids=sae_id,
        out_dir=was_given(context, "out_dir"),
    )
    write_to = files_of(export or [], out_dir) if everything else _one_file(export or [])
    if plot is not None and plot.suffix != ".svg":
        raise InputError(f"--plot {plot}: name a .svg file, e.g. --plot fidelity.svg")
    category = sae_category.strip("/") if was_given(context, "sae_category") else None
    kind, number = check_place(site, layer)
    from gemlens.data.corpus import documents

    files = documents([path.expanduser() for path in texts])
    mix_files = documents([path.expanduser() for path in mix]) if mix else None
    write_to, plot = [path.expanduser() for path in write_to], plot and plot.expanduser()
    console = notes()
    with ExitStack() as stack:
        for option, path in [*(("--export", path) for path in write_to), *([("--plot", plot)] if plot else [])]:
            stack.enter_context(prepared(option, path.parent, [path.name]))
        if everything:
            run_all(
                console,
                model_id,
                release,
                category=category,
                files=files,
                mix=mix_files,
                device=device.value,
                write_to=write_to,
            )
        elif sweep:
            run_sweep(
                console,
                model_id,
                release,
                site=kind,
                layer=number,
                category=category,
                files=files,
                mix=mix_files,
                device=device.value,
                export=next(iter(write_to), None),
                plot=plot,
            )
        else:
            _run(
                console, model_id, release, sae_category, ids, files, mix_files, device=device.value, write_to=write_to
            )


def _run(
    console: Console,
    model_id: str,
    release: str,
    category: str,
    ids: list[str],
    files: list[Text],
    mix: list[Text] | None,
    *,
    device: str,
    write_to: Sequence[Path],
) -> None:
    from gemlens.files import write
    from gemlens.report.fidelity import render, to_json

    dictionaries, model, _ = load(console, model_id, release, category, ids, device=device, dtype="float32")
    measured = [_suggest(_measure(console, model, dictionary, files, mix), release) for dictionary in dictionaries]
    for path in write_to:
        write(to_json(measured), path)
    with results() as table:
        for figures in measured:
            render(figures, table)
    for path in write_to:
        tell(console, f"wrote {path}")


def _check_ways(
    ways: dict[str, bool], only_with_sweep: dict[str, object], *, ids: list[str] | None, out_dir: bool
) -> None:
    """Refuse options that say two things about what to measure."""
    asked = [way for way, given in ways.items() if given]
    if len(asked) > 1:
        raise InputError(
            f"{asked[0]} and {asked[1]} exclude each other; --all measures what --sweep would, and the rest"
        )
    if asked and ids:
        said = "--site and --layer say what to sweep over" if ways["--sweep"] else "--sae-category keeps to one folder"
        raise InputError(f"--sae-id {ids[0]} and {asked[0]} exclude each other; {said}")
    given = [option for option, value in only_with_sweep.items() if value is not None]
    if given and not ways["--sweep"]:
        raise InputError(f"{given[0]} goes with --sweep; give that too, or name one dictionary with --sae-id")
    if out_dir and not ways["--all"]:
        raise InputError("--out-dir goes with --all; name a file with --export")


def _one_file(export: Sequence[Path]) -> list[Path]:
    """Of the ways that write one."""
    if len(export) > 1:
        raise InputError(f"--export {export[1]}: without --all, one file takes all figures")
    for path in export:
        if path.suffix != ".json":
            raise InputError(f"--export {path}: name a .json file, e.g. --export fidelity.json")
    return list(export)


def _suggest(figures: Fidelity, release: str) -> Fidelity:
    """A poor verdict with what to try next, if the release can be listed: offline, a hub repository cannot."""
    from gemlens.scope.listing import listing
    from gemlens.study.verdict import is_poor, suggest

    if is_poor(figures):
        with suppress(GemlensError):
            return suggest(figures, listing(release))
    return figures


def _measure(console: Console, model: Model, dictionary: SAE, files: list[Text], mix: list[Text] | None) -> Fidelity:
    from gemlens.study.fidelity import fidelity as study

    with progress(console) as show:
        return study(
            model,
            dictionary,
            reader(files)(),
            mix=None if mix is None else reader(mix)(),
            report=lambda done, total: show(f"Measuring {dictionary.info.id}", done, total),
        )
