"""A weight matrix in int8: a quarter of float32's memory, dequantised a block at a time.

    row f = codes[f] * scale[f] * columns

``scale`` puts the largest size of a row at code 127. ``columns`` first brings the dimensions of the row closer
together. An encoder needs that: one dimension of Gemma's residual stream holds most of its energy, its weights
for it are small, and half a step of error in them would be multiplied by thousands. A decoder and a skip need it where
what they write is of very different sizes: the model's next norm may make most of the small ones. ``columns`` is a
power of a column's mean size below 1: with all of it, the few features whose largest weight lies in such a column would
lose much of the others. SmoothQuant (arXiv:2211.10438) goes half the way between two matrices alike.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from gemlens.scope.rows import Rows

__all__ = ["ENCODER_POWER", "OUTPUT_POWER", "Int8Rows", "quantize"]

ENCODER_POWER = 0.5
OUTPUT_POWER = 0.75
"""Of decoders and skips. At 0.5 splicing in the starter's transcoder at layer 5 costs 0.02 nats more."""

_MOST = 127


class Int8Rows(Rows):
    """Codes in memory, weights on demand, in ``dtype``; ``.to(dtype)`` changes what they are turned into.

    Args:
        codes: int8 [width, d].
        scale: float32 [width], > 0.
        columns: float32 [d], > 0, or None for ones.
        dtype: of what is given out; computed in float32.
    """

    # 4,096 x 2,304 weights of float32 are 38 MB.
    BLOCK = 4096

    def __init__(
        self, codes: Tensor, scale: Tensor, columns: Tensor | None = None, *, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        self.width, self.d = codes.shape
        # Holds nothing but a dtype, which follows the module's like that of a buffer of weights would.
        like = torch.empty(0, dtype=dtype, device=codes.device)
        for name, tensor in {"codes": codes, "scale": scale, "columns": columns, "like": like}.items():
            self.register_buffer(name, tensor)
        self.codes: Tensor
        self.scale: Tensor
        self.columns: Tensor | None
        self.like: Tensor

    def rows(self, ids: Tensor) -> Tensor:
        return self._dequantized(self.codes[ids], self.scale[ids])

    def blocks(self) -> Iterator[tuple[int, Tensor]]:
        for start in range(0, self.width, self.BLOCK):
            part = slice(start, start + self.BLOCK)
            yield start, self._dequantized(self.codes[part], self.scale[part])

    def _dequantized(self, codes: Tensor, scale: Tensor) -> Tensor:
        rows = codes.float().mul_(scale[:, None])
        if self.columns is not None:
            rows.mul_(self.columns)
        return rows.to(self.like.dtype)

    @property
    def nbytes(self) -> int:
        held = [self.codes, self.scale, self.columns]
        return sum(tensor.nbytes for tensor in held if tensor is not None)


def quantize(weights: Rows, *, power: float) -> Int8Rows:
    """The nearest int8 rows to finite ones: off by at most half of ``scale[f] * columns[i]``.

    Args:
        power: of a column's mean size, by which it is evened out.
    """
    sums = torch.stack([block.abs().sum(dim=0, dtype=torch.float64) for _, block in weights.blocks()])
    columns = _positive((sums.sum(dim=0) / weights.width).pow(power).float())
    codes, scales = [], []
    for _, block in weights.blocks():
        rows = block.float() / columns
        # Clipping each row's largest where that lowers its squared error changes nothing: no row has such outliers.
        scale = _positive(rows.abs().amax(dim=1) / _MOST)
        codes.append((rows / scale[:, None]).round_().clamp_(-_MOST, _MOST).to(torch.int8))
        scales.append(scale)
    return Int8Rows(torch.cat(codes), torch.cat(scales), columns, dtype=block.dtype)


def _positive(scale: Tensor) -> Tensor:
    """A row or column of zeros has codes of 0, whatever its scale."""
    return scale.clamp(min=torch.finfo(torch.float32).tiny)
