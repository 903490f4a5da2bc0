"""Everything that is known of one feature: when it fires, what it writes, what is like it, what it is called."""

from __future__ import annotations

from dataclasses import dataclass, field

from gemlens.records.analysis import DictionaryInfo

__all__ = [
    "Example",
    "ExampleLevel",
    "ExampleToken",
    "FeatureLabel",
    "FeaturePage",
    "Histogram",
    "PositionProfile",
    "Related",
    "TokenLogit",
]


@dataclass(frozen=True, slots=True)
class ExampleToken:
    text: str
    """What it adds to the text; a byte of a character that goes on adds nothing."""
    token: str
    """Vocabulary piece, ``▁Hello``; ``#1234`` where no vocabulary was at hand."""
    activation: float | None
    """None where none is on file: weaker than all that are, or 0."""
    is_special: bool
    """BOS and other control tokens."""


@dataclass(frozen=True, slots=True)
class Example:
    """A token on which the feature fires, and what stands around it."""

    activation: float
    sequence: int
    """Row of the evidence's ``tokens``."""
    position: int
    """Of the token in that row; BOS is 0."""
    tokens: tuple[ExampleToken, ...]
    peak: int
    """Index of the token in ``tokens``."""
    cut_before: bool
    """The sequence has more before ``tokens``."""
    cut_after: bool
    logit_effect: float | None = None
    """Of Gemma Scope 2's files, as it stands there; what it means has never been written down."""


@dataclass(frozen=True, slots=True)
class ExampleLevel:
    """Examples of activations between ``low`` (exclusive) and ``high``."""

    low: float
    high: float
    on_file: int
    """Activations of this level that the evidence holds."""
    examples: tuple[Example, ...]
    """Strongest first; of one sequence only the strongest."""


@dataclass(frozen=True, slots=True)
class Histogram:
    """How many activations lie between neighbouring ``edges``, ascending."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]
    """One fewer than ``edges``."""
    all_below: bool
    """The first bin also holds all below it."""
    complete: bool
    """Of all activations that were counted; else only of the examples on file, the strongest."""


@dataclass(frozen=True, slots=True)
class PositionProfile:
    """In which third of their sequences activations lie."""

    first: int
    middle: int
    last: int
    complete: bool
    """As for ``Histogram``."""


@dataclass(frozen=True, slots=True)
class TokenLogit:
    """A token that the feature promotes or suppresses, read off its direction alone."""

    token_id: int
    text: str
    logit: float


@dataclass(frozen=True, slots=True)
class Related:
    """Another feature, a neuron or a dimension, and how near it is."""

    index: int
    value: float


@dataclass(frozen=True, slots=True)
class FeatureLabel:
    """What somebody calls the feature."""

    text: str
    source: str
    """Who says so: a person, a model, a site."""
    confidence: str | None = None
    """As they say it: ``high``, ``0.83``."""


@dataclass(frozen=True, slots=True)
class FeaturePage:
    """One feature of one dictionary; an empty tuple or None stands for what the evidence does not say."""

    dictionary: DictionaryInfo
    feature_id: int
    frequency: float | None
    """Share of tokens on which it fires."""
    max_activation: float
    """0 where it never fired."""
    on_file: int
    """Activations that the evidence holds."""
    levels: tuple[ExampleLevel, ...]
    """From the strongest down."""
    histogram: Histogram | None
    positions: PositionProfile | None
    promoted: tuple[TokenLogit, ...]
    suppressed: tuple[TokenLogit, ...]
    neighbours: tuple[Related, ...] = ()
    """Features by cosine of what they write."""
    coactive: tuple[Related, ...] = ()
    """Features by the share of tokens on which both fire, of those on which either does."""
    basis: tuple[Related, ...] = ()
    """Dimensions of what it writes, by the size of their entries in its unit direction."""
    neurons: tuple[Related, ...] = ()
    """Neurons of the layer's MLP, by cosine of what they write."""
    label: FeatureLabel | None = None
    source: str = ""
    """The evidence's file."""
    model_id: str | None = None
    """Model that the evidence was collected with."""
    tokens_read: int | None = None
    """Tokens that were read for it."""
    texts: tuple[str, ...] = ()
    quantiles: bool = False
    """Examples are spread over quantiles of the activations; else they are the strongest."""
    warnings: tuple[str, ...] = field(default=())

    @property
    def never_fired(self) -> bool:
        return self.on_file == 0 and not self.frequency

    @property
    def examples(self) -> tuple[Example, ...]:
        return tuple(example for level in self.levels for example in level.examples)

    def _repr_html_(self) -> str:
        from gemlens.report.feature_notebook import feature_view

        return feature_view(self)
