"""gemlens: a microscope for Gemma 2 and 3.

The public names are imported on first use, so that ``import gemlens`` loads neither torch nor transformers.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "errors": ["GemlensError"],
    "records": ["Analysis"],
}
_MODULE = {name: module for module, names in _HOME.items() for name in names}
__all__ = sorted(_MODULE)


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"module 'gemlens' has no attribute {name!r}")
    return getattr(importlib.import_module(f"gemlens.{_MODULE[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
