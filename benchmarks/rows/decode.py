"""Decode what encoding 512 tokens found, float32: gemlens from sparse features, sae-lens from dense ones."""

from __future__ import annotations

from collections.abc import Callable

from dictionaries import KINDS, Kind, same, starter_and_residuals
from timing import Aim, Case, Work

INPUTS = 5


def _gemlens(kind: Kind) -> Callable[[int], Work]:
    def side(seed: int) -> Work:
        sae, inputs = kind(seed, 1 + INPUTS)
        warm, *timed = [sae.encode(x) for x in inputs]
        return Work(sae.decode, timed, warm, [sae])

    return side


def _sae_lens(kind: Kind) -> Callable[[int], Work]:
    def side(seed: int) -> Work:
        import torch

        from peers import sae_lens_of

        sae, inputs = kind(seed, 1 + INPUTS)
        warm, *timed = [sae.encode(x).dense() for x in inputs]
        theirs = sae_lens_of(sae)
        del sae
        return Work(torch.no_grad()(theirs.decode), timed, warm, [theirs])

    return side


CASES = [
    Case(
        name,
        {"gemlens": _gemlens(kind), "sae-lens": _sae_lens(kind)},
        # The starter's 4k features were not asked to be more than no slower.
        {"sae-lens": Aim(faster=1 if kind is starter_and_residuals else 10)},
        same(kind),
    )
    for name, kind in KINDS.items()
]
