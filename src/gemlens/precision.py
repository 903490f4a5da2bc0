"""Where numbers of 16 bits are quick to multiply, and where they are not.

A processor without instructions for bfloat16 multiplies it all the same, at a sixth of float32's speed or less than a
hundredth, by the shape of the product.
"""

from __future__ import annotations

from functools import cache

import torch

__all__ = ["cpu_multiplies_bfloat16", "quick_dtype"]


def quick_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where ``device`` has instructions for it, else float32; every accelerator is taken to have them."""
    return torch.bfloat16 if device.type != "cpu" or cpu_multiplies_bfloat16() else torch.float32


@cache
def cpu_multiplies_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 faster than float32, and sums in float32."""
    if not torch.backends.mkldnn.is_available() or not (
        torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    ):
        return False
    # 256 + 1023: a sum in bfloat16 would stay at 256, where it counts in twos.
    ones = torch.ones(64, 1024, dtype=torch.bfloat16)
    ones[:, 0] = 256
    ones[:, 1] = 0
    return bool((ones @ torch.ones(1024, 64, dtype=torch.bfloat16) >= 1278).all())
