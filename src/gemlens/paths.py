"""Folders: where gemlens keeps what it makes for itself, and those that users name."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """``$GEMLENS_CACHE``, else ``gemlens`` in ``$XDG_CACHE_HOME`` or ``~/.cache``. Not created here."""
    if explicit := os.environ.get("GEMLENS_CACHE"):
        return Path(explicit).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base).expanduser() if base else Path.home() / ".cache") / "gemlens"


def data_dir() -> Path:
    """``$GEMLENS_DATA``, else ``gemlens`` in ``$XDG_DATA_HOME`` or ``~/.local/share``: what cannot be made again by a
    download, such as labels written by hand. Not created here."""
    if explicit := os.environ.get("GEMLENS_DATA"):
        return Path(explicit).expanduser()
    base = os.environ.get("XDG_DATA_HOME")
    return (Path(base).expanduser() if base else Path.home() / ".local" / "share") / "gemlens"


def local_folder(name: str) -> Path | None:
    """The folder of that name, ``~`` expanded; None if there is none, or the file system cannot have one."""
    try:
        folder = Path(name).expanduser()
        return folder if folder.is_dir() else None
    except (OSError, RuntimeError, ValueError):  # too long, no such user, a NUL in it
        return None
