"""Encode 512 tokens, float32: gemlens' sparse features against sae-lens' dense ones.

``no screen`` is gemlens with its low-precision screen switched off.
"""

from __future__ import annotations

from collections.abc import Callable

from dictionaries import KINDS, Kind, same
from timing import Aim, Case, Work

INPUTS = 5
AIMS = {"d 2304, 65k features": 2.0, "d 2304, 16k features": 1.5, "d 640, 16k features": 1.5}


def _gemlens(kind: Kind, *, screening: bool) -> Callable[[int], Work]:
    def side(seed: int) -> Work:
        sae, (warm, *timed) = kind(seed, 1 + INPUTS)
        sae.encoder.screening = screening
        return Work(sae.encode, timed, warm, [sae], lambda found: {"l0": len(found.ids) / len(found)})

    return side


def _sae_lens(kind: Kind) -> Callable[[int], Work]:
    def side(seed: int) -> Work:
        import torch

        from peers import sae_lens_of

        sae, (warm, *timed) = kind(seed, 1 + INPUTS)
        theirs = sae_lens_of(sae)
        del sae
        encode = torch.no_grad()(theirs.encode)
        return Work(encode, timed, warm, [theirs], lambda acts: {"l0": float((acts > 0).sum()) / len(acts)})

    return side


CASES = [
    Case(
        name,
        {
            "gemlens": _gemlens(kind, screening=True),
            "sae-lens": _sae_lens(kind),
            "no screen": _gemlens(kind, screening=False),
        },
        # Never slower, where no more was asked for.
        {"sae-lens": Aim(faster=AIMS.get(name, 1.0))},
        same(kind),
    )
    for name, kind in KINDS.items()
]
