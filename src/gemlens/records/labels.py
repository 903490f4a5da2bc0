"""What features are called: labels with where they come from, how well they hold, and the evidence they rest on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = [
    "CONFIDENCES",
    "Context",
    "Counts",
    "FeatureFacts",
    "Label",
    "Labels",
    "PhraseFeature",
    "Reply",
    "Score",
    "best_label",
    "label_text",
]

CONFIDENCES = ("high", "medium", "low")
"""How sure somebody is of a label, as they say themselves."""

_HAND, _AUTO = "hand", "auto"


@dataclass(frozen=True, slots=True)
class Score:
    """How well a label tells firing contexts from others: the area under the ROC curve."""

    method: str
    """``detection``, ``fuzzing``, ``words`` (the label's own words) or ``tokens`` (the feature's top tokens)."""
    auc: float
    """Probability that a firing context is told from another one; 0.5 is chance."""
    low: float
    """Of the interval of 95 %."""
    high: float
    firing: int
    """Contexts on which the feature fires."""
    silent: int
    """Contexts it was held against."""
    model: str | None = None
    """Of the endpoint that judged; None where none did."""
    created: str = ""
    """UTC, ISO 8601."""


@dataclass(frozen=True, slots=True)
class Label:
    """One explanation of one feature of one dictionary; a feature may have several."""

    dictionary: str
    """Exact path: ``google/gemma-scope-2-270m-it/resid_post/layer_12_width_16k_l0_small``, or the folder's own."""
    feature: int
    text: str
    source: str
    """Who says so: ``neuronpedia``, ``gemlens``, a user's name, a file."""
    method: str | None = None
    """``hand``, ``auto`` (no model), or the name of what made it, such as ``oai_token-act-pair``."""
    model: str | None = None
    """Language model that wrote it."""
    confidence: str | None = None
    """One of ``CONFIDENCES``."""
    polysemantic: bool | None = None
    """Whether the feature means several things; None where nobody looked."""
    position: str | None = None
    """Where in a text it fires: a note."""
    examples: int | None = None
    """Examples that were seen before it was written."""
    created: str = ""
    """UTC, ISO 8601."""
    scores: tuple[Score, ...] = ()

    @property
    def is_auto(self) -> bool:
        """Made without anybody, or any model, having read the examples."""
        return self.method == _AUTO

    @property
    def shown(self) -> str:
        """Text as views show it: an automatic one says so, first, where no narrow column cuts it off."""
        return f"(auto) {self.text}" if self.is_auto else self.text

    @property
    def score(self) -> Score | None:
        """The one that says most: by a judge before one by words."""
        order = ("detection", "fuzzing", "words", "tokens")
        known = sorted(self.scores, key=lambda s: order.index(s.method) if s.method in order else len(order))
        return known[0] if known else None


Labels = tuple[Mapping[int, Label], ...]
"""Feature -> label, for each dictionary of a result; empty where none of its features has one."""


def label_text(labels: Labels, index: int, feature: int) -> str:
    """What views call a feature of the dictionary at ``index``; empty where nobody said."""
    label = labels[index].get(feature) if index < len(labels) else None
    return label.shown if label else ""


@dataclass(frozen=True, slots=True)
class FeatureFacts:
    """What Neuronpedia says of a feature besides its explanations."""

    top_positive_tokens: tuple[str, ...] = ()
    """Tokens that it promotes most."""
    top_negative_tokens: tuple[str, ...] = ()
    max_activation: float | None = None


@dataclass(frozen=True, slots=True)
class Counts:
    """What a download, an explanation or a scoring of many features came to."""

    found: int
    """Features that have a label, or a score, now."""
    missing: int
    """Features that there is none for."""
    failed: int
    """Features that could not be asked for; the same command tries them again."""
    labels: int = 0
    """Labels in all: a feature may have several."""
    reasons: tuple[str, ...] = ()
    """Why some failed, each reason once."""


@dataclass(frozen=True, slots=True)
class Context:
    """A passage, and how strongly one feature fires on each of its tokens."""

    tokens: tuple[str, ...]
    """Text of each."""
    activations: tuple[float, ...]
    """Aligned with ``tokens``; 0 where it is silent."""

    @property
    def text(self) -> str:
        return "".join(self.tokens)

    @property
    def peak(self) -> int:
        """Index of the token on which it is strongest."""
        return max(range(len(self.tokens)), key=self.activations.__getitem__)


@dataclass(frozen=True, slots=True)
class Reply:
    """What a language model answered."""

    text: str
    refused: bool = False
    """It will not, by its own account."""


@dataclass(frozen=True, slots=True)
class PhraseFeature:
    """A feature that a phrase leads to: it fires on the phrase, its label says it, or both."""

    dictionary: str
    feature: int
    fired: int
    """Tokens of the phrase on which it fires; 0: only its label says so."""
    tokens: int
    """Tokens of the phrase."""
    max_activation: float
    base_rate: float | None
    """Share of tokens on which it fires in general; None where nobody measured it."""
    surprise: float
    """Nats by which the phrase is likelier under the feature's share of it than under its base rate."""
    strongest_on: str
    """Token on which it is strongest, as text."""
    label: Label | None
    by_label: bool
    """Its label answers to the phrase."""


def best_label(labels: Sequence[Label]) -> Label | None:
    """The one to show where there is room for one: by hand, then the best scored, then the newest; automatic last."""

    def worth(label: Label) -> tuple[bool, bool, int, float, str]:
        sure = -CONFIDENCES.index(label.confidence) if label.confidence in CONFIDENCES else -len(CONFIDENCES)
        score = label.score.auc if label.score else 0.0
        return label.method == _HAND, not label.is_auto, sure, score, label.created

    return max(labels, key=worth, default=None)
