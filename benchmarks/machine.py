"""What a figure was measured on: processor, versions. No host name."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

__all__ = ["machine", "versions"]

_PACKAGES = (
    "torch",
    "transformers",
    "sae-lens",
    "circuit-tracer",
    "nnsight",
    "transformer-lens",
    "eai-sparsify",
    "safetensors",
)
# Instructions that the speed of low-precision matrix products hangs on.
_MATTERS = ("amx_bf16", "amx_int8", "avx512_bf16", "avx512_vnni", "avx2")


def machine() -> dict[str, Any]:
    about = _cpuinfo()
    flags = about.get("flags", "").split()
    return {
        "processor": about.get("model name") or platform.processor() or platform.machine(),
        "instructions": [flag for flag in _MATTERS if flag in flags],
        "cores": os.cpu_count(),
        "system": platform.system(),
        "device": "cpu",
    }


def versions() -> dict[str, str]:
    import gemlens

    found = {"python": platform.python_version(), "gemlens": gemlens.__version__}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _cpuinfo() -> dict[str, str]:
    """Of the first core, as Linux tells it."""
    try:
        core = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        return {}
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in core.splitlines())}
