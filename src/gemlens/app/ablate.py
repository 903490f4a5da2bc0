"""``gemlens ablate``: what a prompt's predictions lose when features are taken out."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import typer

from gemlens.app.console import busy, notes, results, tell
from gemlens.app.edit_options import (
    BosOption,
    EditExportOption,
    FeaturesOption,
    PositionsOption,
    WhereOption,
    check_positions,
    check_where,
    file_names,
    of_dictionaries,
    parse_features,
    places,
    write_reports,
)
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
    TopKOption,
    TopPOption,
    check_layer,
    check_numbers,
    check_sources,
    default_dictionary,
)
from gemlens.app.output import prepared
from gemlens.app.prompts import read_prompts
from gemlens.errors import InputError

__all__ = ["ablate"]

_NAME = "ablation"


def ablate(
    context: typer.Context,  # noqa: ARG001 - every command takes one
    prompt: PromptOption = DEFAULT_PROMPT,
    system: SystemOption = None,
    model_id: ModelOption = DEFAULT_MODEL,
    sae_release: ReleaseOption = None,
    sae_category: CategoryOption = "resid_post",
    sae_id: IdsOption = None,
    layer: LayerOption = None,
    features: FeaturesOption = None,
    positions: PositionsOption = "all",
    where: WhereOption = None,
    bos: BosOption = False,
    top_k: TopKOption = 10,
    max_new_tokens: MaxNewTokensOption = 0,
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
    """Show what a model expects with and without some features: each taken out alone, and all together."""
    check_numbers(top_k=top_k, max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, seed=seed)
    sampling: dict[str, Any] = {"temperature": temperature, "top_p": top_p, "greedy": greedy, "seed": seed}
    named = parse_features("--features", features)
    if not named:
        raise InputError("no feature was given; name some with --features, as analyze lists them")
    chosen_positions, condition = check_positions(positions), check_where(where)
    release, ids = default_dictionary(model_id, sae_release, sae_id)
    check_sources(model_id, release, sae_category, ids)
    for name in ids:
        check_layer(layer, name)
    [asked] = read_prompts(prompt, None, system)
    kinds, out_dir = list(dict.fromkeys(export or [])), out_dir.expanduser()
    console = notes()
    with ExitStack() as stack:
        if kinds:
            stack.enter_context(prepared("--out-dir", out_dir, file_names(_NAME, kinds)))
        dictionaries, model, _ = load(
            console, model_id, release, sae_category, ids, layer=layer, device=device.value, dtype=dtype.value
        )
        from gemlens.report import ablation as report
        from gemlens.report.edits_page import ablation_to_html
        from gemlens.study.ablation import ablation

        chosen = of_dictionaries("--features", named, dictionaries)
        where_to = places(chosen_positions, condition, chosen[0][0])
        with busy(console, "Reading the prompt with and without the features"):
            record = ablation(
                model,
                chosen,
                asked.text,
                system=asked.system,
                chat=chat,
                bos=bos,
                top_k=top_k,
                max_new_tokens=max_new_tokens,
                **where_to,
                **sampling,
            )
        made = {"html": ablation_to_html, "json": report.to_json, "jsonl": report.to_jsonl}
        written = write_reports(_NAME, kinds, out_dir, made, record)
        with results() as table:
            report.render(record, table)
        for path in written:
            tell(console, f"wrote {path}")
