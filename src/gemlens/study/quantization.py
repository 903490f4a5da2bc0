"""What storing a dictionary in fewer bits costs: the same text through the exact one and the one that was stored."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice, tee

import torch
from torch import Tensor

from gemlens.errors import InputError
from gemlens.lm.gemma import Model
from gemlens.lm.stream import activation_stream
from gemlens.records import QuantizationCost
from gemlens.scope.features import Features
from gemlens.scope.sae import SAE
from gemlens.study.fidelity import VARIANCE_ROWS, fidelity, rows_of

__all__ = ["quantization_cost"]


def quantization_cost(
    model: Model,
    exact: SAE,
    quantized: SAE,
    texts: Iterable[str],
    *,
    report: Callable[[int, int], None] = lambda _done, _total: None,
) -> QuantizationCost:
    """Measure both by the fidelity protocol, and count the active features that they share.

    Args:
        quantized: ``exact`` after it was stored, of the same features.
        texts: as ``fidelity`` takes them.
        report: called with parts done and parts to do.

    Raises:
        InputError: dictionaries of different widths or sites; and all that ``fidelity`` raises.
    """
    if (exact.width, exact.reads, exact.writes) != (quantized.width, quantized.reads, quantized.writes):
        raise InputError(
            f"{exact.info.id} has {exact.width} features of {exact.reads}, {quantized.info.id} {quantized.width} of "
            f"{quantized.reads}; give one dictionary before and after it was stored"
        )
    of_exact, of_quantized, of_features = tee(texts, 3)
    before = fidelity(model, exact, of_exact)
    report(1, 3)
    after = fidelity(model, quantized, of_quantized)
    report(2, 3)
    rows = islice(rows_of(model, of_features), VARIANCE_ROWS)
    active = shared = active_quantized = 0
    for read in activation_stream(model, rows, [exact.reads], together=16):
        x = read[exact.reads].float()
        first, second = exact.encode(x), quantized.encode(x)
        active += len(first.ids)
        active_quantized += len(second.ids)
        shared += int(torch.isin(_pairs(first), _pairs(second), assume_unique=True).sum())
    report(3, 3)
    return QuantizationCost(
        exact=before,
        quantized=after,
        kept=shared / max(1, active),
        added=(active_quantized - shared) / max(1, active),
    )


def _pairs(features: Features) -> Tensor:
    """One number for each token and feature that fires on it."""
    return features.tokens * features.width + features.ids
