"""A checkpoint: everything a run needs to go on, in one safetensors file, so that no two halves can ever disagree.

Tensors are called ``PART:NAME``. What is no tensor stands as JSON in the file's metadata, under ``gemlens``: numbers
by part and name, and what the run is, so that another one can be told from it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gemlens.errors import InputError, WeightsError
from gemlens.files import told, whole

__all__ = ["CHECKPOINT", "Checkpoint", "State", "check_same", "read_checkpoint", "write_checkpoint"]

CHECKPOINT = "checkpoint.safetensors"
_FORMAT = 1
_DTYPES = {
    torch.float64: "F64",
    torch.int64: "I64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.uint8: "U8",
}

State = Mapping[str, Tensor | float | int]


class Checkpoint(NamedTuple):
    about: dict[str, Any]
    """What the run is, as JSON values."""
    parts: dict[str, dict[str, Tensor | float | int]]
    """States by part: of learners, curves and a stream; of counts and examples."""


def write_checkpoint(path: Path, about: Mapping[str, Any], parts: Mapping[str, State]) -> None:
    """Write the file whole or not at all; the one before stays until then.

    Tensors go to disk one by one: safetensors' own ``save`` would hold all their bytes in memory once more.

    Raises:
        OutputError: the disk is full, or the folder cannot be written.
    """
    # Widest numbers first, so that each lies where its size divides the position.
    tensors = sorted(
        (
            (f"{part}:{name}", value.detach())
            for part, state in parts.items()
            for name, value in state.items()
            if isinstance(value, Tensor)
        ),
        key=lambda named: -named[1].itemsize,
    )
    numbers = {
        part: {name: value for name, value in state.items() if not isinstance(value, Tensor)}
        for part, state in parts.items()
    }
    content = json.dumps({"format": _FORMAT, "about": about, "numbers": numbers})
    with whole(path) as file, told(path):
        file.write(_header(tensors, content))
        for _, tensor in tensors:
            file.write(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


def _header(tensors: list[tuple[str, Tensor]], content: str) -> bytes:
    entries: dict[str, Any] = {"__metadata__": {"gemlens": content}}
    start = 0
    for name, tensor in tensors:
        stop = start + tensor.nbytes
        entries[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def read_checkpoint(path: Path) -> Checkpoint | None:
    """The checkpoint at ``path``, or None where there is none.

    Raises:
        WeightsError: damaged, or no checkpoint of gemlens.
    """
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            content = json.loads((file.metadata() or {})["gemlens"])
            if content["format"] != _FORMAT:
                raise ValueError(f"format {content['format']}; this gemlens reads {_FORMAT}")
            parts: dict[str, dict[str, Tensor | float | int]] = content["numbers"]
            for key in file.keys():  # noqa: SIM118 - it is no dict
                part, _, name = key.rpartition(":")
                parts[part][name] = file.get_tensor(key)
    except (SafetensorError, OSError, ValueError, LookupError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise WeightsError(f"{path} is no whole checkpoint ({reason}); delete it to begin anew") from error
    return Checkpoint(content["about"], parts)


def check_same(path: Path, saved: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Raise InputError where a checkpoint is of another run, naming the first field that differs and both values."""
    asked = json.loads(json.dumps(asked))  # tuples as lists
    if difference := _difference(saved, asked):
        raise InputError(f"{path} is of another run: {difference}; name another folder, or delete it to begin anew")


def _difference(saved: Any, asked: Any, name: str = "") -> str | None:
    if isinstance(saved, dict) and isinstance(asked, dict):
        pairs = [(f"{name} {key}".strip(), saved.get(key), asked.get(key)) for key in {**saved, **asked}]
    elif isinstance(saved, list) and isinstance(asked, list) and len(saved) == len(asked):
        pairs = [(name, *each) for each in zip(saved, asked, strict=True)]
    else:
        return None if saved == asked else f"{name} {_said(saved)} there, {_said(asked)} asked for"
    return next((found for key, old, new in pairs if (found := _difference(old, new, key))), None)


def _said(value: Any) -> str:
    text = "nothing" if value in (None, [], {}) else json.dumps(value) if isinstance(value, dict | list) else str(value)
    return text if len(text) <= 100 else f"{text[:100]}…"
