"""The starter's dictionaries: names, and the folder of the package that holds them. Light: no torch."""

from __future__ import annotations

from pathlib import Path

from gemlens.errors import MissingPackageError

__all__ = ["STARTER_DICTIONARY", "STARTER_RELEASE", "starter_root"]

STARTER_RELEASE = "starter"
STARTER_DICTIONARY = "resid_post/layer_12_width_4k_l0_medium"


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
