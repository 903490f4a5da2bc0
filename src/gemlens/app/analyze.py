"""``gemlens analyze``: which features fire on each token."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gemlens.app.options import (
    DEFAULT_MODEL,
    CategoryOption,
    Device,
    DeviceOption,
    Dtype,
    DtypeOption,
    IdsOption,
    ModelOption,
    ReleaseOption,
    default_dictionary,
)
from gemlens.app.prompts import Prompt, read_prompts
from gemlens.errors import InputError, MismatchError

if TYPE_CHECKING:
    from rich.console import Console

    from gemlens.lm.gemma import Model
    from gemlens.records import Analysis
    from gemlens.scope.sae import SAE

__all__ = ["analyze"]


class Export(StrEnum):
    html = "html"
    json = "json"
    jsonl = "jsonl"


def analyze(
    prompt: Annotated[
        str, typer.Option(help="Text to read; - for standard input.")
    ] = "Explain what a sparse autoencoder is in plain language.",
    prompts: Annotated[
        Path | None, typer.Option(help="Many: a .txt file, one a line, or .jsonl with prompt and optional system.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="Text before the prompt.")] = None,
    model_id: ModelOption = DEFAULT_MODEL,
    sae_release: ReleaseOption = None,
    sae_category: CategoryOption = "resid_post",
    sae_id: IdsOption = None,
    layer: Annotated[
        int | None, typer.Option(help="Refused if the dictionary is of another.", show_default="the dictionary's")
    ] = None,
    top_k: Annotated[int, typer.Option(help="Features to list a token.")] = 5,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to generate; 0 reads the prompt only.")] = 64,
    temperature: Annotated[float, typer.Option(help="Of sampling; 0 is greedy.")] = 0.7,
    top_p: Annotated[float, typer.Option(help="Nucleus of sampling.")] = 0.95,
    greedy: Annotated[bool, typer.Option("--greedy", help="Take the likeliest token each time.")] = False,
    chat: Annotated[
        bool | None,
        typer.Option("--chat/--no-chat", help="Use the chat template.", show_default="where the tokenizer has one"),
    ] = None,
    device: DeviceOption = Device.auto,
    dtype: DtypeOption = Dtype.auto,
    export: Annotated[
        list[Export] | None, typer.Option(help="html, json or jsonl; repeat it.", show_default="table only")
    ] = None,
    out_dir: Annotated[Path, typer.Option(help="Where exports go.")] = Path("outputs"),
    seed: Annotated[int, typer.Option(help="Of sampling.")] = 0,
) -> None:
    """Show which features of a dictionary fire on each token of a prompt and of the model's answer."""
    from rich.console import Console

    from gemlens.report.files import check_folder

    _check(top_k, max_new_tokens, temperature, top_p)
    todo = read_prompts(prompt, prompts, system)
    release, ids = default_dictionary(model_id, sae_release, sae_id)
    kinds = [kind.value for kind in dict.fromkeys(export or [])]
    if kinds:
        check_folder(out_dir)
    notes = Console(stderr=True)
    dictionaries, model = _load(
        notes, model_id, release, sae_category, ids, layer, device=device.value, dtype=dtype.value
    )
    settings: dict[str, Any] = {
        "chat": chat,
        "top_k": top_k,
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "greedy": greedy,
        "seed": seed,
    }
    if prompts is None:
        _one(notes, model, dictionaries, todo[0], kinds, out_dir, settings)
    else:
        _many(notes, model, dictionaries, todo, kinds, out_dir, settings)


def _check(top_k: int, max_new_tokens: int, temperature: float, top_p: float) -> None:
    """The same ranges as the library's, before the seconds that importing torch takes."""
    if top_k < 1:
        raise InputError(f"--top-k {top_k}: list at least 1 feature a token")
    if max_new_tokens < 0:
        raise InputError(f"--max-new-tokens {max_new_tokens}: 0 reads the prompt only, more generates")
    if not 0 <= temperature < float("inf"):
        raise InputError(f"--temperature {temperature}: 0 is greedy, 0.7 the default")
    if not 0 < top_p <= 1:
        raise InputError(f"--top-p {top_p}: must lie above 0 and not exceed 1")


def _load(
    notes: Console,
    model_id: str,
    release: str,
    category: str,
    ids: list[str],
    layer: int | None,
    *,
    device: str,
    dtype: str,
) -> tuple[list[SAE], Model]:
    """Dictionaries first: a slip in their names shows before gigabytes of model are fetched."""
    with notes.status("Loading torch"):
        from gemlens.lm.load import load_model, pick_device
        from gemlens.scope.load import load_sae
        from gemlens.study.fit_check import check_fit

        place = pick_device(device)
    dictionaries = [load_sae(release, name, category=category, device=place) for name in dict.fromkeys(ids)]
    for dictionary in dictionaries:
        if layer is not None and layer != dictionary.info.layer:
            raise MismatchError(
                f"--layer {layer} contradicts {dictionary.info.id}, which reads {dictionary.reads}; "
                f"leave --layer out, or choose a dictionary of layer {layer}"
            )
    with notes.status(f"Loading {model_id}"):
        model = load_model(model_id, device=str(place), dtype=dtype)
    for dictionary in dictionaries:
        check_fit(model, dictionary)
    return dictionaries, model


def _one(
    notes: Console, model: Model, dictionaries: list[SAE], prompt: Prompt, kinds: list[str], out_dir: Path, settings: Any
) -> None:
    from rich.console import Console

    from gemlens.report.files import export
    from gemlens.report.table import render

    new = settings["max_new_tokens"]
    with notes.status(f"Reading the prompt and up to {new} new tokens" if new else "Reading the prompt"):
        analysis = _analyze(model, dictionaries, prompt, settings)
    render(analysis, Console())
    for kind in kinds:
        notes.print(f"wrote {export(analysis, kind, out_dir)}", highlight=False, soft_wrap=True)  # type: ignore[arg-type]


def _many(
    notes: Console,
    model: Model,
    dictionaries: list[SAE],
    prompts: list[Prompt],
    kinds: list[str],
    out_dir: Path,
    settings: Any,
) -> None:
    """One JSONL for all prompts, a report each in ``reports/``; tables where nothing is exported."""
    from rich.console import Console
    from rich.progress import track

    from gemlens.report.files import REPORT, export, write
    from gemlens.report.json import to_jsonl
    from gemlens.report.table import render

    rows: list[str] = []
    digits = len(str(len(prompts)))
    for index, prompt in enumerate(track(prompts, "Reading prompts", console=notes, transient=True)):
        analysis = _analyze(model, dictionaries, prompt, settings)
        if not kinds:
            render(analysis, Console())
        for kind in kinds:
            if kind == "jsonl":
                rows.append(to_jsonl(analysis, prompt_index=index))
            else:
                export(analysis, kind, out_dir / "reports", name=f"{index + 1:0{digits}}")  # type: ignore[arg-type]
    if rows:
        write("".join(rows), out_dir / f"{REPORT}.jsonl")
        notes.print(f"wrote {out_dir / REPORT}.jsonl", highlight=False, soft_wrap=True)
    if set(kinds) - {"jsonl"}:
        notes.print(f"wrote {len(prompts)} reports to {out_dir / 'reports'}", highlight=False, soft_wrap=True)


def _analyze(model: Model, dictionaries: list[SAE], prompt: Prompt, settings: dict[str, Any]) -> Analysis:
    from gemlens.study.analyze import analyze as study

    return study(model, dictionaries, prompt.text, system=prompt.system, **settings)


