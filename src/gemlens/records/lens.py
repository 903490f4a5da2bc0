"""What a feature's direction adds to the logits of tokens, and what each layer of a model would predict."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from gemlens.records.analysis import DictionaryInfo, Provenance, TokenRecord
from gemlens.records.labels import Labels

__all__ = ["FeatureLens", "FeatureTokens", "ResidualLens", "TokenLogit"]


@dataclass(frozen=True, slots=True)
class TokenLogit:
    token_id: int
    text: str
    """What the token adds to a text; may be empty."""
    logit: float
    """Above the mean over the vocabulary."""


@dataclass(frozen=True, slots=True)
class FeatureTokens:
    """The tokens that one feature speaks for and against."""

    feature: int
    top: tuple[TokenLogit, ...]
    """Largest first."""
    bottom: tuple[TokenLogit, ...]
    """Smallest first."""
    shipped: tuple[int, ...] | None = None
    """Ids of the top tokens in the file that came with the dictionary, where there is one."""

    @property
    def agreement(self) -> float | None:
        """Share of the shipped top tokens that are among as many of ours; None where none were shipped."""
        if not self.shipped:
            return None
        ours = {token.token_id for token in self.top[: len(self.shipped)]}
        return len(ours & set(self.shipped)) / len(self.shipped)


@dataclass(frozen=True, slots=True)
class FeatureLens:
    """Features of one dictionary, through the final norm's weight and the head."""

    model_id: str
    dictionary: DictionaryInfo
    writes: tuple[str, ...]
    """Sites whose rows were added up."""
    features: tuple[FeatureTokens, ...]
    provenance: Provenance
    warnings: tuple[str, ...] = field(default=())
    labels: Labels = field(default=())
    """Of the one dictionary; none of a CLT, whose layers have features of their own under one name."""

    @property
    def agreement(self) -> float | None:
        """Mean over the features whose top tokens were shipped."""
        known = [each.agreement for each in self.features if each.agreement is not None]
        return sum(known) / len(known) if known else None

    def _repr_html_(self) -> str:
        from gemlens.report.lens_notebook import feature_view

        return feature_view(self)


@dataclass(frozen=True, slots=True)
class ResidualLens:
    """The tokens that each layer's residual stream would predict, through the model's own norm, head and soft-cap."""

    prompt: str
    system: str | None
    prompt_text: str
    model_id: str
    tokens: tuple[TokenRecord, ...]
    """Without features; ``l0`` is None at BOS, which views mark."""
    token_ids: NDArray[np.int64]
    """[layers, tokens, top_k], the likeliest next tokens after each layer, likeliest first."""
    probability: NDArray[np.float32]
    """[layers, tokens, top_k]"""
    final: NDArray[np.float32]
    """[layers, tokens], of the token that the whole model holds likeliest."""
    rank: NDArray[np.int64]
    """[layers, tokens], its place by probability, from 0."""
    texts: dict[int, str]
    """Of every id in ``token_ids``."""
    provenance: Provenance
    warnings: tuple[str, ...] = field(default=())

    @property
    def layers(self) -> int:
        return len(self.token_ids)

    def _repr_html_(self) -> str:
        from gemlens.report.lens_notebook import residual_view

        return residual_view(self)
