"""``gemlens steer``: what a model says with features turned up and down."""

from __future__ import annotations

from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gemlens.app.console import busy, notes, results, tell
from gemlens.app.edit_options import (
    BosOption,
    EditExportOption,
    FeaturesOption,
    Named,
    PositionsOption,
    WhereOption,
    check_positions,
    check_where,
    file_names,
    of_dictionaries,
    parse_features,
    parse_strengths,
    places,
    write_reports,
)
from gemlens.app.load import load, load_model_only
from gemlens.app.options import (
    DEFAULT_MODEL,
    DEFAULT_PROMPT,
    CategoryOption,
    ChatOption,
    Device,
    DeviceOption,
    Dtype,
    DtypeOption,
    GreedyOption,
    IdsOption,
    LayerOption,
    MaxNewTokensOption,
    ModelOption,
    OutDirOption,
    PromptOption,
    ReleaseOption,
    SeedOption,
    SystemOption,
    TemperatureOption,
    TopPOption,
    check_layer,
    check_model,
    check_numbers,
    check_sources,
    default_dictionary,
)
from gemlens.app.output import prepared
from gemlens.app.prompts import read_prompts
from gemlens.errors import InputError
from gemlens.sites import parse_site

if TYPE_CHECKING:
    from rich.console import Console

    from gemlens.records.edits import Steering

__all__ = ["steer"]

_NAME = "steering"


class SteerMode(StrEnum):
    add = "add"
    set = "set"
    scale = "scale"
    orthogonal = "orthogonal"


class RelativeTo(StrEnum):
    max = "max"
    norm = "norm"
    none = "none"


def steer(
    context: typer.Context,  # noqa: ARG001 - every command takes one
    prompt: PromptOption = DEFAULT_PROMPT,
    system: SystemOption = None,
    model_id: ModelOption = DEFAULT_MODEL,
    sae_release: ReleaseOption = None,
    sae_category: CategoryOption = "resid_post",
    sae_id: IdsOption = None,
    layer: LayerOption = None,
    features: FeaturesOption = None,
    direction: Annotated[
        Path | None,
        typer.Option(
            help="Steer along a vector of this .safetensors or .npy file instead, with --site.", metavar="FILE"
        ),
    ] = None,
    site: Annotated[str | None, typer.Option(help="Of --direction: where it is added, as resid_post.12.")] = None,
    strength: Annotated[
        float | None, typer.Option(help="One strength, beside the model as it is.", metavar="FLOAT")
    ] = None,
    sweep: Annotated[
        str | None,
        typer.Option(help="Several strengths side by side: -2..2, -2..2/0.5 or -1,0.5,2.", metavar="STRENGTHS"),
    ] = None,
    mode: Annotated[
        SteerMode, typer.Option(help="add, set or scale an activation, or replace a direction (orthogonal).")
    ] = SteerMode.add,
    relative_to: Annotated[
        RelativeTo | None,
        typer.Option(
            help="What a strength is counted in: the feature's maximum activation (max), the norm of what passes the "
            "site (norm), or activations (none).  [default: max; none with --mode scale or --direction]"
        ),
    ] = None,
    maximum: Annotated[
        float | None,
        typer.Option(help="The maximum activation, where no file beside the dictionary says it.", metavar="FLOAT"),
    ] = None,
    positions: PositionsOption = "all",
    where: WhereOption = None,
    bos: BosOption = False,
    max_new_tokens: MaxNewTokensOption = 40,
    temperature: TemperatureOption = 0.7,
    top_p: TopPOption = 0.95,
    greedy: GreedyOption = False,
    chat: ChatOption = None,
    device: DeviceOption = Device.auto,
    dtype: DtypeOption = Dtype.auto,
    export: EditExportOption = None,
    out_dir: OutDirOption = Path("outputs"),
    seed: SeedOption = 0,
) -> None:
    """Continue a prompt with features steered by one or several strengths, side by side with the model as it is."""
    check_numbers(top_k=1, max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, seed=seed)
    if not max_new_tokens:
        raise InputError("--max-new-tokens 0: steering shows in what is generated; take 1 or more")
    named = parse_features("--features", features)
    _check_subject(named, direction, site, sae_id)
    plain = direction is not None or mode == SteerMode.scale
    unit = relative_to or (RelativeTo.none if plain else RelativeTo.max)
    if maximum is not None and unit != RelativeTo.max:
        raise InputError(f"--maximum {maximum:g} goes with --relative-to max; leave it out")
    strengths, chosen_positions, condition = (
        parse_strengths(strength, sweep),
        check_positions(positions),
        check_where(where),
    )
    [asked] = read_prompts(prompt, None, system)
    settings: dict[str, Any] = {
        "mode": mode.value,
        "relative_to": None if unit == RelativeTo.none else unit.value,
        "system": asked.system,
        "bos": bos,
        "chat": chat,
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "greedy": greedy,
        "seed": seed,
    }
    run: dict[str, Any] = {"device": device.value, "dtype": dtype.value}
    kinds, out_dir = list(dict.fromkeys(export or [])), out_dir.expanduser()
    console = notes()
    with ExitStack() as stack:
        if kinds:
            stack.enter_context(prepared("--out-dir", out_dir, file_names(_NAME, kinds)))
        given = (asked.text, strengths, chosen_positions, condition)
        if direction is not None:
            check_model(model_id)
            record = _along(console, model_id, direction.expanduser(), str(site), *given, settings, run)
        else:
            release, ids = default_dictionary(model_id, sae_release, sae_id)
            check_sources(model_id, release, sae_category, ids)
            check_layer(layer, ids[0])
            source = (model_id, release, sae_category, ids)
            record = _features(console, source, named, *given, settings, run | {"layer": layer}, maximum)
        _show(console, record, kinds, out_dir)


def _check_subject(named: list[Named], direction: Path | None, site: str | None, sae_id: list[str] | None) -> None:
    if bool(named) == (direction is not None):
        raise InputError("give --features to steer, as analyze lists them, or a --direction FILE with its --site")
    if (direction is None) != (site is None):
        raise InputError("--direction FILE and --site, as resid_post.12, go together; a feature knows its own site")
    if site is not None:
        parse_site(site)
    if sae_id and (len(sae_id) > 1 or direction is not None):
        raise InputError("steer takes the features of one --sae-id, or a --direction; nest several in Python")


def _features(
    console: Console,
    source: tuple[str, str, str, list[str]],
    named: list[Named],
    prompt: str,
    strengths: list[float],
    positions: Any,
    condition: tuple[int, float] | None,
    settings: dict[str, Any],
    run: dict[str, Any],
    maximum: float | None,
) -> Steering:
    dictionaries, model, _ = load(console, *source, **run)
    from gemlens.study.steering import steer_sweep

    [(dictionary, ids)] = of_dictionaries("--features", named, dictionaries)
    where_to = places(positions, condition, dictionary)
    with busy(console, f"Generating under {len(strengths)} strengths"):
        return steer_sweep(model, dictionary, ids, prompt, strengths, maximum=maximum, **where_to, **settings)


def _along(
    console: Console,
    model_id: str,
    direction: Path,
    site: str,
    prompt: str,
    strengths: list[float],
    positions: Any,
    condition: tuple[int, float] | None,
    settings: dict[str, Any],
    run: dict[str, Any],
) -> Steering:
    from gemlens.study.directions import load_direction
    from gemlens.study.steering import steer_direction_sweep

    vector = load_direction(direction)
    where_to = places(positions, condition, None)
    model, _ = load_model_only(console, model_id, **run)
    with busy(console, f"Generating under {len(strengths)} strengths"):
        return steer_direction_sweep(
            model, site, vector, prompt, strengths, name=direction.name, **where_to, **settings
        )


def _show(console: Console, record: Steering, kinds: list[Any], out_dir: Path) -> None:
    from gemlens.report import steering as report
    from gemlens.report.edits_page import steering_to_html

    made = {"html": steering_to_html, "json": report.to_json, "jsonl": report.to_jsonl}
    written = write_reports(_NAME, kinds, out_dir, made, record)
    with results() as table:
        report.render(record, table)
    for path in written:
        tell(console, f"wrote {path}")
