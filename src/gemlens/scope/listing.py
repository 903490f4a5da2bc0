"""What a release holds: the names of its dictionaries, and what each name says, without loading any.

    resid_post/layer_12_width_16k_l0_small     Gemma Scope 2: category, layer, width, sparsity
    layer_20/width_16k/average_l0_71           Gemma Scope 1: the repository's name says which site

In a folder, a ``config.json`` beside the tensors knows better than the name.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

from gemlens import hub
from gemlens.errors import GemlensError, InputError, NetworkError, NotFoundError, nearest
from gemlens.paths import local_folder
from gemlens.scope import catalog
from gemlens.scope.starter import STARTER_RELEASE, starter_root
from gemlens.sites import parse_hook_point

__all__ = ["Listed", "at_site", "listing"]

_PARAMS = {"params.safetensors", "params.npz"}
_CLT = "params_layer_0.safetensors"
_NAME = re.compile(
    r"(?:^|/)layer_(?P<layer>[0-9]{1,6})(?:[_/]width_(?P<width>[0-9]+[km]?))?(?:[_/](?:average_)?l0_(?P<l0>[a-z]+|[0-9]+))?"
)
_THOUSANDS = {"k": 1000, "m": 1000**2}
# What dictionaries read, by the folder they lie in, and by the end of Gemma Scope 1's repositories.
_CATEGORIES = {"resid_post": "resid_post", "attn_out": "attn_out", "mlp_out": "mlp_out", "transcoder": "mlp_in"}
_REPOSITORIES = {"res": "resid_post", "att": "attn_out", "mlp": "mlp_out", "transcoders": "mlp_in_normalized"}
# Where the words of Gemma Scope 2 stand among numbers.
_WORDS = {"small": 20, "medium": 60, "big": 150}


@dataclass(frozen=True, slots=True)
class Listed:
    """One dictionary by name; None where neither name nor config says."""

    path: str
    """Inside the release."""
    site: str | None
    """Kind of site that it reads, e.g. ``resid_post``."""
    layer: int | None
    width: int | None
    l0: str | None
    """As named: ``small``, ``71``."""
    is_clt: bool = False
    """Over several layers; ``site`` and ``layer`` are None."""

    @property
    def category(self) -> str:
        return str(PurePosixPath(self.path).parent).removeprefix(".")

    @property
    def order(self) -> tuple[float, float, str]:
        """Sorts by width, then sparsest first; what is unknown comes last."""
        return self.width or float("inf"), self.l0_order, self.path

    @property
    def l0_order(self) -> float:
        if self.l0 is None:
            return float("inf")
        return float(self.l0) if self.l0.isdecimal() else _WORDS.get(self.l0, float("inf"))


def listing(release: str, *, revision: str | None = None, clts: bool = False) -> list[Listed]:
    """Return every dictionary over one layer in a folder, ``starter``, a hub repository or a release of SAELens.

    A hub repository is asked; where it cannot be reached, the catalogue says what it held when gemlens was made.

    Args:
        clts: cross-layer transcoders as well, which the catalogue does not know.

    Raises:
        NotFoundError: no such release, or one without dictionaries.
        AccessError, NetworkError: the hub does not say, or cannot be reached.
    """
    root = starter_root() if release == STARTER_RELEASE else local_folder(release)
    if root is not None:
        files = sorted(path for path in root.rglob("params*") if _is_params(path, clts=clts))
        found = [
            _named(release, path.parent.relative_to(root).as_posix(), _config(path.parent), is_clt=path.name == _CLT)
            for path in files
        ]
    elif hub.is_repo_id(release):
        try:
            names = [PurePosixPath(name) for name in hub.list_files(release, revision=revision)]
            there = [name for name in names if _is_params(name, clts=clts)]
            found = [_named(release, str(name.parent), {}, is_clt=name.name == _CLT) for name in there]
        except NetworkError:
            if not (found := _catalogued(release)):
                raise
    else:
        found = _catalogued(release)
        if not found:
            raise NotFoundError(
                f"{release!r} is neither a folder nor a hub repository (owner/name), and no release of the catalogue; "
                f"{nearest(release, {entry.release for entry in catalog.entries()})}"
            )
    if not found:
        raise NotFoundError(f"{release} holds no dictionary: no file is called {' or '.join(sorted(_PARAMS))}")
    return sorted(found, key=lambda each: each.order)


def at_site(
    found: Sequence[Listed], site: str, *, layer: int | None = None, category: str | None = None
) -> list[Listed]:
    """Return those that read one site of one layer.

    Args:
        layer: may be left out where there is only one.
        category: only those of this folder; ``resid_post`` and ``resid_post_all`` are both of site ``resid_post``.

    Raises:
        NotFoundError: there are none; says what there is.
        InputError: there are several layers, and none was named.
    """
    here = [each for each in found if category in (None, each.category)]
    if not here:
        raise NotFoundError(f"no dictionary lies in {category}; {nearest(category or '', {e.category for e in found})}")
    of_site = [each for each in here if each.site == site]
    if not of_site:
        sites = {each.site for each in here if each.site}
        raise NotFoundError(f"no dictionary here is known to read {site}; {nearest(site, sites)}")
    layers = sorted({each.layer for each in of_site if each.layer is not None})
    if layer is None and len(layers) > 1:
        raise InputError(f"there are dictionaries of {site} for layers {', '.join(map(str, layers))}; name one layer")
    chosen = [each for each in of_site if layer in (None, each.layer)]
    if not chosen:
        there = ", ".join(map(str, layers)) or "none that its name tells"
        raise NotFoundError(f"no dictionary of {site} is of layer {layer}; there are layers {there}")
    return chosen


def _catalogued(release: str) -> list[Listed]:
    """What the catalogue knows of a hub repository or of a release under SAELens' name, each path once."""
    of_release = [entry for entry in catalog.entries() if release in (entry.release, entry.repo)]
    paths = {entry.path: entry for entry in of_release if entry.layer is not None}
    return [
        Listed(path, entry.site, entry.layer, entry.width, _named(release, path, {}).l0)
        for path, entry in paths.items()
    ]


def _is_params(path: PurePath, *, clts: bool) -> bool:
    """Whether the file makes its folder a dictionary that is listed."""
    # A crosscoder has the same files as a CLT, and its layers in its name: layer_7_13_17_22_width_….
    return path.name in _PARAMS or (clts and path.name == _CLT and not _NAME.search(path.parent.as_posix()))


def _named(release: str, path: str, config: dict[str, Any], *, is_clt: bool = False) -> Listed:
    said = _NAME.search(path)
    layer, width, l0 = said.group("layer", "width", "l0") if said else (None, None, None)
    category = path.split("/")[0].removesuffix("_all")
    site = _CATEGORIES.get(category)
    if site is None and said and said.start() == 0:
        site = _REPOSITORIES.get(release.rpartition("-")[2])
    number = int(layer) if layer else None
    with suppress(GemlensError):
        point = parse_hook_point(str(config.get("hf_hook_point_in")))
        site, number = point.name, point.layer
    stated = config.get("width")
    features = stated if isinstance(stated, int) else _features(width) if width else None
    if l0 is None and isinstance(config.get("l0"), int):
        l0 = str(config["l0"])
    return Listed(path, site, number, features, l0, is_clt)


def _features(width: str) -> int:
    """``16k`` -> 16384, ``65k`` -> 65536: the power of two that was rounded down to thousands."""
    unit = _THOUSANDS.get(width[-1])
    return int(width) if unit is None else 2 ** round(math.log2(int(width[:-1]) * unit or 1))


def _config(folder: Path) -> dict[str, Any]:
    """As far as it can be read: whoever loads the dictionary says what is wrong with it."""
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}
