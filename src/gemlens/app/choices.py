"""``gemlens choices``: what fires for the right answer and not for the wrong one."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gemlens.app.choices_options import (
    DEFAULT_CHOICES_MODEL,
    L0Option,
    LayersOption,
    ScopeOption,
    SitesOption,
    Token,
    TokenOption,
    View,
    ViewOption,
    WidthOption,
    files_of,
    parse_l0,
    parse_sites,
    parse_width,
    release_of,
)
from gemlens.app.console import busy, notes, results, tell
from gemlens.app.load import load_model_only
from gemlens.app.measuring import progress
from gemlens.app.options import (
    Device,
    DeviceOption,
    Dtype,
    DtypeOption,
    ModelOption,
    SeedOption,
    check_seed,
    check_sources,
    parse_count,
    was_given,
)
from gemlens.app.output import prepared
from gemlens.errors import InputError
from gemlens.lm.starter import STARTER_NAME
from gemlens.scope.starter import STARTER_RELEASE

if TYPE_CHECKING:
    from rich.console import Console

    from gemlens.data.items import Items
    from gemlens.records.choices import Choices
    from gemlens.records.labels import Labels
    from gemlens.scope.listing import Listed

__all__ = ["choices", "listed", "run_choices"]

_DEFAULT_OUTPUT = Path("piqa_sae_top100_all_layers.json")


def choices(
    context: typer.Context,
    dataset: Annotated[
        str,
        typer.Option(
            help="piqa (from the hub), builtin (fifty items that ship with gemlens), hf:OWNER/NAME:CONFIG:SPLIT, or a "
            ".jsonl, .json, .csv, .tsv or .parquet file of items.",
            metavar="DATA",
        ),
    ] = "piqa",
    labels: Annotated[
        Path | None, typer.Option(help="One label a line, for rows without; PIQA's own are found.", metavar="FILE")
    ] = None,
    fields: Annotated[
        str | None,
        typer.Option(help="Columns of an unknown shape, as question=stem,choices=a+b,label=key.", metavar="MAPPING"),
    ] = None,
    split: Annotated[str | None, typer.Option(help="Of a data set of the hub.", metavar="NAME")] = None,
    num_samples: Annotated[str, typer.Option(help="Items drawn at random, or all.", metavar="INT")] = "50",
    output_file: Annotated[
        Path, typer.Option(help="The JSON; views and a side file go beside it.", metavar="FILE")
    ] = _DEFAULT_OUTPUT,
    top_k: Annotated[int, typer.Option(help="Features to list of each choice and layer.", metavar="INT")] = 100,
    model_id: ModelOption = DEFAULT_CHOICES_MODEL,
    sae_release: ScopeOption = None,
    layers: LayersOption = "all",
    sites: SitesOption = "resid_post",
    width: WidthOption = None,
    l0: L0Option = "100",
    token: TokenOption = Token.last,
    cause: Annotated[
        int, typer.Option(help="Ablate so many features on the half of the items they were not chosen on.", metavar="K")
    ] = 0,
    draws: Annotated[int, typer.Option(help="Of random features, beside each ablation.", metavar="INT")] = 20,
    lens: Annotated[int, typer.Option(help="Items whose margin is followed through the layers.", metavar="INT")] = 50,
    export: ViewOption = None,
    device: DeviceOption = Device.auto,
    dtype: DtypeOption = Dtype.auto,
    seed: SeedOption = 0,
) -> None:
    """Score multiple-choice items, and find what fires at every layer for right answers and not for wrong ones."""
    if sae_release == STARTER_RELEASE and not was_given(context, "model_id"):
        model_id = STARTER_NAME
    release = release_of(model_id, sae_release)
    check_sources(model_id, release, "", [])
    check_seed(seed)
    count = None if num_samples.strip().lower() == "all" else parse_count("--num-samples", num_samples)
    for option, value, least in (("top-k", top_k, 1), ("cause", cause, 0), ("draws", draws, 1), ("lens", lens, 0)):
        if value < least:
            raise InputError(f"--{option} {value}: take {least} or more")
    mapping = _fields(fields)
    console = notes()
    chosen = listed(console, release, sites, layers, width, l0)
    from gemlens.data.items import read_items, sample

    with busy(console, f"Reading {dataset}"):
        items = sample(read_items(dataset, labels=labels, fields=mapping, split=split), count, seed)
    run_choices(
        console,
        items,
        chosen,
        model_id=model_id,
        release=release,
        output=output_file.expanduser(),
        views=export,
        device=device.value,
        dtype=dtype.value,
        token=token.value,
        top_k=top_k,
        lens_items=lens,
        cause=cause,
        draws=draws,
        seed=seed,
    )


def run_choices(
    console: Console,
    items: Items,
    chosen: list[Listed],
    *,
    model_id: str,
    release: str,
    output: Path,
    views: list[View] | None,
    device: str,
    dtype: str,
    **options: Any,
) -> None:
    """Load, study, write, print; a run that was killed goes on in the folder beside ``output``."""
    files = files_of(output, views)
    work = output.with_name(f".{output.stem}.parts")
    with ExitStack() as stack:
        stack.enter_context(prepared("--output-file", output.parent, [path.name for path in files.values()]))
        model, place = load_model_only(console, model_id, release, device=device, dtype=dtype)
        from gemlens.scope.load import load_sae
        from gemlens.sites import Site
        from gemlens.study.choice_features import Source
        from gemlens.study.choice_parts import remove
        from gemlens.study.choices import choices as study

        sources = [
            Source(
                Site(each.layer or 0, str(each.site)),
                partial(load_sae, release, each.path, device=place),
                f"{release}/{each.path}",
            )
            for each in chosen
        ]
        tell(console, f"{len(items.items)} items of {items.name}, {len(sources)} dictionaries of {release}")
        with progress(console) as show:
            found = study(
                model,
                sources,
                items.items,
                dataset=items.name,
                skipped=items.skipped,
                folder=work,
                report=show,
                **options,
            )
        labels, unlabelled = _labels(found)
        for warning in unlabelled:
            tell(console, f"warning: {warning}")
        with busy(console, "Writing"):
            _write(found, labels, files)
        remove(work)
    from gemlens.report.choices_table import render

    with results() as table:
        render(found, table, labels=labels)
    for path in files.values():
        tell(console, f"wrote {path}")


def _write(found: Choices, labels: Labels, files: dict[str, Path]) -> None:
    from gemlens.files import write
    from gemlens.report.choices_json import summary_json, to_json

    write(to_json(found), files["json"])
    if "parquet" in files:
        from gemlens.report.choices_parquet import write_parquet

        write_parquet(found, files["parquet"])
    if "html" in files:
        from gemlens.report.choices_page import to_html

        write(to_html(found, labels=labels), files["html"])
    write(summary_json(found), files["run"])


def listed(console: Console, release: str, sites: str, layers: str, width: str | None, l0: str) -> list[Listed]:
    """The dictionaries, before torch is loaded."""
    from gemlens.scope.listing import listing
    from gemlens.scope.series import parse_layers, series

    names, numbers, features, density = parse_sites(sites), parse_layers(layers), parse_width(width), parse_l0(l0)
    with busy(console, f"Looking up {release}"):
        found = listing(release)
    return series(found, sites=names, layers=numbers, width=features, l0=density)


def _fields(text: str | None) -> dict[str, str] | None:
    """Raises InputError for anything but the three."""
    if text is None:
        return None
    found = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        found[name.strip()] = value.strip()
    if set(found) != {"question", "choices", "label"} or not all(found.values()):
        raise InputError(f"--fields {text[:200]}: write question=NAME,choices=A+B,label=NAME, all three")
    return found


def _labels(found: Choices) -> tuple[Labels, tuple[str, ...]]:
    """What the store calls the features that fired, and a warning where it cannot be read."""
    from gemlens.scope.labels import labels_at_hand

    fired = (set(active.ids.tolist()) for active in found.features)
    return labels_at_hand(zip(found.dictionaries, fired, strict=True))
