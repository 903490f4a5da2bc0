"""Options that several commands share, and what they stand for when left out."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

__all__ = [
    "DEFAULT_MODEL",
    "CategoryOption",
    "Device",
    "DeviceOption",
    "Dtype",
    "DtypeOption",
    "IdsOption",
    "ModelOption",
    "ReleaseOption",
    "default_dictionary",
]

DEFAULT_MODEL = "google/gemma-3-270m-it"
_DEFAULT_RELEASE, _DEFAULT_ID = "google/gemma-scope-2-270m-it", "layer_12_width_16k_l0_small"


class Device(StrEnum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
    mps = "mps"


class Dtype(StrEnum):
    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


ModelOption = Annotated[
    str, typer.Option("--model-id", help="Hub repository, folder, or 'starter': a real Gemma 3 270M, no network.")
]
ReleaseOption = Annotated[
    str | None,
    typer.Option(
        "--sae-release",
        help="Hub repository or folder of dictionaries, or 'starter'.",
        show_default=f"{_DEFAULT_RELEASE}; starter with --model-id starter",
    ),
]
CategoryOption = Annotated[str, typer.Option("--sae-category", help="Folder of ids that do not name one.")]
DeviceOption = Annotated[Device, typer.Option("--device", help="auto takes an accelerator where there is one.")]
DtypeOption = Annotated[Dtype, typer.Option("--dtype", help="auto: bfloat16 on CUDA, else float32.")]
IdsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--sae-id",
        help="Dictionary; repeat it for several. One with a / carries its category.",
        show_default=_DEFAULT_ID,
    ),
]


def default_dictionary(model_id: str, release: str | None, ids: list[str] | None) -> tuple[str, list[str]]:
    """Fill in what was left out: the starter's dictionary for the starter, else Gemma Scope 2's for Gemma 3 270M it."""
    from gemlens.lm.starter import STARTER_NAME
    from gemlens.scope.load import STARTER_DICTIONARY, STARTER_RELEASE

    if release is None:
        release = STARTER_RELEASE if model_id == STARTER_NAME else _DEFAULT_RELEASE
    if not ids:
        ids = [STARTER_DICTIONARY if release == STARTER_RELEASE else _DEFAULT_ID]
    return release, ids
