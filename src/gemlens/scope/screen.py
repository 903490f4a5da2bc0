"""A quick upper bound on pre-activations, proven, so that few of them have to be computed in float32.

Of 65,536 features some 80 fire on a token, yet ``x @ W.T`` computes all of them. The same product of numbers rounded
to bfloat16 takes a fraction of the time, and how far it is off can be bounded. With ``x = x' + dx`` and
``w = w' + dw``, primes rounded,

    w.x = w'.x' + dw.x + w'.dx  <=  w'.x' + |dw| |x| + |w'| |dx|        (Cauchy-Schwarz)

``|dw|`` and ``|w'|`` are numbers of a feature, ``|x|`` and ``|dx|`` of a token: with two more columns on either side
one product yields the bound itself. A float32 sum of k products is off by at most ``g = k u / (1 - k u)`` times the
sum of their sizes, u = 2**-24, in whatever order it is added (Higham 2002, section 3.1). That goes into the same
columns, once for the bound's own sum and once for the float32 pre-activation below it. So no feature that fires is
lost: where the pre-activation exceeds a threshold in float32, the bound exceeds it too. On Gemma's residual streams a
few more pass than fire, and only those are computed in float32.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from gemlens.precision import cpu_multiplies_bfloat16

__all__ = ["Screen", "products", "screens_on"]

_UNIT = 2.0**-24
# Rounding to bfloat16 loses 2**-9 at most, a float32 norm and sum of 2**14 terms 2**-10 each.
_UP = 1 + 2.0**-7
_MOST_COLUMNS = 1 << 14
# Columns come in multiples of a tile of the matrix unit.
_TILE = 32
# Features rounded at a time: their float32 copies stay in a core's cache, which halves the time.
_PART = 128
# Far above what the matrix unit takes for zero, far below any activation.
_NOTHING = 2.0**-100


class Screen:
    """Upper bounds on ``x @ weight.T``, for a float32 ``weight`` [width, d]; holds about half its bytes."""

    def __init__(self, weight: Tensor) -> None:
        width, self.d = weight.shape
        columns = -(-(self.d + 2) // _TILE) * _TILE
        self._rounded = torch.zeros(width, columns, dtype=torch.bfloat16, device=weight.device)
        self._sum_error = columns * _UNIT / (1 - columns * _UNIT)
        for part, rounded in zip(weight.split(_PART), self._rounded.split(_PART), strict=True):
            rounded[:, : self.d] = part
            near = rounded[:, : self.d].float()
            size, lost = near.norm(dim=1), (part - near).norm(dim=1)
            # With |dw| go the errors of two sums of size |w| |x|, each |w| <= |w'| + |dw|.
            rounded[:, self.d] = _up(lost + 2 * self._sum_error * _UP * (size + lost))
            rounded[:, self.d + 1] = _up(size)
        self._is_finite = bool(self._rounded[:, self.d : self.d + 2].isfinite().all())

    @property
    def nbytes(self) -> int:
        return self._rounded.nbytes

    def tokens(self, x: Tensor) -> Tensor | None:
        """Activations [n, d] in float32 as ``passing`` takes them; None where a norm overflows and bounds nothing."""
        rounded = x.new_zeros(len(x), self._rounded.shape[1], dtype=torch.bfloat16)
        rounded[:, : self.d] = x
        rounded[:, self.d] = _up(x.norm(dim=1))
        rounded[:, self.d + 1] = _up((x - rounded[:, : self.d].float()).norm(dim=1))
        return rounded if self._is_finite and rounded[:, self.d].isfinite().all() else None

    def passing(self, tokens: Tensor, start: int, bias: Tensor, least: Tensor) -> tuple[Tensor, Tensor]:
        """Token and feature of every pre-activation that may exceed ``least``, by token.

        Args:
            tokens: from ``tokens``.
            start: first of the features that are asked about; the second result counts from it.
            bias: [features], added to their products.
            least: [features]
        """
        bound = tokens @ self._rounded[start : start + len(bias)].T
        slack = self._sum_error + 2 * _UNIT
        beyond = least - bias - slack * (least.abs() + bias.abs()) - _NOTHING
        # Rounding both sides to bfloat16 keeps their order, or makes them equal.
        token, feature = (bound >= beyond.bfloat16()).nonzero(as_tuple=True)
        return token, feature


def products(x: Tensor, weight: Tensor, tokens: Tensor, ids: Tensor) -> Tensor:
    """[pairs], ``x[tokens] * weight[ids]`` summed over d, without a copy of any row.

    Args:
        x: [n, d]
        weight: [features, d]
        tokens, ids: [pairs], ascending by token.
    """
    indptr = torch.zeros(len(x) + 1, dtype=torch.int64)
    indptr[1:] = torch.bincount(tokens, minlength=len(x)).cumsum(0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR", UserWarning)
        pattern = torch.sparse_csr_tensor(
            indptr, ids, x.new_zeros(len(ids)), (len(x), len(weight)), check_invariants=False
        )
    return torch.sparse.sampled_addmm(pattern, x, weight.T, beta=0.0).values()


def screens_on(weight: Tensor) -> bool:
    """Whether a screen of this matrix is proven, and quicker than the plain product."""
    fits = weight.dtype == torch.float32 and weight.is_contiguous() and weight.shape[1] < _MOST_COLUMNS - _TILE
    return fits and weight.device.type == "cpu" and cpu_multiplies_bfloat16()


def _up(sizes: Tensor) -> Tensor:
    """Not below ``sizes`` and a little more, in bfloat16."""
    return (sizes * _UP).bfloat16()
