"""``gemlens attribute``: what each feature does to a logit, a loss or another feature."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from gemlens.app.attribution_options import (
    FEWEST_STEPS,
    Asked,
    MethodName,
    ReportKind,
    ReportOption,
    check_target,
    file_names,
    method_of,
    target_of,
    written,
)
from gemlens.app.console import busy, notes, results, tell
from gemlens.app.load import load
from gemlens.app.options import (
    DEFAULT_MODEL,
    CategoryOption,
    ChatOption,
    Device,
    DeviceOption,
    Dtype,
    DtypeOption,
    IdsOption,
    ModelOption,
    OutDirOption,
    ReleaseOption,
    SystemOption,
    check_sources,
    default_dictionary,
)
from gemlens.app.output import prepared
from gemlens.app.prompts import read_prompts
from gemlens.errors import InputError

__all__ = ["attribute"]

_NAME = "attribution"


def attribute(
    prompt: Annotated[
        str | None, typer.Option("--prompt", help="Text to read; - for standard input.", metavar="TEXT")
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            "--target",
            help="One token, whose logit is explained, with the space that belongs to it: ' Paris'.",
            metavar="TOKEN",
        ),
    ] = None,
    minus: Annotated[
        str | None,
        typer.Option("--minus", help="Explain the logit of --target minus that of this token.", metavar="TOKEN"),
    ] = None,
    log_probability: Annotated[
        bool, typer.Option("--log-prob", help="Explain the log-probability of --target, not its logit.")
    ] = False,
    loss: Annotated[
        bool, typer.Option("--loss", help="Explain the mean cross-entropy of the prompt's tokens.")
    ] = False,
    target_feature: Annotated[
        int | None,
        typer.Option("--target-feature", help="Explain this feature of --target-sae-id.", metavar="INT"),
    ] = None,
    target_sae_id: Annotated[
        str | None,
        typer.Option("--target-sae-id", help="Dictionary of --target-feature, of the same release.", metavar="ID"),
    ] = None,
    position: Annotated[
        int,
        typer.Option(
            help="Token after which, or at which, the target is read; -1 is the prompt's last.", metavar="INT"
        ),
    ] = -1,
    method: Annotated[
        MethodName,
        typer.Option(
            help="gradient (x activation), integrated (gradients), ablation (exact, one run each) or direct (on the "
            "logits, past all later blocks).",
            metavar="NAME",
        ),
    ] = MethodName.gradient,
    steps: Annotated[int, typer.Option(help="Of integrated gradients, at most.", metavar="INT")] = 64,
    verify: Annotated[
        int,
        typer.Option(help="Remove so many features of largest effect, one at a time, and compare.", metavar="INT"),
    ] = 0,
    top_k: Annotated[int, typer.Option("--top-k", help="Features to list.", metavar="INT")] = 15,
    system: SystemOption = None,
    model_id: ModelOption = DEFAULT_MODEL,
    sae_release: ReleaseOption = None,
    sae_category: CategoryOption = "resid_post",
    sae_id: IdsOption = None,
    chat: ChatOption = None,
    device: DeviceOption = Device.auto,
    dtype: DtypeOption = Dtype.auto,
    export: ReportOption = None,
    out_dir: OutDirOption = Path("outputs"),
) -> None:
    """Say what every active feature at every token does to a number that the model computes from a prompt."""
    asked = Asked(target, minus, log_probability, loss, target_feature, target_sae_id, position)
    if prompt is None:
        raise InputError("no prompt was given; say what the model reads with --prompt TEXT, or - for standard input")
    check_target(asked)
    _check_numbers(steps=steps, verify=verify, top_k=top_k)
    release, ids = default_dictionary(model_id, sae_release, sae_id)
    also = [] if target_sae_id is None else [target_sae_id]
    check_sources(model_id, release, sae_category, [*ids, *also])
    [todo] = read_prompts(prompt, None, system)
    kinds = list(dict.fromkeys(export or []))
    out_dir, console = out_dir.expanduser(), notes()
    with ExitStack() as stack:
        if kinds:
            stack.enter_context(prepared("--out-dir", out_dir, file_names(_NAME, kinds)))
        loaded, model, _ = load(
            console, model_id, release, sae_category, [*ids, *also], device=device.value, dtype=dtype.value
        )
        from gemlens.report import attribution as report
        from gemlens.report.attribution_page import to_html
        from gemlens.study.attribute import attribute as study

        goal = target_of(asked, loaded[-1] if also else None)
        with busy(console, "Attributing"):
            record = study(
                model,
                loaded[: len(ids)],
                todo.text,
                goal,
                method=method_of(method, steps),
                verify=verify,
                system=todo.system,
                chat=chat,
            )
        made = {
            ReportKind.html: lambda: to_html(record),
            ReportKind.json: lambda: report.to_json(record),
            ReportKind.jsonl: lambda: report.to_jsonl(record),
        }
        paths = written(_NAME, kinds, out_dir, made)
        with results() as table:
            report.render(record, table, top_k=top_k)
        for path in paths:
            tell(console, f"wrote {path}")


def _check_numbers(*, steps: int, verify: int, top_k: int) -> None:
    if steps < FEWEST_STEPS:
        raise InputError(f"--steps {steps}: integrated gradients take {FEWEST_STEPS} or more; the default is 64")
    if verify < 0:
        raise InputError(f"--verify {verify}: 0 removes nothing, more removes so many features")
    if top_k < 1:
        raise InputError(f"--top-k {top_k}: list at least 1 feature")
