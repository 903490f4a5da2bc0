"""What storing a dictionary in fewer bits costs: the same text through the exact one and the one that was stored."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice, tee

import torch
from torch import Tensor

from gemlens.errors import InputError
from gemlens.lm.gemma import Model
from gemlens.lm.stream import activation_stream
from gemlens.records import QuantizationCost
from gemlens.scope.features import Features
from gemlens.scope.sae import SAE
from gemlens.study.fidelity import VARIANCE_ROWS, fidelities, rows_of

__all__ = ["quantization_cost", "quantization_costs"]


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
        report: called with rows done and rows to do.

    Raises:
        InputError: dictionaries of different widths or sites; and all that ``fidelity`` raises.
    """
    return quantization_costs(model, [exact], [quantized], texts, report=report)[0]


def quantization_costs(
    model: Model,
    exact: Sequence[SAE],
    quantized: Sequence[SAE],
    texts: Iterable[str],
    *,
    report: Callable[[int, int], None] = lambda _done, _total: None,
) -> list[QuantizationCost]:
    """The same of several dictionaries, which share every pass over the text."""
    pairs = list(zip(exact, quantized, strict=True))
    for before, after in pairs:
        if (before.width, before.reads, before.writes) != (after.width, after.reads, after.writes):
            raise InputError(
                f"{before.info.id} has {before.width} features of {before.reads}, {after.info.id} {after.width} of "
                f"{after.reads}; give one dictionary before and after it was stored"
            )
    of_both, of_features = tee(texts)
    figures = fidelities(model, [*exact, *quantized], of_both, report=report)
    counts = _shared(model, pairs, of_features)
    return [
        QuantizationCost(exact=before, quantized=after, kept=count.shared / max(1, count.before), added=count.added)
        for before, after, count in zip(figures, figures[len(pairs) :], counts, strict=False)
    ]


@dataclass
class _Count:
    """Active features by token."""

    before: int = 0
    after: int = 0
    shared: int = 0

    @property
    def added(self) -> float:
        return (self.after - self.shared) / max(1, self.before)


def _shared(model: Model, pairs: Sequence[tuple[SAE, SAE]], texts: Iterable[str]) -> list[_Count]:
    counts = [_Count() for _ in pairs]
    rows = islice(rows_of(model, texts), VARIANCE_ROWS)
    for read in activation_stream(model, rows, sorted({before.reads for before, _ in pairs}), together=16):
        for count, (before, after) in zip(counts, pairs, strict=True):
            first, second = (each.encode(read[before.reads].float()) for each in (before, after))
            count.before += len(first.ids)
            count.after += len(second.ids)
            count.shared += int(torch.isin(_pairs(first), _pairs(second), assume_unique=True).sum())
    return counts


def _pairs(features: Features) -> Tensor:
    """One number for each token and feature that fires on it."""
    return features.tokens * features.width + features.ids
