"""Activations saved by any tool: an array [n, d] or [n, sequence, d] in a .npy or .safetensors file, read in parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gemlens.errors import InputError, NotFoundError, WeightsError, nearest

__all__ = ["Saved", "open_saved"]

_PART = 1 << 22
"""Numbers read at a time: 16 MB of float32."""
_DTYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}


@dataclass(frozen=True)
class Saved:
    """An array in a file, not read yet."""

    path: Path
    shape: tuple[int, ...]
    _rows: Callable[[int, int], Tensor]

    @property
    def tokens(self) -> int:
        """Over all sequences."""
        return prod(self.shape[:-1])

    def parts(self) -> Iterator[Tensor]:
        """float32 [tokens, d] of some whole rows, in order.

        Raises:
            WeightsError: truncated, or values that are not finite; says where.
        """
        together = max(1, _PART // max(1, prod(self.shape[1:])))
        for start in range(0, self.shape[0], together):
            part = self._rows(start, min(start + together, self.shape[0])).to(torch.float32)
            if not part.isfinite().all():
                row = start + int((~part.isfinite()).flatten(1).any(dim=1).nonzero()[0])
                raise WeightsError(f"{self.path}: row {row} holds values that are not finite; save it again in float32")
            yield part.reshape(-1, part.shape[-1])


def open_saved(path: Path, tensor: str | None = None) -> Saved:
    """Look into a file of activations.

    Args:
        tensor: name in a safetensors file; may be left out where there is only one.

    Raises:
        NotFoundError: no such file, or no such tensor.
        InputError: another kind of file, several tensors and none named, or an array of another form.
        WeightsError: truncated or damaged, or Python objects.
    """
    if not path.is_file():
        raise NotFoundError(f"{path} does not exist; name a .npy or .safetensors file of activations")
    if path.suffix.lower() == ".npy":
        if tensor is not None:
            raise InputError(f"{path} is a .npy file, which holds one array without a name; leave out --tensor")
        return _npy(path)
    if path.suffix.lower() == ".safetensors":
        return _safetensors(path, tensor)
    raise InputError(f"{path} is not a .npy or .safetensors file; save the activations as one of them")


def _npy(path: Path) -> Saved:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise _damaged(path, error) from error
    if array.dtype.kind != "f":
        raise InputError(f"{path} holds {array.dtype}; activations are floating-point numbers")
    return Saved(path, _checked(path, array.shape), lambda start, stop: torch.from_numpy(np.array(array[start:stop])))


def _safetensors(path: Path, name: str | None) -> Saved:
    from safetensors import SafetensorError, safe_open

    try:
        file = safe_open(path, framework="pt")
        names = sorted(file.keys())
        if name is not None and name not in names:
            raise NotFoundError(f"{path} holds no tensor {name!r}; {nearest(name, names)}")
        if name is None and len(names) != 1:
            raise InputError(f"{path} holds {len(names)} tensors; name one with --tensor: {', '.join(names[:10])}")
        part = file.get_slice(name or names[0])
        shape, dtype = tuple(part.get_shape()), part.get_dtype()
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error) from error
    if dtype not in _DTYPES:
        raise InputError(f"{path} holds {dtype}; activations are floating-point numbers")
    return Saved(path, _checked(path, shape), lambda start, stop: part[start:stop])


def _checked(path: Path, shape: tuple[int, ...]) -> tuple[int, ...]:
    if len(shape) not in (2, 3) or not all(shape):
        raise InputError(f"{path} has shape {list(shape)}; expected [n, d] or [n, sequence, d], with something in it")
    return shape


def _damaged(path: Path, error: Exception) -> WeightsError:
    reason = " ".join(str(error).split())[:200]
    return WeightsError(f"{path} is truncated or damaged, or holds Python objects ({reason}); save it again")
