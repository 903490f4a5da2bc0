"""What becomes of a model when features are changed: an ablation of some, a steering of some by several strengths."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from gemlens.records.analysis import DictionaryInfo, Provenance
from gemlens.records.labels import Labels

__all__ = ["AblatedFeature", "Ablation", "Dose", "EditedToken", "NextToken", "Steering", "SteeredToken"]


@dataclass(frozen=True, slots=True)
class EditedToken:
    """A token of a prompt that was read with and without some features."""

    position: int
    token_id: int
    token: str
    """Raw vocabulary piece."""
    text: str
    is_special: bool
    edited: bool
    """Whether features were taken out here; never at BOS unless that was asked for."""
    kl: float
    """Nats, KL(before || after) of the distributions of the token that follows."""
    loss_before: float | None
    """Nats, of the token that does follow; None at the last."""
    loss_after: float | None


@dataclass(frozen=True, slots=True)
class AblatedFeature:
    """One feature, taken out alone."""

    dictionary: int
    """Index into ``Ablation.dictionaries``."""
    feature_id: int
    max_activation: float
    """Over the tokens that were edited; 0 where it was silent."""
    position: int | None
    """Of the token with that activation; None where it was silent."""
    active_tokens: int
    kl: float
    """Nats, mean over all tokens but BOS."""
    kl_last: float
    """At the last token."""
    loss_change: float
    """Nats a token, mean over all but the last."""


@dataclass(frozen=True, slots=True)
class NextToken:
    """A continuation of the prompt that was likely before or is likely after."""

    token_id: int
    text: str
    before: float
    """Probability."""
    after: float


@dataclass(frozen=True, slots=True)
class Ablation:
    """A prompt read with and without some features."""

    prompt: str
    system: str | None
    prompt_text: str
    """The string fed to the model."""
    model_id: str
    dictionaries: tuple[DictionaryInfo, ...]
    positions: str
    """Where features were taken out, in words."""
    tokens: tuple[EditedToken, ...]
    features: tuple[AblatedFeature, ...]
    """In the order asked for."""
    next_tokens: tuple[NextToken, ...]
    """Likeliest first, by what they had before."""
    answer_before: str
    """What the model adds, as it is and with all the features taken out; empty where nothing was generated."""
    answer_after: str
    provenance: Provenance
    warnings: tuple[str, ...] = field(default=())
    labels: Labels = field(default=())
    """Aligned with ``dictionaries``."""

    @property
    def kl(self) -> float:
        """Nats a token, all the features taken out, mean over all tokens but BOS."""
        counted = [token.kl for token in self.tokens[1:]]
        return sum(counted) / len(counted) if counted else 0.0

    @property
    def loss_change(self) -> float:
        """Nats a token, mean over those that are followed by another."""
        changes = [
            token.loss_after - token.loss_before
            for token in self.tokens
            if token.loss_after is not None and token.loss_before is not None
        ]
        return sum(changes) / len(changes) if changes else 0.0

    def _repr_html_(self) -> str:
        from gemlens.report.edits_notebook import ablation_view

        return ablation_view(self)


@dataclass(frozen=True, slots=True)
class SteeredToken:
    """A token that a steered model added."""

    token_id: int
    token: str
    text: str
    loss: float
    """Nats, its surprise to the model without steering."""
    kl: float
    """Nats, KL(steered || unsteered) of the distributions that it was drawn from and would have been drawn from."""


@dataclass(frozen=True, slots=True)
class Dose:
    """What the model adds at one strength."""

    strength: float
    tokens: tuple[SteeredToken, ...]

    @property
    def text(self) -> str:
        return "".join(token.text for token in self.tokens)

    @property
    def perplexity(self) -> float:
        """Of the answer under the model without steering."""
        return math.exp(min(sum(token.loss for token in self.tokens) / len(self.tokens), 700.0))

    @property
    def kl(self) -> float:
        """Nats a token, mean over the answer."""
        return sum(token.kl for token in self.tokens) / len(self.tokens)


@dataclass(frozen=True, slots=True)
class Steering:
    """One prompt continued under several strengths, which draw the same random numbers."""

    prompt: str
    system: str | None
    prompt_text: str
    model_id: str
    dictionary: DictionaryInfo | None
    """None for a plain direction."""
    features: tuple[int, ...]
    direction: str | None
    """What a plain direction is called."""
    site: str
    """The first that is written."""
    mode: str
    relative_to: str | None
    maxima: tuple[float, ...]
    """Activations of strength 1, a feature each, where strengths are relative to them."""
    positions: str
    max_new_tokens: int
    doses: tuple[Dose, ...]
    """By strength; that of strength 0 is the model as it is."""
    provenance: Provenance
    warnings: tuple[str, ...] = field(default=())
    labels: Labels = field(default=())
    """Of the one dictionary."""

    @property
    def unit(self) -> str:
        """What a strength is counted in."""
        if self.mode == "scale":
            return "multiples of the activation"
        if self.relative_to is None:
            return "activations" if self.dictionary is not None else "multiples of the direction"
        return "maximum activations" if self.relative_to == "max" else "norms of what passes the site"

    def _repr_html_(self) -> str:
        from gemlens.report.edits_notebook import steering_view

        return steering_view(self)
