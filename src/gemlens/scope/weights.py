"""Tensors from safetensors and npz files, checked: whole, finite, of the shapes they should have.

A file is opened for its table of tensors only. Each tensor is then read in parts into memory of its final dtype, so
that loading never holds more than the result: a mapped file would count twice where its dtype changes. Nothing here
unpickles: an npz member is a header and numbers, and one that holds Python objects is refused by its header.
"""

from __future__ import annotations

import json
import lzma
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from gemlens.errors import NotFoundError, WeightsError

__all__ = ["StoredTensor", "TensorFile", "check_shapes", "open_npz", "open_safetensors"]

_PART = 1 << 14
"""Numbers that are read at a time: what torch still computes on one thread, and a cache holds. Threads that wait for
each other after every part make loading ten times slower on a machine that is busy."""
_LINE = 32
"""Rows of a matrix that are turned into columns at a time: of less than a cache line, most of it would be wasted."""
_SAFETENSORS = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}
_NPY = {np.dtype("<f4"): torch.float32, np.dtype("<f2"): torch.float16, np.dtype("<f8"): torch.float64}
# What zipfile, its decompressors and numpy's header parser raise on damaged bytes.
_DAMAGE = (
    *(OSError, EOFError, ValueError, TypeError, LookupError, SyntaxError, OverflowError, RecursionError, MemoryError),
    *(NotImplementedError, RuntimeError, struct.error, tokenize.TokenError, zlib.error, lzma.LZMAError),
    zipfile.BadZipFile,
)
# The same once a header was read. Not RuntimeError: memory that ran out is not the file's fault.
_BROKEN_OFF = (OSError, EOFError, ValueError, NotImplementedError, zlib.error, lzma.LZMAError, zipfile.BadZipFile)
# deflate cannot do better: a member that claims more is damaged, or a bomb.
_DEFLATE_RATIO = 1040


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file, not read yet."""

    shape: tuple[int, ...]
    dtype: torch.dtype | str
    """As stored; a name where it holds no real numbers."""
    open: Callable[[], IO[bytes]]
    """A stream at its first byte; whoever calls closes it."""
    columns_first: bool = False
    """Stored in Fortran's order."""


@dataclass(frozen=True)
class TensorFile:
    """The table of tensors of one file."""

    path: Path
    tensors: dict[str, StoredTensor]

    def require(self, names: set[str]) -> None:
        """Raise WeightsError, naming what is missing and what is there."""
        if missing := names - set(self.tensors):
            present = ", ".join(sorted(name[:40] for name in self.tensors)[:20]) or "nothing"
            raise WeightsError(f"{self.path} lacks {', '.join(sorted(missing))}; it holds {present}")

    def read(self, name: str, dtype: torch.dtype, *, first: int = 0, transposed: bool = False) -> Tensor:
        """One tensor in ``dtype``; ``tensor[:, first:]`` without reading the rest into memory.

        ``transposed``: of a matrix ``tensor.T``, each of its rows in one piece of memory. int8 is given out only as
        int8: without their scales, such numbers are no weights.

        Raises:
            WeightsError: truncated or damaged, or values that are not finite real numbers.
        """
        stored = self.tensors[name]
        stored_as = torch.int8 if (stored.dtype, dtype) == ("I8", torch.int8) else stored.dtype
        if isinstance(stored_as, str):
            raise WeightsError(
                f"{self.path}: {name} holds {stored_as[:40]}, no real numbers gemlens knows; download it again"
            )
        turn = transposed and not stored.columns_first
        shape = stored.shape[::-1] if stored.columns_first else stored.shape
        try:
            with stored.open() as file:
                if turn:
                    return _read_turned(file, shape, stored_as, dtype)
                tensor = _read(file, shape, stored_as, dtype, 0 if stored.columns_first else first)
        except _NotFiniteError:
            kind = str(dtype).removeprefix("torch.")
            raise WeightsError(
                f"{self.path}: {name} holds values that are not finite as {kind}; download it again"
            ) from None
        except _BROKEN_OFF as error:
            raise _damaged(self.path, error) from error
        if transposed or not stored.columns_first:
            return tensor
        return tensor.permute(*range(tensor.ndim)[::-1])[:, first:]


class _NotFiniteError(Exception):
    pass


def open_safetensors(path: Path) -> TensorFile:
    """The table of a safetensors file.

    Raises:
        NotFoundError: no such file.
        WeightsError: truncated or damaged.
    """
    from safetensors import SafetensorError, safe_open

    tensors = {}
    try:
        with safe_open(path, framework="pt"):  # checks the header, and that the file is as long as it says
            pass
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        for name, entry in header.items():
            if name != "__metadata__":
                at = 8 + length + entry["data_offsets"][0]
                dtype = _SAFETENSORS.get(entry["dtype"], entry["dtype"])
                tensors[name] = StoredTensor(tuple(entry["shape"]), dtype, partial(_at, path, at))
    except FileNotFoundError as error:
        raise _absent(path) from error
    except (SafetensorError, *_DAMAGE) as error:
        raise _damaged(path, error) from error
    return TensorFile(path, tensors)


def open_npz(path: Path) -> TensorFile:
    """The table of an npz file, members of any name but ``.npy`` left out.

    Raises:
        NotFoundError: no such file.
        WeightsError: truncated, damaged, or a member that holds Python objects.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = [each for each in archive.infolist() if each.filename.endswith(".npy")]
            tensors = {each.filename[:-4]: _member(path, archive, each) for each in members}
    except FileNotFoundError as error:
        raise _absent(path) from error
    except _DAMAGE as error:
        if isinstance(error, WeightsError):
            raise
        raise _damaged(path, error) from error
    return TensorFile(path, tensors)


def _member(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> StoredTensor:
    with archive.open(info) as file:
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            shape, columns_first, dtype = np.lib.format.read_array_header_1_0(file)
        elif version == (2, 0):
            shape, columns_first, dtype = np.lib.format.read_array_header_2_0(file)
        else:
            raise ValueError(f"npy version {version}")
        start = file.tell()
    if dtype.hasobject:
        raise WeightsError(f"{path}: {info.filename} holds pickled Python objects, which gemlens never loads")
    size = prod(shape) * dtype.itemsize
    if min(shape, default=1) < 0 or info.file_size - start != size or size > info.compress_size * _DEFLATE_RATIO:
        raise ValueError(f"{info.filename} is not as long as its header says")
    return StoredTensor(
        shape, _NPY.get(dtype, str(dtype)), lambda: _in_archive(path, info.filename, start), columns_first
    )


def _at(path: Path, offset: int) -> IO[bytes]:
    file = path.open("rb")
    file.seek(offset)
    return file


def _in_archive(path: Path, name: str, start: int) -> IO[bytes]:
    # The member keeps the archive's file open as long as it needs it.
    with zipfile.ZipFile(path) as archive:
        file = archive.open(name)
    file.read(start)
    return file


def _read(file: IO[bytes], shape: tuple[int, ...], stored: torch.dtype, dtype: torch.dtype, first: int) -> Tensor:
    """``shape`` numbers of ``stored``, ``[:, first:]`` of them in ``dtype``, to the end of the member."""
    # Row by row where only a part of each row is wanted, else as one long row.
    rows, row = (shape[0], shape[1:]) if first else (prod(shape), ())
    out = torch.empty((rows, row[0] - first, *row[1:]) if first else (rows,), dtype=dtype)
    together = max(1, _PART // max(1, prod(row)))
    for start, part in _parts(file, (rows, *row), stored, together):
        _put(out[start : start + len(part)], part[:, first:] if first else part)
    return out if first else out.reshape(shape)


def _read_turned(file: IO[bytes], shape: tuple[int, ...], stored: torch.dtype, dtype: torch.dtype) -> Tensor:
    """A matrix of ``stored`` numbers as [columns, rows] in ``dtype``, to the end of the member."""
    rows, columns = shape
    out = torch.empty((columns, rows), dtype=dtype)
    wide = _PART // _LINE
    for start, part in _parts(file, shape, stored, _LINE):
        for block, piece in zip(out.split(wide), part.T.split(wide), strict=True):
            _put(block[:, start : start + len(part)], piece)
    return out


def _parts(file: IO[bytes], shape: tuple[int, ...], stored: torch.dtype, together: int) -> Iterator[tuple[int, Tensor]]:
    """Yield (first row, some rows) to the end of the member; each is gone when the next is asked for."""
    buffer = torch.empty((min(shape[0], together), *shape[1:]), dtype=stored)
    for start in range(0, shape[0], together):
        part = buffer[: min(together, shape[0] - start)]
        _fill(file, part.reshape(-1).view(torch.uint8).numpy().data)
        yield start, part
    if isinstance(file, zipfile.ZipExtFile):
        file.read(1)  # at the end of a member, its checksum is compared


def _put(target: Tensor, part: Tensor) -> None:
    target.copy_(part)
    if not target.isfinite().all():
        raise _NotFiniteError


def _fill(file: IO[bytes], view: memoryview) -> None:
    got = 0
    while got < len(view):
        read: int = file.readinto(view[got:])  # type: ignore[attr-defined]
        if not read:
            raise EOFError("the file ends early")
        got += read


def _absent(path: Path) -> NotFoundError:
    return NotFoundError(f"{path} does not exist; is this the folder of a dictionary?")


def _damaged(path: Path, error: BaseException) -> WeightsError:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return WeightsError(f"{path} is truncated or damaged ({reason}); download it again")


def check_shapes(file: TensorFile, expected: dict[str, tuple[int, ...]], layout: str) -> None:
    """Hold tensors against the shapes that follow from each other, before any is read.

    Raises:
        WeightsError: naming the first that differs.
    """
    for name, shape in expected.items():
        if name in file.tensors and file.tensors[name].shape != shape:
            raise WeightsError(
                f"{file.path}: {name} has shape {list(file.tensors[name].shape)}, expected {list(shape)}; "
                f"the file is not {layout} dictionary"
            )
