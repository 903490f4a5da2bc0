"""Tensors from safetensors files, checked: whole, finite, of the shapes they should have."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from gemlens.errors import NotFoundError, WeightsError

__all__ = ["check_shapes", "read_safetensors"]

_DTYPES = {torch.float32, torch.bfloat16, torch.float16, torch.float64}


def read_safetensors(path: Path, names: set[str], optional: frozenset[str] = frozenset()) -> dict[str, Tensor]:
    """Read some tensors of a file, in the dtype they are stored in.

    Raises:
        NotFoundError: no such file.
        WeightsError: truncated, damaged, a tensor missing, or values that are not finite real numbers.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            present = set(file.keys())
            if missing := names - present:
                raise WeightsError(
                    f"{path} lacks {', '.join(sorted(missing))}; it holds {', '.join(sorted(present)) or 'nothing'}"
                )
            tensors = {name: file.get_tensor(name) for name in sorted(names | (optional & present))}
    except FileNotFoundError as error:
        raise NotFoundError(f"{path} does not exist; is this the folder of a dictionary?") from error
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} is truncated or damaged ({error}); download it again") from error
    for name, tensor in tensors.items():
        if tensor.dtype not in _DTYPES:
            stored = str(tensor.dtype).removeprefix("torch.")
            raise WeightsError(f"{path}: {name} holds {stored}, no real numbers gemlens knows; download it again")
        if not torch.isfinite(tensor).all():
            raise WeightsError(f"{path}: {name} holds values that are not finite; download it again")
    return tensors


def check_shapes(path: Path, tensors: dict[str, Tensor], expected: dict[str, tuple[int, ...]]) -> None:
    """Hold tensors against the shapes that follow from each other.

    Raises:
        WeightsError: naming the first that differs.
    """
    for name, shape in expected.items():
        if name in tensors and tuple(tensors[name].shape) != shape:
            raise WeightsError(
                f"{path}: {name} has shape {list(tensors[name].shape)}, expected {list(shape)}; "
                "the file is not a Gemma Scope 2 dictionary"
            )
