"""The dictionaries that encoding and decoding are timed on, with their inputs, and their comparison with sae-lens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

__all__ = ["KINDS", "Kind", "same", "starter_and_residuals"]

# A dictionary, and some inputs of 512 tokens.
Kind = Callable[[int, int], tuple[Any, list[Any]]]
TOKENS = 512


def _random(d: int, width: int) -> Kind:
    def make(seed: int, inputs: int) -> tuple[Any, list[Any]]:
        import torch

        from given import random_dictionary

        generator = torch.Generator().manual_seed(seed + 1)
        return random_dictionary(d, width, seed), [torch.randn(TOKENS, d, generator=generator) for _ in range(inputs)]

    return make


def starter_and_residuals(seed: int, inputs: int) -> tuple[Any, list[Any]]:
    from given import residuals, starter_dictionary

    return starter_dictionary(), residuals(inputs, TOKENS, seed)


KINDS: dict[str, Kind] = {
    "d 2304, 65k features": _random(2304, 65536),
    "d 2304, 16k features": _random(2304, 16384),
    "d 640, 16k features": _random(640, 16384),
    "starter, layer 12, 4k features": starter_and_residuals,
}


def same(kind: Kind) -> Callable[[int], dict[str, Any]]:
    """Do gemlens and sae-lens agree on features, values and reconstructions?"""

    def facts(seed: int) -> dict[str, Any]:
        from equality import compare, encoder_of, ours_of
        from peers import sae_lens_of, theirs_of

        sae, (x,) = kind(seed, 1)
        check = compare("", "sae-lens", ours_of(sae, x), theirs_of(sae_lens_of(sae), x), encoder_of(sae), x)
        shown = (
            *("active", "differing", "differing_at_threshold", "worst_value", "apart", "apart_by_rounding"),
            "worst_reconstruction",
        )
        return {key: asdict(check)[key] for key in shown} | {"holds": check.holds}

    return facts
