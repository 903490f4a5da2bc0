"""Safetensors files of which only some rows are wanted: the header, then rows of tensors as numpy arrays; no torch.

    file = SliceFile(parts)                          one read: the header, checked
    file.rows([("activations", [12]), ("tokens", [3, 99])])      one read more: rows of several tensors together

``parts`` is a file of this machine or of the hub (``gemlens.parts``), so that the same lines read either. Integers are
widened to int64, float16 and bfloat16 to float32. The writer is ours too: that of safetensors puts the metadata into
another order each time, and files of evidence are compared byte by byte.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gemlens.errors import InputError, WeightsError
from gemlens.files import told, whole
from gemlens.parts import Parts

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["SliceFile", "write_safetensors"]

_FIRST = 1 << 14
"""Bytes read at once in the hope that the header is in them."""
_MOST = 1 << 22
"""A longer header is not one of a file with a dozen tensors."""
_DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),  # the upper half of a float32
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("<i1"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("<u1"),
}
_NAMES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint32": "U32",
    "uint16": "U16",
    "uint8": "U8",
}


class SliceFile:
    """The table of tensors of one file, and rows of them.

    Raises:
        WeightsError: truncated, damaged, or with tensors that overlap or reach beyond the file's end.
    """

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        try:
            header, self._start = self._header()
            self.metadata = {str(key): str(value) for key, value in dict(header.pop("__metadata__", {})).items()}
            self._table = {str(name): self._entry(entry) for name, entry in header.items()}
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            if isinstance(error, WeightsError):
                raise
            raise self._damaged(str(error) or type(error).__name__) from error

    def __contains__(self, name: str) -> bool:
        return name in self._table

    @property
    def names(self) -> list[str]:
        return sorted(self._table)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._table[name][0]

    def is_float(self, name: str) -> bool:
        return self._table[name][1] in ("F64", "F32", "F16", "BF16")

    def require(self, names: Sequence[str]) -> None:
        """Raise WeightsError, naming what is missing and what is there."""
        if missing := [name for name in names if name not in self._table]:
            there = ", ".join(name[:40] for name in self.names[:20]) or "nothing"
            raise WeightsError(f"{self.parts.name} lacks {', '.join(missing)}; it holds {there}")

    def rows(self, wanted: Sequence[tuple[str, Sequence[int]]]) -> list[NDArray[Any]]:
        """Rows of tensors along their first dimension, [rows, ...] each, in one read.

        Raises:
            WeightsError: the file ends early, or holds what is no real number.
            NetworkError: of a file on the hub.
        """
        spans, layout = [], []
        for name, rows in wanted:
            shape, dtype, offset = self._table[name]
            if dtype not in _DTYPES:
                raise WeightsError(f"{self.parts.name}: {name} holds {dtype[:40]}, no numbers that gemlens reads")
            size = prod(shape[1:]) * _DTYPES[dtype].itemsize
            assert all(0 <= row < shape[0] for row in rows), (name, shape)
            runs = _runs(rows)
            spans += [(offset + first * size, count * size) for first, count in runs]
            layout.append((shape, dtype, len(rows), len(runs)))
        blocks = iter(self.parts.read(spans))
        out = []
        for shape, dtype, count, runs_of_it in layout:
            data = b"".join(next(blocks) for _ in range(runs_of_it))
            out.append(_numbers(data, dtype).reshape(count, *shape[1:]))
        return out

    def all(self, name: str) -> NDArray[Any]:
        """A whole tensor."""
        (tensor,) = self.rows([(name, range(self.shape(name)[0]))])
        return tensor

    def _header(self) -> tuple[dict[str, Any], int]:
        parts = self.parts
        if parts.size < 8:
            raise self._damaged("it is shorter than a header")
        (first,) = parts.read([(0, min(parts.size, _FIRST))])
        length = int.from_bytes(first[:8], "little")
        if not 2 <= length <= min(_MOST, parts.size - 8):
            raise self._damaged(f"its header would have {length} bytes")
        if 8 + length > len(first):
            (rest,) = parts.read([(len(first), 8 + length - len(first))])
            first += rest
        header = json.loads(first[8 : 8 + length].decode("utf-8"))
        if not isinstance(header, dict):
            raise ValueError("its header is no JSON object")
        return header, 8 + length

    def _entry(self, entry: Mapping[str, Any]) -> tuple[tuple[int, ...], str, int]:
        """Shape, dtype and place in the file of one tensor."""
        dtype, shape = str(entry["dtype"]), tuple(int(size) for size in entry["shape"])
        begin, end = (int(at) for at in entry["data_offsets"])
        if not shape or min(shape) < 0 or not 0 <= begin <= end <= self.parts.size - self._start:
            raise ValueError("a tensor lies outside of the file")
        if dtype in _DTYPES and prod(shape) * _DTYPES[dtype].itemsize != end - begin:
            raise ValueError("a tensor is not as long as its shape says")
        return shape, dtype, self._start + begin

    def _damaged(self, reason: str) -> WeightsError:
        said = " ".join(reason.split())[:200]
        return WeightsError(f"{self.parts.name} is truncated or damaged ({said}); download it again")


def _runs(rows: Sequence[int]) -> list[tuple[int, int]]:
    """Neighbours together, in the order given: [4, 5, 6, 9] -> [(4, 3), (9, 1)]."""
    if isinstance(rows, range) and rows.step == 1:
        return [(rows.start, len(rows))] if len(rows) else []
    runs: list[tuple[int, int]] = []
    for row in rows:
        if runs and row == sum(runs[-1]):
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((int(row), 1))
    return runs


def _numbers(data: bytes, dtype: str) -> NDArray[Any]:
    raw = np.frombuffer(data, _DTYPES[dtype])
    if dtype == "BF16":
        return (raw.astype(np.uint32) << 16).view(np.float32)
    if dtype == "F16":
        return raw.astype(np.float32)
    return raw if raw.dtype.kind == "f" else raw.astype(np.int64)


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors to ``path``, whole or not at all; the same bytes for the same tensors and metadata.

    Raises:
        InputError: a tensor of a dtype that readers here would refuse.
        OutputError: the file cannot be written.
    """
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    at, kept = 0, {}
    # Wide numbers first, so that each tensor starts where its numbers may lie.
    for name in sorted(tensors, key=lambda name: (-tensors[name].element_size(), name)):
        tensor = tensors[name].detach().cpu().contiguous()
        kind = _NAMES.get(str(tensor.dtype).removeprefix("torch."))
        if kind is None:
            raise InputError(f"{name} holds {tensor.dtype}; write integers or floating-point numbers")
        size = tensor.numel() * tensor.element_size()
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [at, at + size]}
        at, kept[name] = at + size, tensor
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=True).encode()
    text += b" " * (-len(text) % 8)
    with whole(path) as file, told(path):
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in kept.values():
            file.write(_bytes(tensor))


def _bytes(tensor: Tensor) -> memoryview:
    import torch

    return tensor.reshape(-1).view(torch.uint8).numpy().data
