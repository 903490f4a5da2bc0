"""Where gemlens keeps what it makes for itself."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """``$GEMLENS_CACHE``, else ``gemlens`` in ``$XDG_CACHE_HOME`` or ``~/.cache``. Not created here."""
    if explicit := os.environ.get("GEMLENS_CACHE"):
        return Path(explicit).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base).expanduser() if base else Path.home() / ".cache") / "gemlens"
