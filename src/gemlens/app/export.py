"""``gemlens export``: dictionaries of any format, written again in Gemma Scope 2's layout and another dtype."""

from __future__ import annotations

from enum import StrEnum
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gemlens.app.console import busy, notes, results, tell
from gemlens.app.options import check_sources
from gemlens.errors import InputError
from gemlens.lm.starter import STARTER_NAME

if TYPE_CHECKING:
    from gemlens.data.corpus import Text
    from gemlens.lm.gemma import Model
    from gemlens.records import QuantizationCost
    from gemlens.scope.sae import SAE

__all__ = ["export"]


class Stored(StrEnum):
    float32 = "float32"
    bfloat16 = "bfloat16"
    int8 = "int8"


def export(
    release: Annotated[
        str,
        typer.Argument(
            help="Hub repository, SAELens' release or folder of dictionaries, or 'starter'.", metavar="RELEASE"
        ),
    ],
    ids: Annotated[
        list[str] | None,
        typer.Argument(
            help="Dictionaries of it, with their categories.  [default: all that a folder holds]", metavar="[ID]..."
        ),
    ] = None,
    dtype: Annotated[
        Stored | None,
        typer.Option(help="float32, bfloat16 or int8 (matrices only, with a scale a feature).", metavar="NAME"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write to, each dictionary at its path in RELEASE.", metavar="FOLDER")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace dictionaries that FOLDER holds already.")
    ] = False,
    model_id: Annotated[
        str | None,
        typer.Option(help="With --texts: the model to measure on what the new dtype costs.", metavar="MODEL"),
    ] = None,
    texts: Annotated[
        list[Path] | None,
        typer.Option(help="With --model-id: text to measure on: .txt, .jsonl or a folder; repeat it.", metavar="PATH"),
    ] = None,
) -> None:
    """Write dictionaries again as float32, bfloat16 or int8, with the files beside them; say what that costs."""
    if dtype is None:
        raise InputError("--dtype is missing: float32, bfloat16 or int8 (a quarter of float32)")
    if out is None:
        raise InputError("--out is missing; name a folder, it is created if need be")
    if (model_id is None) != (not texts):
        raise InputError("--model-id and --texts go together: they measure what the new dtype costs")
    check_sources(model_id or STARTER_NAME, release, "", [])
    console = notes()
    with busy(console, "Loading torch"):
        import torch

        from gemlens.scope.export import destinations
        from gemlens.scope.export import export as write
        from gemlens.scope.int8 import Int8Rows
        from gemlens.scope.multilayer import MultiLayer
    from gemlens.data.corpus import documents

    files = documents([path.expanduser() for path in texts or []]) if texts else []
    places = destinations(release, ids or [], out.expanduser(), replace=overwrite)
    model = None
    for name, folder in places:
        with busy(console, f"Writing {folder}"):
            dictionary = write(release, name, folder, dtype=getattr(torch, dtype.value), replace=overwrite)
        size = sum(file.stat().st_size for file in folder.glob("params*.safetensors"))
        tell(console, f"wrote {folder} ({size / 1e6:.1f} MB)")
        if model_id is None:
            continue
        if isinstance(dictionary, MultiLayer):
            tell(console, f"{name or release} is over several layers; the cost is measured of SAEs and transcoders")
            continue
        if model is None:
            with busy(console, f"Loading {model_id}"):
                model = _load(model_id)
        with busy(console, f"Measuring {name or release}"):
            cost = _measure(model, dictionary, folder, files)
        if dtype is Stored.int8 and not isinstance(dictionary.encoder, Int8Rows):  # from int8 to int8 nothing changes
            _tell_in_card(cost, folder / "card.json")


def _load(model_id: str) -> Model:
    from gemlens.lm.load import load_model

    return load_model(model_id, device="cpu", dtype="float32")


def _measure(model: Model, exact: SAE, folder: Path, files: list[Text]) -> QuantizationCost:
    from gemlens.data.corpus import read_documents
    from gemlens.report.quantization import render
    from gemlens.scope.load import load_sae
    from gemlens.study.quantization import quantization_cost

    cost = quantization_cost(model, exact, load_sae(str(folder)), chain.from_iterable(map(read_documents, files)))
    with results() as console:
        render(cost, console)
    return cost


def _tell_in_card(cost: QuantizationCost, path: Path) -> None:
    """The figures of the dictionary as it is stored now, over those that came with it; others stay."""
    import json

    from gemlens.files import write
    from gemlens.report.card import figures, int8_figures
    from gemlens.scope.folder import read_config

    card = read_config(path) if path.exists() else {}
    write(json.dumps(card | figures(cost.quantized) | int8_figures(cost), indent=2) + "\n", path)
