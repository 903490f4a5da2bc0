"""Options that ablate, steer and ``analyze --exclude-features`` share: features, places, strengths, exports."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from gemlens.errors import InputError
from gemlens.sites import parse_site

if TYPE_CHECKING:
    from gemlens.scope.sae import SAE
    from gemlens.study.places import Active, Positions

__all__ = [
    "BosOption",
    "EditExport",
    "EditExportOption",
    "FeaturesOption",
    "Named",
    "PositionsOption",
    "WhereOption",
    "check_positions",
    "check_where",
    "file_names",
    "of_dictionaries",
    "parse_features",
    "parse_strengths",
    "places",
    "write_reports",
]

_MOST_STRENGTHS = 64


class EditExport(StrEnum):
    html = "html"
    json = "json"
    jsonl = "jsonl"


FeaturesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--features",
        help="Features by number, as 1634,99; with several dictionaries each with its site, as resid_post.12:1634,99; "
        "repeat it.",
        metavar="IDS",
    ),
]
PositionsOption = Annotated[
    str,
    typer.Option(
        "--positions",
        help="Tokens to edit: all, last (of the prompt), generated, positions as 3,7 or a slice as 2:9 or -1:; "
        "negative ones count back from the prompt's end.",
        metavar="WHICH",
    ),
]
WhereOption = Annotated[
    str | None,
    typer.Option(
        "--where", help="Only where a feature of the dictionary is active, as 99, or above a value, as '99>500'."
    ),
]
BosOption = Annotated[bool, typer.Option("--bos", help="Edit BOS, and the tokens that open a chat, too.")]
EditExportOption = Annotated[
    list[EditExport] | None,
    typer.Option(
        "--export", help="Report to write: html, json or jsonl; repeat it.  [default: table only]", metavar="KIND"
    ),
]


class Named(NamedTuple):
    """Features as they were asked for."""

    site: str | None
    ids: tuple[int, ...]


def parse_features(option: str, given: Sequence[str] | None) -> list[Named]:
    """``["1634,99", "resid_post.5:7"]``; nothing where nothing was given.

    Raises:
        InputError: not numbers, a site that is none, or a feature that is named twice.
    """
    found = []
    for text in given or []:
        site, _, numbers = text.rpartition(":")
        if site:
            parse_site(site.strip())
        parts = [part.strip() for part in numbers.split(",")]
        if not all(re.fullmatch(r"[0-9]{1,9}", part) for part in parts):
            raise InputError(f"{option} {text!r}: write features as 1634,99, or with their site as resid_post.12:1634")
        ids = [int(part) for part in parts]
        if len(set(ids)) < len(ids):
            raise InputError(f"{option} {text!r} names a feature twice; once is enough")
        found.append(Named(site.strip() or None, tuple(ids)))
    return found


def of_dictionaries(option: str, named: Sequence[Named], dictionaries: Sequence[SAE]) -> list[tuple[SAE, list[int]]]:
    """Each dictionary with the features that are meant of it, those without left out.

    Raises:
        InputError: a feature that does not exist, or it is not said of which dictionary.
    """
    sites = [str(dictionary.reads) for dictionary in dictionaries]
    found: dict[int, list[int]] = {}
    for site, ids in named:
        if (site is None and len(sites) > 1) or (site is not None and sites.count(site) != 1):
            asked = "no site" if site is None else site
            raise InputError(
                f"{option} names {asked}, the dictionaries read {', '.join(sites)}; write each feature with the site "
                f"of its one dictionary, as {sites[0]}:{ids[0]}"
            )
        index = 0 if site is None else sites.index(site)
        found.setdefault(index, []).extend(each for each in ids if each not in found.get(index, []))
        width = dictionaries[index].width
        if beyond := [each for each in ids if each >= width]:
            raise InputError(
                f"{option} {beyond[0]}: {dictionaries[index].info.id} has the features 0 to {width - 1}; take one of "
                "these"
            )
    return [(dictionaries[index], ids) for index, ids in sorted(found.items())]


def check_positions(text: str) -> str | list[int] | slice | None:
    """``all`` is None; ``last`` and ``generated`` stay words until torch is there.

    Raises:
        InputError: none of the ways to write it.
    """
    text = text.strip()
    if text in ("all", "last", "generated"):
        return None if text == "all" else text
    if re.fullmatch(r"-?[0-9]{1,9}(,-?[0-9]{1,9})*", text):
        return [int(part) for part in text.split(",")]
    if re.fullmatch(r"(-?[0-9]{1,9})?:(-?[0-9]{1,9})?(:[1-9][0-9]{0,8})?", text):
        return slice(*(int(part) if part else None for part in text.split(":")))
    raise InputError(f"--positions {text!r}: take all, last, generated, positions as 3,7 or a slice as 2:9 or -1:")


def check_where(text: str | None) -> tuple[int, float] | None:
    """``"99>500"`` -> a feature and the value that it must exceed."""
    if text is None:
        return None
    match = re.fullmatch(r"\s*([0-9]{1,9})\s*(?:>\s*([0-9.eE+]+))?\s*", text)
    try:
        value = float(match[2] or 0) if match else math.nan
    except ValueError:
        value = math.nan
    if match is None or not math.isfinite(value):
        raise InputError(f"--where {text!r}: write a feature, as 99, or with a value of 0 or more, as '99>500'")
    return int(match[1]), value


def places(
    positions: str | list[int] | slice | None, where: tuple[int, float] | None, of: SAE | None
) -> dict[str, Any]:
    """What the library takes for what was parsed."""
    from gemlens.study.places import active, generated, last

    words: dict[str, Positions] = {"last": last, "generated": generated}
    condition: Active | None = None
    if where is not None:
        if of is None:
            raise InputError("--where goes with a dictionary, and --direction has none; leave it out")
        condition = active(of, where[0], above=where[1])
    return {"positions": words[positions] if isinstance(positions, str) else positions, "where": condition}


def parse_strengths(strength: float | None, sweep: str | None) -> list[float]:
    """``-2..2`` counts by 1, ``-2..2/0.5`` by 0.5; ``-1,0.5,2`` is as it stands.

    Raises:
        InputError: both or neither, not numbers, not finite, or more than one batch should hold.
    """
    if (strength is None) == (sweep is None):
        raise InputError("give --strength, as 1, or --sweep, as -2..2 or -1,0.5,2")
    found = [strength] if strength is not None else _sweep(str(sweep))
    if not all(math.isfinite(each) for each in found):
        raise InputError(f"{'--strength' if sweep is None else '--sweep'} {found}: take finite numbers")
    if len(found) > _MOST_STRENGTHS:
        raise InputError(f"--sweep {sweep} has {len(found)} strengths, which are read together; take {_MOST_STRENGTHS}")
    return found


def _sweep(text: str) -> list[float]:
    refused = InputError(f"--sweep {text!r}: write strengths as -2..2, as -2..2/0.5, or as -1,0.5,2")
    try:
        if ".." not in text:
            return [float(part) for part in text.split(",")]
        ends, _, step = text.partition("/")
        low, high = (float(part) for part in ends.split(".."))
        by = float(step or 1)
    except ValueError as error:
        raise refused from error
    if not (all(map(math.isfinite, (low, high, by))) and by > 0 and low <= high):
        raise refused
    count = min(int((high - low) / by + 1e-9), 10**6)
    # Rounded, so that -2..2/0.1 has a 0 and not 1e-16.
    return [round(low + by * index, 9) for index in range(count + 1)]


def file_names(name: str, kinds: Sequence[EditExport]) -> list[str]:
    return [f"{name}.{kind.value}" for kind in kinds]


def write_reports(
    name: str, kinds: Sequence[EditExport], out_dir: Path, made: dict[str, Any], record: Any
) -> list[Path]:
    """Write ``record`` by each of the functions in ``made`` that was asked for."""
    from gemlens.files import check_folder, write

    paths = []
    for kind in kinds:
        path = check_folder(out_dir) / f"{name}.{kind.value}"
        write(made[kind.value](record), path)
        paths.append(path)
    return paths
