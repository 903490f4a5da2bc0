"""What ``gemlens choices`` and ``gemlens contrast`` ask for alike."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from gemlens.errors import InputError
from gemlens.lm.starter import STARTER_NAME
from gemlens.scope.catalog_table import WIDTHS
from gemlens.scope.starter import STARTER_RELEASE

__all__ = [
    "DEFAULT_CHOICES_MODEL",
    "L0Option",
    "LayersOption",
    "ScopeOption",
    "SitesOption",
    "Token",
    "TokenOption",
    "View",
    "ViewOption",
    "WidthOption",
    "files_of",
    "parse_l0",
    "parse_sites",
    "parse_width",
    "release_of",
]

DEFAULT_CHOICES_MODEL = "google/gemma-2-2b"
_DEFAULT_RELEASE = "google/gemma-scope-2b-pt-res"


class Token(StrEnum):
    last = "last"
    mean = "mean"
    max = "max"
    all = "all"


class View(StrEnum):
    html = "html"
    parquet = "parquet"


ScopeOption = Annotated[
    str | None,
    typer.Option(
        "--sae-release",
        help="Hub repository, SAELens' release or folder of dictionaries, or 'starter'.  "
        f"[default: {_DEFAULT_RELEASE}; starter with --model-id starter]",
        metavar="RELEASE",
    ),
]
LayersOption = Annotated[
    str, typer.Option("--layers", help="all, or some of those that have a dictionary, as 0-5,12.", metavar="LAYERS")
]
SitesOption = Annotated[
    str,
    typer.Option("--sites", help="Sites whose dictionaries are used, as resid_post,mlp_in.", metavar="SITES"),
]
WidthOption = Annotated[
    str | None,
    typer.Option("--width", help="Features, as 16k.  [default: what most layers have, 16k if equal]", metavar="WIDTH"),
]
L0Option = Annotated[
    str,
    typer.Option("--l0", help="For each layer the dictionary of nearest L0; or small, medium, big.", metavar="L0"),
]
TokenOption = Annotated[
    Token,
    typer.Option(
        "--token", help="Features of the last token; their mean or max over all; or all tokens.", metavar="WHICH"
    ),
]
ViewOption = Annotated[
    list[View] | None,
    typer.Option("--export", help="Beside the JSON: html or parquet; repeat it.  [default: both]", metavar="KIND"),
]


def release_of(model_id: str, release: str | None) -> str:
    """Fill in what was left out."""
    if release is not None:
        return release
    return STARTER_RELEASE if model_id == STARTER_NAME else _DEFAULT_RELEASE


def parse_sites(text: str) -> tuple[str, ...]:
    """``resid_post,mlp_in.12`` -> each, checked.

    Raises:
        InputError, NotFoundError: no such site.
    """
    from gemlens.sites import Site, parse_site

    sites = tuple(filter(None, (part.strip() for part in text.split(","))))
    if not sites:
        raise InputError("--sites is empty; write resid_post, or several with commas")
    for site in sites:
        _ = parse_site(site) if "." in site else Site(0, site)
    return sites


def parse_width(text: str | None) -> int | None:
    """``16k`` -> 16384, as dictionaries' names mean it; plain digits as they are."""
    if text is None:
        return None
    said = text.strip().lower()
    if said in WIDTHS:
        return WIDTHS[said]
    if said.isdecimal() and int(said[:9]) > 0:
        return int(said[:9])
    if said[:-1].isdecimal() and said[-1] == "k" and len(said) < 8:
        return 1024 * int(said[:-1])
    raise InputError(f"--width {text[:50]}: write a number of features, as 16k, 65k or 16384")


def parse_l0(text: str) -> float | str:
    """A number of 0 or more, or a word of Gemma Scope 2."""
    said = text.strip().lower()
    if said in ("small", "medium", "big"):
        return said
    try:
        value = float(said)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise InputError(f"--l0 {text[:50]}: write a number, as 100, or small, medium or big")
    return value


def files_of(output: Path, views: list[View] | None) -> dict[str, Path]:
    """The files of a run, by what they are: ``json``, ``run``, and the views asked for.

    Raises:
        InputError: another kind of output file.
    """
    if output.suffix.lower() != ".json":
        raise InputError(f"--output-file {output}: name a .json file, e.g. {output.name or 'choices'}.json")
    names = {"json": output, "run": output.with_suffix(".run.json")}
    return names | {view.value: output.with_suffix(f".{view.value}") for view in dict.fromkeys(views or list(View))}
