"""``gemlens train``: dictionaries of your own, for any site, layer, text or fine-tune."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from gemlens.app.console import notes
from gemlens.app.options import (
    DEFAULT_MODEL,
    Device,
    DeviceOption,
    Dtype,
    ModelOption,
    check_model,
    check_seed,
    parse_count,
    was_given,
)
from gemlens.app.output import prepared
from gemlens.errors import InputError
from gemlens.sites import parse_site
from gemlens.train.config import FitConfig

__all__ = ["train"]


class Kind(StrEnum):
    sae = "sae"
    transcoder = "transcoder"
    clt = "clt"


class Activation(StrEnum):
    batchtopk = "batchtopk"
    jumprelu = "jumprelu"
    topk = "topk"


class SaveDtype(StrEnum):
    bfloat16 = "bfloat16"
    float32 = "float32"
    int8 = "int8"


class Split(StrEnum):
    dictionaries = "dictionaries"
    features = "features"


def train(
    context: typer.Context,
    kind: Annotated[Kind, typer.Argument(help="sae, transcoder or clt.", metavar="KIND")],
    texts: Annotated[
        list[Path] | None,
        typer.Option(
            help="What to read: .txt; .jsonl or .parquet with 'text'; a folder of them; or a data set of the hub, as "
            "hf:OWNER/NAME; repeat it.",
            metavar="PATH",
        ),
    ] = None,
    store: Annotated[
        Path | None,
        typer.Option(help="In place of --texts: a folder of gemlens collect activations.", metavar="FOLDER"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the dictionaries; goes on with what is there.", metavar="FOLDER")
    ] = None,
    sites: Annotated[
        str | None,
        typer.Option(
            "--sites", help="Of SAEs: one is trained for each, e.g. resid_post.5,resid_post.12.", metavar="SITES"
        ),
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(
            "--layers", help="Of transcoders, one for each, and of a CLT: e.g. 0-17 or 3,9,15.", metavar="LAYERS"
        ),
    ] = None,
    width: Annotated[int, typer.Option(help="Features; of a CLT, of each layer.", metavar="INT")] = FitConfig.width,
    l0: Annotated[
        float, typer.Option("--l0", help="Active features a token; of a CLT, in each layer.", metavar="FLOAT")
    ] = FitConfig.l0,
    activation: Annotated[
        Activation, typer.Option(help="batchtopk, jumprelu or topk; saved as JumpReLU.", metavar="NAME")
    ] = Activation.batchtopk,
    tokens: Annotated[str, typer.Option(help="Tokens to train on, e.g. 50k or 2M.", metavar="COUNT")] = "1.5M",
    batch: Annotated[int, typer.Option(help="Tokens a step.", metavar="INT")] = FitConfig.batch,
    lr: Annotated[float, typer.Option(help="Learning rate.", metavar="FLOAT")] = FitConfig.lr,
    decay: Annotated[
        float, typer.Option(help="Share of the steps over which the learning rate falls to 0.", metavar="FLOAT")
    ] = FitConfig.decay,
    refit: Annotated[
        str | None,
        typer.Option(help="At the end, solve decoders by least squares on so many tokens: 500k.", metavar="COUNT"),
    ] = None,
    groups: Annotated[
        str, typer.Option(help="Matryoshka: sizes below the width, e.g. 256,1024.", metavar="SIZES")
    ] = "",
    skip: Annotated[bool, typer.Option("--skip", help="An affine path beside the features; not of SAEs.")] = False,
    dead_after: Annotated[
        int, typer.Option(help="Tokens without firing after which a feature counts as dead.", metavar="INT")
    ] = FitConfig.dead_after,
    norm_limit: Annotated[
        float,
        typer.Option(help="Tokens beyond so many times the median square norm weigh less.", metavar="FLOAT"),
    ] = FitConfig.norm_limit,
    seed: Annotated[int, typer.Option(help="Of weights and of the order of the text.", metavar="INT")] = FitConfig.seed,
    model_id: ModelOption = DEFAULT_MODEL,
    dtype: Annotated[
        Dtype,
        typer.Option(
            help="Of the model: auto, quick, float32, bfloat16 or float16; quick is bfloat16 wherever the processor "
            "has instructions for it, else float32.",
            metavar="NAME",
        ),
    ] = Dtype.quick,
    row_length: Annotated[int, typer.Option(help="Tokens of a row of text, BOS included.", metavar="INT")] = 256,
    passes: Annotated[
        int, typer.Option(help="How often to read the texts, each time in another order.", metavar="INT")
    ] = 1,
    buffer: Annotated[
        str | None,
        typer.Option(help="Tokens to shuffle.  [default: 131,072, or what fits into 2 GiB]", metavar="COUNT"),
    ] = None,
    device: DeviceOption = Device.auto,
    save_dtype: Annotated[
        SaveDtype, typer.Option(help="Of the stored weights: bfloat16, float32 or int8.", metavar="NAME")
    ] = SaveDtype.bfloat16,
    category: Annotated[
        str | None,
        typer.Option(help="Folder of the dictionaries in --out.  [default: as Gemma Scope 2's]", metavar="NAME"),
    ] = None,
    held_out: Annotated[
        list[Path] | None,
        typer.Option(help="Text to measure the result on; left out of the training text; repeat it.", metavar="PATH"),
    ] = None,
    dead: Annotated[
        bool,
        typer.Option("--dead/--no-dead", help="With --held-out: count dead features over a million tokens, minutes."),
    ] = True,
    split: Annotated[
        Split | None,
        typer.Option(
            help="What torchrun's processes share out: dictionaries, or features, a slice of each.  [default: "
            "dictionaries, if there are as many]",
            metavar="NAME",
        ),
    ] = None,
    tensorboard: Annotated[
        Path | None, typer.Option(help="Write scalars for TensorBoard here.", metavar="FOLDER")
    ] = None,
) -> None:
    """Train dictionaries on what a model computes over texts, all of them from one forward pass.

    A run that was stopped, by Ctrl-C, kill or a power cut, goes on when the same command is given again.
    """
    if bool(texts) == (store is not None):
        raise InputError("give either --texts, a file, folder or hf:OWNER/NAME, or --store, a folder of activations")
    if out is None:
        raise InputError("no folder was given; name one with --out, it is created if need be")
    check_seed(seed)
    fixed: dict[str, Any] = {  # its values are checked as FitConfig takes them
        "kind": kind.value,
        "width": width,
        "l0": l0,
        "activation": activation.value,
        "tokens": parse_count("--tokens", tokens),
        "batch": batch,
        "lr": lr,
        "decay": decay,
        "groups": tuple(_numbers("--groups", groups)),
        "skip": skip,
        "dead_after": dead_after,
        "norm_limit": norm_limit,
        "seed": seed,
    }
    from gemlens.train.names import named

    configs = named([FitConfig(**fixed, **place) for place in _places(kind, sites, layers)], _category(category))
    held = None if buffer is None else parse_count("--buffer", buffer)
    refitted = None if refit is None else parse_count("--refit", refit)
    if refitted and kind is Kind.clt:
        raise InputError("--refit is for SAEs and transcoders; a CLT's layers write together and keep their decoders")
    check_model(model_id)
    from gemlens.app.train_run import processes, run
    from gemlens.app.train_source import from_store, from_texts
    from gemlens.data.corpus import documents

    test = documents([path.expanduser() for path in held_out or []])
    ranks, own = processes(configs, split and split.value)
    out, console = out.expanduser(), notes(quiet=ranks.rank > 0)
    with prepared("--out", out, ["checkpoint.safetensors"]):
        if store is not None:
            only_texts = [name for name in ("row_length", "passes", "dtype", "model_id") if was_given(context, name)]
            if only_texts:
                option = only_texts[0].replace("_", "-")
                raise InputError(f"--{option} goes with --texts; what a store was made with stands in its manifest")
            source = from_store(store.expanduser(), own, held, device=device.value)
        else:
            files = documents([path.expanduser() for path in texts or []])
            source = from_texts(
                console, files, test, configs, own, held,
                model_id=model_id, device=device.value, dtype=dtype.value, row_length=row_length, passes=passes,
            )  # fmt: skip
        run(
            console, source, configs, out, test,
            ranks=ranks, save_dtype=save_dtype.value, device=device.value, refit=refitted, dead=dead,
            tensorboard=tensorboard,
        )  # fmt: skip


def _places(kind: Kind, sites: str | None, layers: str | None) -> list[dict[str, Any]]:
    """What each config reads and writes."""
    if kind is Kind.sae:
        if layers is not None:
            raise InputError("--layers is for transcoders and CLTs; name an SAE's sites, as --sites resid_post.12")
        named = [str(parse_site(site.strip())) for site in (sites or FitConfig.reads[0]).split(",")]
        return [{"reads": (site,)} for site in named]
    if sites is not None:
        raise InputError(f"--sites is for SAEs; a {kind.value} reads mlp_in and writes mlp_out: name its --layers")
    if layers is None:
        raise InputError(f"no layers were given; name those of the {kind.value} with --layers, as 0-17 or 3,9,15")
    numbers = list(_numbers("--layers", layers))
    reads, writes = ([f"{name}.{number}" for number in numbers] for name in ("mlp_in", "mlp_out"))
    if kind is Kind.clt:
        return [{"reads": tuple(reads), "writes": tuple(writes)}]
    return [{"reads": (read,), "writes": (written,)} for read, written in zip(reads, writes, strict=True)]


def _numbers(option: str, text: str) -> Iterator[int]:
    """``3,9-12`` -> 3, 9, 10, 11, 12"""
    for part in filter(None, text.split(",")):
        first, dash, last = part.partition("-")
        try:
            found = range(int(first), int(last if dash else first) + 1)
        except ValueError:
            found = range(0)
        if not found or len(found) > 1000:
            raise InputError(f"{option} {text}: write numbers and ranges, as 0-17 or 3,9,15")
        yield from found


def _category(name: str | None) -> str | None:
    if name is not None and (not name.strip() or "/" in name or name.startswith(".")):
        raise InputError(f"--category {name!r}: give the name of one folder, as transcoder_all")
    return name
