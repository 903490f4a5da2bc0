"""``gemlens lens``: which tokens features speak for; with a prompt, what each layer of the model predicts."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gemlens.app.attribution_options import ReportKind, ReportOption, file_names, written
from gemlens.app.console import busy, notes, results, tell
from gemlens.app.load import load, load_model_only
from gemlens.app.options import (
    DEFAULT_MODEL,
    CategoryOption,
    ChatOption,
    Device,
    DeviceOption,
    Dtype,
    DtypeOption,
    ModelOption,
    OutDirOption,
    ReleaseOption,
    SystemOption,
    check_model,
    check_sources,
    default_dictionary,
)
from gemlens.app.output import prepared
from gemlens.app.prompts import read_prompts
from gemlens.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from gemlens.records.lens import FeatureLens, ResidualLens

__all__ = ["lens"]

_NAME = "lens"


def lens(
    feature_ids: Annotated[
        list[int] | None, typer.Argument(help="Numbers of features.", metavar="[FEATURE]...")
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option("--prompt", help="Instead of features: a text to read; - for standard input.", metavar="TEXT"),
    ] = None,
    position: Annotated[
        int, typer.Option(help="With --prompt: the token to print; -1 is the last. Reports have all.", metavar="INT")
    ] = -1,
    top_k: Annotated[
        int | None, typer.Option("--top-k", help="Tokens to list.  [default: 10, with --prompt 5]", metavar="INT")
    ] = None,
    system: SystemOption = None,
    model_id: ModelOption = DEFAULT_MODEL,
    sae_release: ReleaseOption = None,
    sae_category: CategoryOption = "resid_post",
    sae_id: Annotated[
        str | None,
        typer.Option(
            "--sae-id", help="Dictionary. An id with a / carries its category.  [default: as in analyze]", metavar="ID"
        ),
    ] = None,
    chat: ChatOption = None,
    device: DeviceOption = Device.auto,
    dtype: DtypeOption = Dtype.auto,
    export: ReportOption = None,
    out_dir: OutDirOption = Path("outputs"),
) -> None:
    """Show which tokens features speak for and against, or with --prompt what each layer would predict next."""
    ids = list(dict.fromkeys(feature_ids or []))
    _check(ids, prompt, top_k)
    kinds = list(dict.fromkeys(export or []))
    out_dir, console = out_dir.expanduser(), notes()
    with ExitStack() as stack:
        if prompt is None:
            release, [name] = default_dictionary(model_id, sae_release, [sae_id] if sae_id is not None else None)
            check_sources(model_id, release, sae_category, [name])
        else:
            check_model(model_id)
            [todo] = read_prompts(prompt, None, system)
        if kinds:
            stack.enter_context(prepared("--out-dir", out_dir, file_names(_NAME, kinds)))
        if prompt is None:
            record, draw, page = _of_features(
                console, model_id, release, sae_category, name, ids, top_k or 10, device.value, dtype.value
            )
        else:
            model, _ = load_model_only(console, model_id, device=device.value, dtype=dtype.value)
            from gemlens.study.lens import residual_lens

            with busy(console, "Reading the prompt"):
                read = residual_lens(model, todo.text, top_k=top_k or 5, system=todo.system, chat=chat)
            record, draw, page = read, *_views_of(read, position)
        from gemlens.report.lens import to_json, to_jsonl

        made = {
            ReportKind.html: page,
            ReportKind.json: lambda: to_json(record),
            ReportKind.jsonl: lambda: to_jsonl(record),
        }
        paths = written(_NAME, kinds, out_dir, made)
        with results() as table:
            draw(table)
        for path in paths:
            tell(console, f"wrote {path}")


Drawn = tuple["FeatureLens | ResidualLens", "Callable[[Console], None]", Callable[[], str]]


def _of_features(
    console: Console,
    model_id: str,
    release: str,
    category: str,
    name: str,
    ids: list[int],
    top_k: int,
    device: str,
    dtype: str,
) -> Drawn:
    [dictionary], model, _ = load(console, model_id, release, category, [name], device=device, dtype=dtype)
    from gemlens.report.lens import render_features
    from gemlens.report.lens_page import features_to_html
    from gemlens.scope.evidence import evidence_at_hand
    from gemlens.study.lens import lens as study

    known = [feature for feature in ids if feature < dictionary.width]
    evidence = evidence_at_hand(dictionary.info)
    shipped = evidence.examples.top_tokens(known) if evidence else None
    record = study(model, dictionary, ids, top_k=top_k, shipped=shipped)
    return record, lambda table: render_features(record, table), lambda: features_to_html(record)


def _views_of(record: ResidualLens, position: int) -> tuple[Callable[[Console], None], Callable[[], str]]:
    from gemlens.report.lens import render_residual
    from gemlens.report.lens_page import residual_to_html

    n = len(record.tokens)
    if not -n <= position < n:
        raise InputError(f"--position {position} does not exist: the prompt has {n} tokens, 0 to {n - 1}, BOS counted")
    return lambda table: render_residual(record, table, position=position), lambda: residual_to_html(record)


def _check(ids: list[int], prompt: str | None, top_k: int | None) -> None:
    if not ids and prompt is None:
        raise InputError("no feature is named; give numbers, as in gemlens lens 1234, or a text with --prompt")
    if ids and prompt is not None:
        raise InputError("features and --prompt are two lenses; leave out one of them")
    if ids and min(ids) < 0:
        raise InputError(f"feature {min(ids)}: numbers start at 0")
    if top_k is not None and top_k < 1:
        raise InputError(f"--top-k {top_k}: list at least 1 token")
