"""``gemlens analyze``: which features fire on each token."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gemlens.app.console import busy, notes, results, tell
from gemlens.app.edit_options import of_dictionaries, parse_features
from gemlens.app.load import load
from gemlens.app.options import (
    DEFAULT_MODEL,
    DEFAULT_PROMPT,
    CategoryOption,
    ChatOption,
    Device,
    DeviceOption,
    Dtype,
    DtypeOption,
    ExportOption,
    GreedyOption,
    IdsOption,
    LayerOption,
    MaxNewTokensOption,
    ModelOption,
    OutDirOption,
    PromptOption,
    PromptsOption,
    ReleaseOption,
    SeedOption,
    SystemOption,
    TemperatureOption,
    TopKOption,
    TopPOption,
    check_layer,
    check_numbers,
    check_sources,
    default_dictionary,
    was_given,
)
from gemlens.app.output import prepared
from gemlens.app.prompts import Prompt, read_prompts
from gemlens.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from gemlens.lm.gemma import Model
    from gemlens.records import Analysis
    from gemlens.records.feature import FeaturePage
    from gemlens.report.files import Kind
    from gemlens.scope.sae import SAE

__all__ = ["analyze"]

# Exports of which one file holds all prompts.
_FOR_ALL = ("jsonl", "parquet")


def analyze(
    context: typer.Context,
    prompt: PromptOption = DEFAULT_PROMPT,
    prompts: PromptsOption = None,
    system: SystemOption = None,
    model_id: ModelOption = DEFAULT_MODEL,
    sae_release: ReleaseOption = None,
    sae_category: CategoryOption = "resid_post",
    sae_id: IdsOption = None,
    layer: LayerOption = None,
    top_k: TopKOption = 5,
    max_new_tokens: MaxNewTokensOption = 64,
    temperature: TemperatureOption = 0.7,
    top_p: TopPOption = 0.95,
    greedy: GreedyOption = False,
    chat: ChatOption = None,
    device: DeviceOption = Device.auto,
    dtype: DtypeOption = Dtype.auto,
    export: ExportOption = None,
    out_dir: OutDirOption = Path("outputs"),
    seed: SeedOption = 0,
    exclude_features: Annotated[
        list[str] | None,
        typer.Option(
            help="Take features out of the model and of the lists: 1634,99, or with several dictionaries "
            "resid_post.12:1634,99; repeat it.",
            metavar="IDS",
        ),
    ] = None,
    splice: Annotated[
        bool, typer.Option("--splice", help="Put each dictionary's bare reconstruction in place of what it reads.")
    ] = False,
) -> None:
    """Show which features of a dictionary fire on each token of a prompt and of the model's answer."""
    numbers: dict[str, Any] = {
        "top_k": top_k,
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "seed": seed,
    }
    check_numbers(**numbers)
    release, ids = default_dictionary(model_id, sae_release, sae_id)
    check_sources(model_id, release, sae_category, ids)
    for name in ids:
        check_layer(layer, name)
    if prompts is not None and was_given(context, "prompt"):
        raise InputError(f"--prompt and --prompts {prompts} exclude each other; give one of them")
    excluded = parse_features("--exclude-features", exclude_features)
    todo = read_prompts(prompt, prompts, system)
    kinds: list[Kind] = [kind.value for kind in dict.fromkeys(export or [])]
    out_dir = out_dir.expanduser()
    console = notes()
    with ExitStack() as stack:
        if kinds:
            stack.enter_context(prepared("--out-dir", out_dir, _file_names(kinds, many=prompts is not None)))
        dictionaries, model, warnings = load(
            console, model_id, release, sae_category, ids, layer=layer, device=device.value, dtype=dtype.value
        )
        settings = numbers | {"chat": chat, "greedy": greedy, "splice": splice}
        if left_out := of_dictionaries("--exclude-features", excluded, dictionaries):
            settings["exclude_features"] = {dictionaries.index(each): features for each, features in left_out}
        if prompts is None:
            _one(console, model, dictionaries, todo[0], kinds, out_dir, settings)
        else:
            _many(console, model, dictionaries, todo, kinds, out_dir, settings, warnings)


def _file_names(kinds: list[Kind], *, many: bool) -> list[str]:
    from gemlens.report.files import REPORT

    return [f"{REPORT}.{kind}" for kind in kinds if kind in _FOR_ALL or not many]


def _one(
    console: Console,
    model: Model,
    dictionaries: list[SAE],
    prompt: Prompt,
    kinds: list[Kind],
    out_dir: Path,
    settings: dict[str, Any],
) -> None:
    from gemlens.report.files import export
    from gemlens.report.table import render

    new = settings["max_new_tokens"]
    with busy(console, f"Reading the prompt and up to {new} new tokens" if new else "Reading the prompt"):
        analysis = _study(model, dictionaries, prompt, settings)
    # Before the table: whoever pipes that into `head` wants the files none the less.
    evidence = _evidence(analysis, kinds)
    written = [export(analysis, kind, out_dir, evidence=evidence) for kind in kinds]
    with results() as table:
        render(analysis, table)
    for path in written:
        tell(console, f"wrote {path}")


def _many(
    console: Console,
    model: Model,
    dictionaries: list[SAE],
    prompts: list[Prompt],
    kinds: list[Kind],
    out_dir: Path,
    settings: dict[str, Any],
    warnings: list[str],
) -> None:
    """One JSONL and one Parquet for all prompts, a report each in ``reports/``; tables where nothing is exported."""
    from gemlens.files import write
    from gemlens.report.files import REPORT, export
    from gemlens.report.json import to_jsonl
    from gemlens.report.parquet import parquet_file

    _check_lengths(model, prompts, settings)
    if not kinds:
        _tables(model, dictionaries, prompts, settings)
        return
    for warning in warnings:
        tell(console, f"warning: {warning}")
    rows: list[str] = []
    digits = len(str(len(prompts)))
    with ExitStack() as stack:
        advance = stack.enter_context(_progress(console, len(prompts)))
        add = stack.enter_context(parquet_file(out_dir / f"{REPORT}.parquet")) if "parquet" in kinds else None
        for index, analysis in enumerate(_studies(model, dictionaries, prompts, settings, advance)):
            evidence = _evidence(analysis, kinds)
            for kind in kinds:
                if kind not in _FOR_ALL:
                    export(analysis, kind, out_dir / "reports", name=f"{index + 1:0{digits}}", evidence=evidence)
            if "jsonl" in kinds:
                rows.append(to_jsonl(analysis, prompt_index=index))
            if add is not None:
                add(analysis, index)
            advance(1)
    if rows:
        write("".join(rows), out_dir / f"{REPORT}.jsonl")
    for name in [name for name in _FOR_ALL if name in kinds]:
        tell(console, f"wrote {out_dir / REPORT}.{name}")
    if pages := len(set(kinds) - set(_FOR_ALL)) * len(prompts):
        tell(console, f"wrote {pages} report{'s' * (pages > 1)} to {out_dir / 'reports'}")


def _tables(model: Model, dictionaries: list[SAE], prompts: list[Prompt], settings: dict[str, Any]) -> None:
    from rich.text import Text

    from gemlens.report.table import plain, render

    with results() as console:
        analyses = _studies(model, dictionaries, prompts, settings)
        for index, (prompt, analysis) in enumerate(zip(prompts, analyses, strict=True), 1):
            title = f"Prompt {index} of {len(prompts)}: {plain(prompt.text, console)}"
            console.print(Text("\n" * (index > 1) + title, style="bold"), no_wrap=True, overflow="ellipsis")
            render(analysis, console)


@contextmanager
def _progress(console: Console, prompts: int) -> Iterator[Callable[[int], None]]:
    """A bar to move by two steps a prompt, read and written: prompts are read ahead."""
    from rich.progress import Progress

    if not console.is_terminal:  # where nothing can move, rich would leave an empty line
        yield lambda _steps: None
        return
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("Reading prompts", total=2 * prompts)
        yield lambda steps: bar.advance(task, steps)


def _check_lengths(model: Model, prompts: list[Prompt], settings: dict[str, Any]) -> None:
    """Refuse before the first prompt what would stop at the last."""
    from gemlens.lm.text import encode_prompt, prompt_text

    for prompt in prompts:
        text = prompt_text(model, prompt.text, system=prompt.system, chat=settings["chat"])
        try:
            encode_prompt(model, text, room=settings["max_new_tokens"])
        except InputError as error:
            raise InputError(f"{prompt.where}: {error}") from error


def _studies(
    model: Model,
    dictionaries: list[SAE],
    prompts: list[Prompt],
    settings: dict[str, Any],
    report: Callable[[int], None] = lambda _read: None,
) -> Iterator[Analysis]:
    """In batches, but with generation one at a time: an answer must not depend on what else stands in the file. Nor are
    edits made in batches."""
    if settings["max_new_tokens"] or settings["splice"] or "exclude_features" in settings:
        for prompt in prompts:
            yield _study(model, dictionaries, prompt, settings)
            report(1)
        return
    from gemlens.study.analyze import analyze_many

    pairs = ((prompt.text, prompt.system) for prompt in prompts)
    options = {name: settings[name] for name in ("chat", "top_k")}
    yield from analyze_many(model, dictionaries, pairs, **options, report=report)


def _evidence(analysis: Analysis, kinds: list[Kind]) -> dict[int, dict[int, FeaturePage]]:
    """For the page, what is at hand on the features that it names."""
    if "html" not in kinds:
        return {}
    from gemlens.study.glance import evidence_of

    return evidence_of(analysis)


def _study(model: Model, dictionaries: list[SAE], prompt: Prompt, settings: dict[str, Any]) -> Analysis:
    from gemlens.study.analyze import analyze as study

    return study(model, dictionaries, prompt.text, system=prompt.system, **settings)
