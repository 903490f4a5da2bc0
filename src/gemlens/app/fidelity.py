"""``gemlens fidelity``: does a dictionary say what the activations say?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gemlens.app.options import (
    DEFAULT_MODEL,
    CategoryOption,
    Device,
    DeviceOption,
    IdsOption,
    ModelOption,
    ReleaseOption,
    default_dictionary,
)
from gemlens.errors import InputError

__all__ = ["fidelity"]


def fidelity(
    texts: Annotated[
        list[Path] | None,
        typer.Option(help="Text the dictionary was not trained on: .txt, .jsonl with 'text', or a folder; repeat it."),
    ] = None,
    model_id: ModelOption = DEFAULT_MODEL,
    sae_release: ReleaseOption = None,
    sae_category: CategoryOption = "resid_post",
    sae_id: IdsOption = None,
    device: DeviceOption = Device.auto,
    export: Annotated[Path | None, typer.Option(help="Write the figures to this .json file.")] = None,
) -> None:
    """Measure how well a dictionary reconstructs what it reads, and what splicing it in costs the model."""
    from rich.console import Console
    from rich.progress import Progress

    from gemlens.data.corpus import documents, read_documents
    from gemlens.report.fidelity import render, to_json
    from gemlens.report.files import check_folder, write

    if not texts:
        raise InputError("no text was given; name some with --texts: about 50 pages make the full 65,536 tokens")
    files = documents(texts)
    release, ids = default_dictionary(model_id, sae_release, sae_id)
    if export is not None:
        check_folder(export.parent)
    notes = Console(stderr=True)
    with notes.status(f"Loading {model_id}"):
        from gemlens.lm.load import load_model
        from gemlens.scope.load import load_sae
        from gemlens.study.fidelity import fidelity as study

        model = load_model(model_id, device=device.value, dtype="float32")
    results = []
    for name in dict.fromkeys(ids):
        dictionary = load_sae(release, name, category=sae_category, device=model.device)
        with Progress(console=notes, transient=True) as progress:
            task = progress.add_task(f"Measuring {dictionary.info.id}", total=None)

            def show(done: int, total: int, task: int = task, progress: Progress = progress) -> None:
                progress.update(task, completed=done, total=total)  # type: ignore[arg-type]

            documents_of_all = (text for file in files for text in read_documents(file))
            results.append(study(model, dictionary, documents_of_all, report=show))
        render(results[-1], Console())
    if export is not None:
        write(to_json(results), export)
        notes.print(f"wrote {export}", highlight=False, soft_wrap=True)
