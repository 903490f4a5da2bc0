"""What features do to a number that a model computes from a prompt, and what a feature's direction says of tokens."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from gemlens.records.analysis import DictionaryInfo, Provenance, TokenRecord
from gemlens.records.labels import Labels

__all__ = ["Attribution", "Completeness", "FeatureEffects", "Removal", "Strong"]


@dataclass(frozen=True, slots=True)
class FeatureEffects:
    """Every feature of one dictionary, or of one layer of a CLT or crosscoder, that is active on a prompt.

    An effect is what the target would lose without it, by the method of the attribution: positive ones speak for the
    target, negative ones against it.
    """

    dictionary: DictionaryInfo
    writes: tuple[str, ...]
    """Sites at which a feature's effect is taken."""
    position: NDArray[np.int64]
    """[nnz], ascending, as the three below: one entry for each feature that is active on each token."""
    feature: NDArray[np.int64]
    activation: NDArray[np.float32]
    effect: NDArray[np.float64]
    bias: NDArray[np.float64]
    """[tokens], of the dictionary's bias at the site that it writes (of a CLT: at this layer's); 0 where the method's
    baseline holds it."""
    skip: NDArray[np.float64]
    """[tokens], of a transcoder's affine skip; 0 where there is none or the baseline holds it."""
    error: NDArray[np.float64]
    """[tokens], of what the dictionary leaves over."""

    def by_token(self) -> NDArray[np.float64]:
        """[tokens], the sum of all features' effects at each."""
        total = np.zeros(len(self.error))
        np.add.at(total, self.position, self.effect)
        return total


@dataclass(frozen=True, slots=True)
class Completeness:
    """How far the terms of one dictionary add up to what its absence changes."""

    dictionary: DictionaryInfo
    baseline: str
    """What the target is held against, in words."""
    features: float
    """Sum of the effects of all features at all tokens."""
    bias: float
    skip: float
    error: float
    change: float
    """The target less the target at the baseline, from a run of the model."""

    @property
    def total(self) -> float:
        """What the terms add up to; ``change`` if the method is complete."""
        return self.features + self.bias + self.skip + self.error


@dataclass(frozen=True, slots=True)
class Removal:
    """One feature at one token, removed from a run of the model of its own."""

    layer: int
    """Index into ``Attribution.effects``."""
    position: int
    feature: int
    predicted: float
    """Its effect by the attribution's method."""
    actual: float
    """What the target lost."""


@dataclass(frozen=True, slots=True)
class Strong:
    """A feature at the token where its effect is largest in size, and its effects over the whole prompt."""

    layer: int
    """Index into ``Attribution.effects``."""
    feature: int
    effect: float
    """Summed over all tokens."""
    position: int
    """Where it is largest in size."""
    activation: float
    """There."""
    tokens: int
    """On how many it is active."""


@dataclass(frozen=True, slots=True)
class Attribution:
    """What every active feature at every token of a prompt does to a target."""

    prompt: str
    system: str | None
    prompt_text: str
    """The string fed to the model: the prompt after the chat template, where one was used."""
    model_id: str
    target: str
    """In words, e.g. ``logit of ' Paris' after token 5``."""
    value: float
    """Of the target, on the clean pass."""
    method: str
    tokens: tuple[TokenRecord, ...]
    """Without features: those are in ``effects``; ``l0`` as in an ``Analysis``."""
    effects: tuple[FeatureEffects, ...]
    """One for each dictionary; of a CLT or crosscoder one for each layer."""
    completeness: tuple[Completeness, ...]
    """One for each dictionary."""
    removed: tuple[Removal, ...]
    """The entries of largest effect in size, verified; as many as were asked for."""
    provenance: Provenance
    warnings: tuple[str, ...] = field(default=())
    labels: Labels = field(default=())
    """Aligned with ``effects``; none of a CLT, whose layers have features of their own under one name."""

    @property
    def correlation(self) -> float | None:
        """Pearson's, of predicted and actual effects of what was removed; None of less than three, or of equal ones."""
        predicted, actual = (
            np.array([getattr(each, name) for each in self.removed]) for name in ("predicted", "actual")
        )
        if len(predicted) < 3 or not predicted.std() or not actual.std():
            return None
        return float(np.corrcoef(predicted, actual)[0, 1])

    def by_token(self) -> NDArray[np.float64]:
        """[tokens], the sum of the effects of all features of all dictionaries at each."""
        return np.sum([each.by_token() for each in self.effects], axis=0)

    def errors(self) -> NDArray[np.float64]:
        """[tokens], the sum of the effects of what all dictionaries leave over."""
        return np.sum([each.error for each in self.effects], axis=0)

    def strongest(self, limit: int | None = None) -> list[Strong]:
        """Features by the size of their effects summed over the prompt, the largest first."""
        found = [strong for layer, each in enumerate(self.effects) for strong in _strong(layer, each)]
        return sorted(found, key=lambda strong: (-abs(strong.effect), strong.layer, strong.feature))[:limit]

    def _repr_html_(self) -> str:
        from gemlens.report.attribution_notebook import attribution_view

        return attribution_view(self)


def _strong(layer: int, effects: FeatureEffects) -> list[Strong]:
    order = np.lexsort((effects.position, -np.abs(effects.effect), effects.feature))
    features, starts, counts = np.unique(effects.feature[order], return_index=True, return_counts=True)
    sums = np.add.reduceat(effects.effect[order], starts) if len(starts) else effects.effect
    at = order[starts]
    columns = (features, sums, effects.position[at], effects.activation[at], counts)
    return [Strong(layer, *entry) for entry in zip(*(column.tolist() for column in columns), strict=True)]
