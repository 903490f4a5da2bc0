"""``gemlens collect``: read a lot of text with a model, and keep what it computes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gemlens.app.collect_features import features
from gemlens.app.console import notes, tell
from gemlens.app.load import load_model_only
from gemlens.app.options import (
    DEFAULT_MODEL,
    Device,
    DeviceOption,
    Dtype,
    ModelOption,
    check_model,
    check_seed,
    parse_count,
)
from gemlens.app.output import prepared
from gemlens.app.token_bar import token_bar
from gemlens.errors import InputError
from gemlens.sites import parse_site

if TYPE_CHECKING:
    from rich.console import Console

    from gemlens.data.activations import StoreInfo

__all__ = ["collect"]

collect = typer.Typer(add_completion=False, rich_markup_mode=None)


@collect.callback(invoke_without_command=True)
def _root(context: typer.Context) -> None:
    """Read a lot of text with a model, and keep what it computes."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


collect.command(short_help="Evidence of what features mean: examples, histograms, logits.")(features)


@collect.command(short_help="Activations at a few sites, to train dictionaries on.")
def activations(
    texts: Annotated[
        list[Path] | None,
        typer.Option(
            help="What to read: .txt; .jsonl or .parquet with 'text'; a folder of them; or a data set of the hub, as "
            "hf:OWNER/NAME; repeat it.",
            metavar="PATH",
        ),
    ] = None,
    sites: Annotated[
        str, typer.Option("--sites", help="Where to read, e.g. resid_post.5,resid_post.12.", metavar="SITES")
    ] = "resid_post.12",
    tokens: Annotated[str, typer.Option(help="Tokens to store, e.g. 50k or 2M.", metavar="COUNT")] = "2M",
    out: Annotated[
        Path | None, typer.Option(help="Folder of the activations; goes on with what is there.", metavar="FOLDER")
    ] = None,
    model_id: ModelOption = DEFAULT_MODEL,
    row_length: Annotated[int, typer.Option(help="Tokens of a row of text, BOS included.", metavar="INT")] = 256,
    dtype: Annotated[
        Dtype,
        typer.Option(
            help="Of model and activations: auto, quick, float32, bfloat16 or float16; quick is bfloat16 wherever the "
            "processor has instructions for it, else float32.",
            metavar="NAME",
        ),
    ] = Dtype.quick,
    seed: Annotated[int, typer.Option(help="Of the order of the text.", metavar="INT")] = 0,
    device: DeviceOption = Device.auto,
) -> None:
    """Store a model's activations on disk, so that several dictionaries, or several passes, train on one reading.

    A run that was stopped goes on when the same command is given again.
    """
    if not texts:
        raise InputError("no text was given; name some with --texts: a file, a folder, or hf:OWNER/NAME")
    if out is None:
        raise InputError("no folder was given; name one with --out, it is created if need be")
    check_model(model_id)
    check_seed(seed)
    places = [parse_site(site.strip()) for site in sites.split(",")]
    wanted = parse_count("--tokens", tokens)
    from gemlens.data.corpus import documents

    files = documents([path.expanduser() for path in texts])
    out = out.expanduser()
    console = notes()
    with prepared("--out", out, ["manifest.json"]):
        model, _ = load_model_only(console, model_id, device=device.value, dtype=dtype.value)
        from gemlens.train.collect import collect_activations

        with token_bar(console) as report:
            try:
                store = collect_activations(
                    model,
                    files,
                    places,
                    out,
                    tokens=wanted,
                    row_length=row_length,
                    seed=seed,
                    begin=lambda info, size: _announce(console, out, info, size),
                    report=report,
                )
            except KeyboardInterrupt:
                tell(console, f"stopped; the same command goes on with what {out} holds")
                raise
    if store.tokens < wanted:
        tell(console, f"warning: the text ends after {store.tokens:,} of {wanted:,} tokens")
    tell(console, f"{out} holds {store.tokens:,} tokens at {sites} in {len(store.shard_tokens)} shards")


def _announce(console: Console, out: Path, info: StoreInfo, size: int) -> None:
    whole = info.tokens * info.token_bytes
    if not size:
        tell(console, f"{out} is complete")
    else:
        rest = "" if size >= whole else f", {size / 1e6:,.1f} MB of it still to come"
        tell(
            console,
            f"writing {whole / 1e6:,.1f} MB to {out}: {info.tokens:,} tokens of {info.token_bytes:,} bytes{rest}",
        )
