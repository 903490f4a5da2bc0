"""Write dictionaries again, in another dtype and Gemma Scope 2's layout, with what lies beside them."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from gemlens.errors import InputError, NetworkError, NotFoundError, OutputError
from gemlens.paths import local_folder
from gemlens.scope.folder import Folder, LocalFolder, read_config
from gemlens.scope.formats import Format, dictionaries_below
from gemlens.scope.formats.layout import Target
from gemlens.scope.load import locate
from gemlens.scope.multilayer import MultiLayer
from gemlens.scope.sae import SAE
from gemlens.scope.save import check_savable, new_folder, write_dictionary
from gemlens.scope.starter import STARTER_RELEASE, starter_root

__all__ = ["destinations", "export"]

# What is looked for beside a dictionary whose folder cannot be listed, or holds files of several.
_BESIDE = ("README.md", "card.json", "max_activation.safetensors")


def destinations(release: str, names: list[str], out: Path, *, replace: bool = False) -> list[tuple[str, Path]]:
    """Each dictionary with its folder below ``out``, at the path that it has in the release.

    Args:
        names: ids with their categories; none for all that a folder or ``starter`` holds.
        replace: dictionaries that are there already.

    Raises:
        InputError: no ids for a repository on the hub, or one that leads out of the release.
        NotFoundError: a folder without dictionaries.
        OutputError: a folder is not empty, and not a dictionary that ``replace`` is for.
    """
    root = starter_root() if release == STARTER_RELEASE else local_folder(release)
    if not names:
        if root is None:
            raise InputError(f"{release} is no folder on this machine; name the dictionaries to export after it")
        names = ["" if path == "." else path for path in sorted(set(dictionaries_below(root)))]
        if not names:
            raise NotFoundError(f"{release} holds no dictionary")
    found = []
    for name in dict.fromkeys(name.strip("/") for name in names):
        if ".." in PurePosixPath(name).parts:
            raise InputError(f"{name!r} leads out of the release; give a path inside it")
        target = out / name
        _check_free(target, replace)
        found.append((name, target))
    return found


def export(release: str, name: str, folder: Path, *, dtype: torch.dtype, replace: bool = False) -> SAE | MultiLayer:
    """Write one dictionary of any format to ``folder``, whole or not at all, and return it as it was read.

    Its active features are those of the original up to rounding to ``dtype``; from int8 to int8 nothing changes.

    Args:
        release, name: as the loaders take them.
        dtype: as ``save_sae`` takes it.
        replace: a dictionary that is there already.

    Raises:
        InputError: a dictionary that the layout cannot hold.
        OutputError: ``folder`` is not empty, or cannot be written; and all that the loaders raise.
    """
    _check_free(folder, replace)
    source, layout = locate(release, name, None, None)
    dictionary = layout.read(source, Target(torch.device("cpu"), torch.float32))
    check_savable(dictionary, folder, dtype)
    with new_folder(folder, replace=replace) as work:
        write_dictionary(dictionary, work, l0=_l0(source), dtype=dtype)
        for file in _beside(source, layout):
            shutil.copyfile(file, work / file.name)
    return dictionary


def _check_free(folder: Path, replace: bool) -> None:
    try:
        there = list(folder.iterdir()) if folder.exists() else []
    except OSError as error:
        raise OutputError(f"cannot write {folder} ({error.strerror}); choose another folder") from error
    is_dictionary = any(path.match("params*.safetensors") for path in there) and all(map(Path.is_file, there))
    if there and not (replace and is_dictionary):
        what = "a dictionary that is there already" if is_dictionary else "not empty, and not just one dictionary"
        step = "choose another folder" + (", or replace it (--overwrite)" if is_dictionary else "")
        raise OutputError(f"{folder} is {what}; {step}")


def _l0(source: Folder) -> float | None:
    path = source.find("config.json")
    config: dict[str, Any] = read_config(path) if path else {}
    l0 = config.get("l0")
    return l0 if isinstance(l0, int | float) and 0 <= l0 < float("inf") else None


def _beside(source: Folder, layout: Format) -> list[Path]:
    """Files that are neither tensors nor config: ``card.json``, and what else is there."""
    if isinstance(source, LocalFolder) and layout.name == "Gemma Scope 2":
        files = sorted(path for path in source.root.iterdir() if path.is_file())
        return [path for path in files if path.name != "config.json" and not path.match("params*.safetensors")]
    found = []
    with suppress(NetworkError):  # what was fetched before is exported without asking
        found = [path for name in _BESIDE if (path := source.find(name))]
    return found
