"""The starter's dictionaries: what their package holds, and which is the default. Light: no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from gemlens.errors import MissingPackageError
from gemlens.sites import parse_hook_point

if TYPE_CHECKING:
    from gemlens.scope.catalog import Entry

__all__ = ["STARTER_DICTIONARY", "STARTER_RELEASE", "starter_entries", "starter_root"]

STARTER_RELEASE = "starter"
STARTER_DICTIONARY = "resid_post/layer_12_width_4k_l0_medium"
"""Where none is named."""


def starter_root() -> Path:
    """Folder of the starter's dictionaries, in the package gemlens-starter.

    Raises:
        MissingPackageError: with the command that installs it.
    """
    from importlib.resources import files

    try:
        return Path(str(files("gemlens_starter")))
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            "the starter's dictionaries are in a package of their own: pip install ./starter in gemlens' repository"
        ) from error


def starter_entries() -> list[Entry]:
    """What the package holds, as entries of the catalogue; nothing where it is not installed."""
    from gemlens.scope.catalog import Entry

    try:
        root = starter_root()
    except MissingPackageError:
        return []
    found = []
    for file in root.glob("*/*/config.json"):
        path, config = file.parent.relative_to(root).as_posix(), json.loads(file.read_text("utf-8"))
        site = parse_hook_point(config["hf_hook_point_in"])
        width = path.partition("width_")[2].partition("_")[0]
        place = (config["model_name"], site.name, site.layer, config["width"], width, config["l0"])
        found.append(Entry(STARTER_RELEASE, path, path, STARTER_RELEASE, *place, None, config["type"], "safetensors"))
    return sorted(found, key=lambda entry: (entry.kind, entry.layer, entry.path))
