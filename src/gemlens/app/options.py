"""The options of the commands, what they stand for when left out, and what can be said against them at once."""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import Annotated

import typer

from gemlens.errors import InputError, MismatchError, NotFoundError, nearest
from gemlens.hub import is_repo_id
from gemlens.lm.starter import STARTER_NAME
from gemlens.paths import local_folder
from gemlens.scope.starter import STARTER_DICTIONARY, STARTER_RELEASE

__all__ = [
    "DEFAULT_MODEL",
    "DEFAULT_PROMPT",
    "CategoryOption",
    "ChatOption",
    "Device",
    "DeviceOption",
    "Dtype",
    "DtypeOption",
    "Export",
    "ExportOption",
    "GreedyOption",
    "IdsOption",
    "LayerOption",
    "MaxNewTokensOption",
    "ModelOption",
    "OutDirOption",
    "PromptOption",
    "PromptsOption",
    "ReleaseOption",
    "SeedOption",
    "SystemOption",
    "TemperatureOption",
    "TopKOption",
    "TopPOption",
    "check_layer",
    "check_model",
    "check_numbers",
    "check_seed",
    "check_sources",
    "default_dictionary",
    "parse_count",
    "was_given",
]

DEFAULT_MODEL = "google/gemma-3-270m-it"
DEFAULT_PROMPT = "Explain what a sparse autoencoder is in plain language."
_DEFAULT_RELEASE, _DEFAULT_ID = "google/gemma-scope-2-270m-it", "layer_12_width_16k_l0_small"
# Below this, scores divided by the temperature leave float32; the answer has long been that of 0.
_COLDEST = 1e-3
_COUNTS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}


class Device(StrEnum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
    mps = "mps"


class Dtype(StrEnum):
    auto = "auto"
    quick = "quick"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Export(StrEnum):
    html = "html"
    json = "json"
    jsonl = "jsonl"
    parquet = "parquet"


PromptOption = Annotated[str, typer.Option("--prompt", help="Text to read; - for standard input.", metavar="TEXT")]
PromptsOption = Annotated[
    Path | None,
    typer.Option(
        "--prompts",
        help="Many prompts: a .txt file with one a line, or a .jsonl file with 'prompt' and optional 'system'. "
        "Read together with --max-new-tokens 0, else one at a time.",
        metavar="FILE",
    ),
]
SystemOption = Annotated[
    str | None, typer.Option("--system", help="Instructions that go before the prompt.", metavar="TEXT")
]
ModelOption = Annotated[
    str,
    typer.Option(
        "--model-id", help="Hub repository, folder, or 'starter': a real Gemma 3 270M, no network.", metavar="MODEL"
    ),
]
ReleaseOption = Annotated[
    str | None,
    typer.Option(
        "--sae-release",
        help="Hub repository, SAELens' release or folder of dictionaries, or 'starter'.  "
        f"[default: {_DEFAULT_RELEASE}; starter with --model-id starter]",
        metavar="RELEASE",
    ),
]
CategoryOption = Annotated[
    str,
    typer.Option("--sae-category", help="Folder of the dictionary, for ids that do not name one.", metavar="FOLDER"),
]
IdsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--sae-id",
        help="Dictionary; repeat it for several. An id with a / carries its category.  "
        f"[default: {_DEFAULT_ID}; the starter's own with --model-id starter]",
        metavar="ID",
    ),
]
LayerOption = Annotated[
    int | None,
    typer.Option(
        "--layer",
        help="Only a check: refused if the dictionary reads another layer.  [default: the dictionary's]",
        metavar="INT",
    ),
]
TopKOption = Annotated[int, typer.Option("--top-k", help="Features to list a token.", metavar="INT")]
MaxNewTokensOption = Annotated[
    int, typer.Option("--max-new-tokens", help="Tokens to generate; 0 reads the prompt only.", metavar="INT")
]
TemperatureOption = Annotated[float, typer.Option("--temperature", help="Of sampling; 0 is greedy.", metavar="FLOAT")]
TopPOption = Annotated[
    float, typer.Option("--top-p", help="Sample from the likeliest tokens of this total probability.", metavar="FLOAT")
]
GreedyOption = Annotated[bool, typer.Option("--greedy", help="Take the likeliest token each time.")]
ChatOption = Annotated[
    bool | None,
    typer.Option("--chat/--no-chat", help="Use the chat template.  [default: if the model has one]"),
]
DeviceOption = Annotated[
    Device,
    typer.Option("--device", help="auto, cpu, cuda or mps; auto takes an accelerator if there is one.", metavar="NAME"),
]
DtypeOption = Annotated[
    Dtype,
    typer.Option(
        "--dtype",
        help="auto, quick, float32, bfloat16 or float16; auto is bfloat16 on CUDA, else float32; quick is bfloat16 "
        "wherever the processor has instructions for it.",
        metavar="NAME",
    ),
]
ExportOption = Annotated[
    list[Export] | None,
    typer.Option(
        "--export",
        help="Report to write: html, json, jsonl or parquet; repeat it.  [default: table only]",
        metavar="KIND",
    ),
]
OutDirOption = Annotated[Path, typer.Option("--out-dir", help="Folder of the reports.", metavar="FOLDER")]
SeedOption = Annotated[int, typer.Option("--seed", help="Of sampling.", metavar="INT")]


def default_dictionary(model_id: str, release: str | None, ids: list[str] | None) -> tuple[str, list[str]]:
    """Fill in what was left out: the starter's dictionary for the starter, else Gemma Scope 2's for Gemma 3 270M it."""
    if release is None:
        release = STARTER_RELEASE if model_id == STARTER_NAME else _DEFAULT_RELEASE
    if not ids:
        ids = [STARTER_DICTIONARY if release == STARTER_RELEASE else _DEFAULT_ID]
    return release, list(dict.fromkeys(ids))


def was_given(context: typer.Context, name: str) -> bool:
    """Whether an option is on the command line, also if with its default."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def parse_count(option: str, text: str) -> int:
    """``50k``, ``2M``, ``1.5B`` or plain digits -> a number of things, 1 or more.

    Raises:
        InputError: naming the option.
    """
    match = re.fullmatch(r"([0-9][0-9_,]*(?:\.[0-9]+)?)([kKmMbB]?)", text.strip())
    number = round(float(re.sub("[_,]", "", match[1])) * _COUNTS[match[2].lower()]) if match else 0
    if number < 1:
        raise InputError(f"{option} {text}: write a number above 0, as 50k, 2M or 2000000")
    return number


def check_numbers(*, top_k: int, max_new_tokens: int, temperature: float, top_p: float, seed: int) -> None:
    """The library's ranges, before the seconds that importing torch takes.

    Raises:
        InputError: naming the option and what it takes.
    """
    if top_k < 1:
        raise InputError(f"--top-k {top_k}: list at least 1 feature a token")
    if max_new_tokens < 0:
        raise InputError(f"--max-new-tokens {max_new_tokens}: 0 reads the prompt only, more generates")
    if temperature != 0 and not _COLDEST <= temperature < float("inf"):
        raise InputError(f"--temperature {temperature}: 0 is greedy, else take {_COLDEST} or more; the default is 0.7")
    if not 0 < top_p <= 1:
        raise InputError(f"--top-p {top_p}: must lie above 0 and not exceed 1")
    check_seed(seed)


def check_seed(seed: int) -> None:
    if not 0 <= seed < 2**63:
        raise InputError(f"--seed {seed}: take a number from 0 to 2^63 - 1")


def check_sources(model_id: str, release: str, category: str, ids: list[str]) -> None:
    """Names that can be neither a folder nor on the hub, and ids that lead out of their release.

    Raises:
        InputError: an empty name, or a path with ``..``.
        NotFoundError: neither a folder nor ``owner/name``, nor for dictionaries one of SAELens' releases.
    """
    check_model(model_id)
    _check_release(release)
    for option, name in [("--sae-category", category), *(("--sae-id", name) for name in ids)]:
        path = PurePosixPath(name)
        if ".." in path.parts or path.is_absolute():
            raise InputError(f"{option} {name!r} leads out of the release; give a path inside it, like {_DEFAULT_ID}")
        if option == "--sae-id" and not path.name:
            raise InputError(f"--sae-id is empty; name a dictionary, like {_DEFAULT_ID}, or leave it out")


def check_layer(layer: int | None, name: str, actual: int | None = None) -> None:
    """Hold ``--layer`` against a dictionary, as far as its name or ``actual`` says which layer it reads.

    Raises:
        MismatchError: it reads another.
    """
    if actual is None:
        said = re.search(r"(?:^|/)layer_(\d+)(?:_[^/]*)?$", name)
        actual = int(said[1]) if said else layer
    if layer is not None and layer != actual:
        raise MismatchError(
            f"--layer {layer} contradicts {name}, which reads layer {actual}; "
            f"leave --layer out, or choose a dictionary of layer {layer} with --sae-id"
        )


def check_model(name: str) -> None:
    """Raise NotFoundError or InputError for a name that can be neither a folder nor on the hub."""
    if not _is_place("--model-id", name, DEFAULT_MODEL):
        raise NotFoundError(
            f"--model-id {name!r} is neither a folder nor a hub repository (owner/name); "
            f"{nearest(name, [DEFAULT_MODEL, STARTER_NAME])}"
        )


def _check_release(name: str) -> None:
    if not _is_place("--sae-release", name, _DEFAULT_RELEASE):
        from gemlens.scope.catalog import find

        try:
            find(release=name)  # SAELens' names; it tells of those never published
        except NotFoundError as error:
            raise NotFoundError(
                f"--sae-release {name!r} is neither a folder nor owner/name on the hub: {error}"
            ) from error


def _is_place(option: str, name: str, example: str) -> bool:
    """Whether it can be read as it is: a folder, ``owner/name`` or the starter."""
    if not name.strip():
        raise InputError(f"{option} is empty; name a hub repository like {example}, a folder, or {STARTER_NAME}")
    return name in (STARTER_NAME, STARTER_RELEASE) or local_folder(name) is not None or is_repo_id(name)
