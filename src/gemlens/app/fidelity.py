"""``gemlens fidelity``: does a dictionary say what the activations say?"""

from __future__ import annotations

from contextlib import ExitStack
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
)
from gemlens.app.output import prepared
from gemlens.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from gemlens.lm.gemma import Model
    from gemlens.records import Fidelity
    from gemlens.scope.sae import SAE

__all__ = ["fidelity"]


def fidelity(
    texts: Annotated[
        list[Path] | None,
        typer.Option(
            help="Text the dictionary was not trained on: .txt, .jsonl with 'text', or a folder; repeat it.",
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
    device: DeviceOption = Device.auto,
    export: Annotated[Path | None, typer.Option(help="Write the figures to this .json file.", metavar="FILE")] = None,
) -> None:
    """Measure how well a dictionary reconstructs what it reads, and what splicing it in costs the model."""
    if not texts:
        raise InputError("no text was given; name some with --texts: about 50 pages make the full 65,536 tokens")
    release, ids = default_dictionary(model_id, sae_release, sae_id)
    check_sources(model_id, release, sae_category, ids)
    if export is not None and export.suffix != ".json":
        raise InputError(f"--export {export}: name a .json file, e.g. --export fidelity.json")
    from gemlens.data.corpus import documents
    from gemlens.report.fidelity import render, to_json
    from gemlens.report.files import write

    files = documents([path.expanduser() for path in texts])
    mix_files = documents([path.expanduser() for path in mix]) if mix else None
    console = notes()
    with ExitStack() as stack:
        if export is not None:
            export = export.expanduser()
            stack.enter_context(prepared("--export", export.parent, [export.name]))
        dictionaries, model, _ = load(
            console, model_id, release, sae_category, ids, device=device.value, dtype="float32"
        )
        measured = [_measure(console, model, dictionary, files, mix_files) for dictionary in dictionaries]
        if export is not None:
            write(to_json(measured), export)
        with results() as table:
            for figures in measured:
                render(figures, table)
        if export is not None:
            tell(console, f"wrote {export}")


def _measure(console: Console, model: Model, dictionary: SAE, files: list[Path], mix: list[Path] | None) -> Fidelity:
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
