"""Multiple choice at every layer: the items, what the model scored, what fired, and what tells right from wrong.

A *text* is one choice of one item with its context; texts are numbered item by item, choice by choice.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gemlens.records.analysis import ActiveFeatures, DictionaryInfo, Provenance

__all__ = [
    "Accuracy",
    "Cause",
    "CauseEffect",
    "Choices",
    "Example",
    "ExampleToken",
    "FeatureTest",
    "Item",
    "LayerTests",
    "MarginLens",
    "Overlap",
    "Pooling",
    "Skipped",
]

Pooling = str
"""``last``, ``mean``, ``max`` or ``all``: which tokens of a choice its features are taken from."""


@dataclass(frozen=True, slots=True)
class Item:
    """One question with two or more choices."""

    id: int
    """Row in the data set, from 0."""
    question: str
    choices: tuple[str, ...]
    """As the data set has them; their characters count for ``acc_norm``."""
    gold: int
    contexts: tuple[str, ...]
    """What the model reads before each choice; most often the same for all."""
    continuations: tuple[str, ...]
    """What is scored, its leading space included."""


@dataclass(frozen=True, slots=True)
class Skipped:
    """A row that was left out, and why."""

    id: int
    reason: str


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Share of items whose right choice scores highest, with Wilson's interval of 95 %."""

    name: str
    """``acc``: by log-likelihood; ``acc_norm``: by log-likelihood a character."""
    correct: int
    items: int
    low: float
    high: float

    @property
    def share(self) -> float:
        return self.correct / self.items


@dataclass(frozen=True, slots=True)
class Overlap:
    """Features of the right choice that also fire for a wrong one: shared over either (Jaccard), mean over items."""

    right_wrong: float
    standard_error: float
    same_last: float | None
    """Among items whose choices end in one token; None without such."""
    other_last: float | None
    """Among the others."""
    right_right: float
    """The right choice's with that of the next item: what is shared by any two texts."""


@dataclass(frozen=True, slots=True)
class FeatureTest:
    """Does one feature fire more for right choices than for wrong ones?

    Tested on one half of the items, by a randomization test within items: under the hypothesis that the key says
    nothing, any choice of an item is as likely to be called right. With two choices that is the sign-flip test.
    """

    feature_id: int
    items: int
    """Of the half, those where it is active for any choice."""
    right: float
    wrong: float
    """Mean activation over the half, silence counted as 0; of several wrong choices their mean."""
    z: float
    """Sum of the differences over the standard deviation of that sum under the hypothesis."""
    p: float
    q: float
    """Benjamini-Hochberg over all features of all dictionaries."""
    p_length: float
    """With what the difference in tokens explains taken out."""
    p_same_last: float | None
    """Among items whose choices end in one token; None where it fires in fewer than ten of those."""
    held_out_difference: float
    """Right minus wrong on the other half."""
    held_out_p: float
    confirmed: bool
    """q, both controls as far as they apply, and the other half, all at 0.05, with one sign."""

    @property
    def difference(self) -> float:
        return self.right - self.wrong


@dataclass(frozen=True, slots=True)
class LayerTests:
    """The features of one dictionary."""

    tested: int
    """Active in enough items of the half."""
    significant: int
    """q at most 0.05."""
    confirmed: int
    features: tuple[FeatureTest, ...]
    """Smallest p first: all significant ones up to a limit, or the first few where there are none."""


@dataclass(frozen=True, slots=True, eq=False)
class MarginLens:
    """The margin that the model would have if it stopped after a layer (the logit lens)."""

    layers: tuple[int, ...]
    items: tuple[int, ...]
    """Indices into ``Choices.items``."""
    margins: NDArray[np.float64]
    """[layers, items], log-likelihood of the right choice less that of the best wrong one, in nats."""


@dataclass(frozen=True, slots=True)
class ExampleToken:
    text: str
    activation: float
    scored: bool
    """Of the choice, not of its context."""


@dataclass(frozen=True, slots=True)
class Example:
    """One feature on one item, token by token."""

    dictionary: int
    feature_id: int
    item: int
    """Index into ``Choices.items``."""
    texts: tuple[tuple[ExampleToken, ...], ...]
    """For each choice."""


@dataclass(frozen=True, slots=True)
class CauseEffect:
    """What an ablation does on the held-out half."""

    features: tuple[tuple[int, int], ...]
    """Dictionary and feature of each."""
    accuracy: float
    margin: float
    """Mean, in nats."""
    margin_change: float
    margin_error: float
    """Standard error of the mean change over items."""
    random_accuracy: tuple[float, ...]
    random_margin_change: tuple[float, ...]
    """The same of each draw of equally frequent features."""

    @property
    def p(self) -> float:
        """Share of draws, this one counted, that change the margin as much."""
        as_much = sum(abs(each) >= abs(self.margin_change) for each in self.random_margin_change)
        return (1 + as_much) / (1 + len(self.random_margin_change))


@dataclass(frozen=True, slots=True)
class Cause:
    """Features chosen on one half, ablated on the other where the scored logits are computed."""

    items: int
    accuracy: float
    """Of the half, untouched."""
    margin: float
    together: CauseEffect
    alone: tuple[CauseEffect, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Choices:
    """What a model scored on multiple-choice items, and which features fired for each choice."""

    model_id: str
    dataset: str
    token: Pooling
    top_k: int
    items: tuple[Item, ...]
    dictionaries: tuple[DictionaryInfo, ...]
    scored: bool
    """False for two sets of texts, which have no question."""
    log_likelihood: NDArray[np.float64]
    """[texts], nats; NaN where not scored."""
    n_tokens: NDArray[np.int64]
    """[texts], scored tokens."""
    last_token: tuple[str, ...]
    """[texts], what the last token adds to the text."""
    last_token_id: NDArray[np.int64]
    """[texts]"""
    features: tuple[ActiveFeatures, ...]
    """For each dictionary, one row a text; with ``token="all"`` one a token of each text."""
    row_text: NDArray[np.int64]
    """[rows], the text of each row of ``features``."""
    row_position: NDArray[np.int64]
    """[rows], its token's place among the text's scored tokens; of ``mean`` and ``max`` the last."""
    first_half: NDArray[np.bool_]
    """[items], those that features are chosen on."""
    accuracies: tuple[Accuracy, ...]
    overlaps: tuple[Overlap, ...]
    tests: tuple[LayerTests, ...]
    lens: MarginLens | None
    examples: tuple[Example, ...]
    cause: Cause | None
    skipped: tuple[Skipped, ...]
    warnings: tuple[str, ...]
    provenance: Provenance

    @property
    def first_text(self) -> NDArray[np.int64]:
        """[items + 1], where the texts of each item begin."""
        return np.cumsum([0, *(len(item.choices) for item in self.items)])

    def margin(self, index: int) -> float:
        """Log-likelihood of an item's right choice less that of its best wrong one."""
        item, start = self.items[index], int(self.first_text[index])
        scores = self.log_likelihood[start : start + len(item.choices)]
        return float(scores[item.gold] - np.delete(scores, item.gold).max())
