"""Gemma Scope 2's tensors with their matrices in int8, gemlens' own addition: ``quantized: int8`` in ``config.json``.

    w_enc                   int8, times w_enc_scale [F] (one a feature) and w_enc_input_scale [d_in]
    w_dec                   int8, times w_dec_scale [F], or [F, layers] where a feature writes several layers, and
                            w_dec_output_scale [d_out]
    affine_skip_connection  int8, times affine_skip_connection_scale [d_in] and affine_skip_connection_output_scale

Scales are float32 and above 0; all other tensors are as without ``quantized``. The scales of inputs and outputs may be
missing.
Tensors and config have to agree: int8 read as whole numbers would make another dictionary.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from gemlens.errors import WeightsError
from gemlens.scope.formats.layout import Layout, Target, read
from gemlens.scope.int8 import Int8Rows
from gemlens.scope.rows import DenseRows, Rows
from gemlens.scope.weights import TensorFile, check_shapes

__all__ = ["Weights", "column_scale_name", "is_quantized", "read_weights", "scale_name"]

_ENCODER = "w_enc"
_CODES = "I8"
"""What safetensors calls int8."""
_QUANTIZED = frozenset({"encoder", "decoder", "skip"})


class Weights(NamedTuple):
    """What a file of Gemma Scope 2 holds, by our names."""

    encoder: Rows
    decoder: Rows
    """One row an output of a feature."""
    small: dict[str, Tensor]
    """``b_enc``, ``b_dec``, ``threshold``, and ``skip`` if there is one."""


def scale_name(name: str) -> str:
    """What the scale of a tensor is called."""
    return f"{name}_scale"


def column_scale_name(name: str) -> str:
    """What the scale of its columns is called."""
    return f"{name}_input_scale" if name == _ENCODER else f"{name}_output_scale"


def is_quantized(config: dict[str, Any], where: str) -> bool:
    """Whether a config says that the matrices are int8.

    Raises:
        WeightsError: it says something else.
    """
    if (kind := config.get("quantized")) not in (None, "int8"):
        raise WeightsError(
            f"{where} says quantized {str(kind)[:40]!r}; gemlens knows int8, or nothing for numbers as they are"
        )
    return kind is not None


def read_weights(
    file: TensorFile, layout: Layout, to: Target, *, quantized: bool, outputs: int | None = None, first: int = 0
) -> Weights:
    """The tensors of one file, int8 or not; ``outputs`` and ``first`` as ``layout.read`` has them.

    Raises:
        WeightsError: the tensors are not stored as ``quantized`` says, or a scale is missing, of another length, no
            float32, not finite, or not above 0; and all that ``layout.read`` raises.
    """
    stored_as = {theirs: file.tensors[theirs].dtype for theirs in layout.names.values() if theirs in file.tensors}
    if not quantized:
        if codes := sorted(name for name, dtype in stored_as.items() if dtype == _CODES):
            raise WeightsError(
                f"{file.path}: {codes[0]} is stored as int8, and no config.json beside it says quantized: int8; "
                "keep the two files together"
            )
        tensors = read(file, layout, to, outputs=outputs, first=first)
        encoder, decoder = (DenseRows(tensors.pop(name).flatten(0, -2)) for name in ("encoder", "decoder"))
        return Weights(encoder, decoder, tensors)
    for name in (layout.names[ours] for ours in _QUANTIZED):
        if stored_as.get(name, _CODES) != _CODES:
            kind = str(stored_as[name]).removeprefix("torch.")[:40]
            raise WeightsError(f"{file.path}: {name} is stored as {kind}, and its config says quantized: int8")
    tensors = read(file, layout, to, outputs=outputs, first=first, codes=_QUANTIZED)
    rows = {}
    for ours in sorted(_QUANTIZED & set(tensors)):
        several = (outputs, first) if ours == "decoder" else (None, 0)
        rows[ours] = _rows(file, layout.names[ours], tensors.pop(ours), to, *several)
    if "skip" in rows:
        # As it is used: as small as the matrices are large.
        tensors["skip"] = torch.cat([block for _, block in rows["skip"].blocks()])
    return Weights(rows["encoder"], rows["decoder"], tensors)


def _rows(file: TensorFile, name: str, codes: Tensor, to: Target, outputs: int | None, first: int) -> Int8Rows:
    """The rows of one matrix, codes [..., d] by our orientation."""
    scale = _scale(file, scale_name(name), (len(codes), *([] if outputs is None else [outputs])), to, first)
    columns = None
    if (column_name := column_scale_name(name)) in file.tensors:
        columns = _scale(file, column_name, codes.shape[-1:], to)
    largest = -torch.iinfo(torch.int8).min * scale.max() * (1 if columns is None else columns.max())
    if not largest <= torch.finfo(to.dtype).max:
        kind = str(to.dtype).removeprefix("torch.")
        raise WeightsError(f"{file.path}: {name} by its scales is not finite as {kind}; download it again")
    return Int8Rows(codes.flatten(0, -2), scale.flatten(), columns, dtype=to.dtype)


def _scale(file: TensorFile, name: str, shape: tuple[int, ...], to: Target, first: int = 0) -> Tensor:
    """float32 on the device, ``[:, first:]`` of it."""
    file.require({name})
    check_shapes(file, {name: shape}, "an int8")
    if (stored := file.tensors[name].dtype) != torch.float32:
        kind = str(stored).removeprefix("torch.")[:40]
        raise WeightsError(f"{file.path}: {name} is stored as {kind}, expected float32; download it again")
    scale = file.read(name, torch.float32, first=first)
    if not (scale > 0).all():
        raise WeightsError(f"{file.path}: {name} holds {float(scale.min()):g}; scales are above 0, download it again")
    return scale.to(to.device)
