"""What dictionaries are worth: one, several of a site, a whole release; and how they are called in tables."""

from __future__ import annotations

import re
from dataclasses import dataclass

from gemlens.records.analysis import DictionaryInfo, Provenance

__all__ = [
    "DENSITY_DECADES",
    "DENSITY_STEPS",
    "Density",
    "Fidelity",
    "LossWith",
    "QualityCard",
    "QuantizationCost",
    "SetFidelity",
    "Sweep",
    "SweepPoint",
    "series_name",
    "width_name",
]

_LAYER = re.compile(r"((?:^|/)layer_)[0-9]+")


@dataclass(frozen=True, slots=True)
class LossWith:
    """Cross-entropy of the next token with a site edited, against the clean model on the same tokens."""

    ce: float
    """Nats a token."""
    above_clean: float
    """Nats a token more than the clean model."""
    standard_error: float
    """Of ``above_clean``: paired, over rows of text, since tokens of a row are not independent."""


DENSITY_STEPS = 4
DENSITY_DECADES = 6
"""Bins of a ``Density``: so many a power of ten, from one token in a million to every token."""


@dataclass(frozen=True, slots=True)
class Density:
    """How often the features of a dictionary fire: a histogram of the logarithm of the share of tokens."""

    tokens: int
    """That were looked at, BOS not counted."""
    never: int
    """Features that fired on none of them."""
    counts: tuple[int, ...]
    """Features by log10 of the share of tokens on which they fire, from -6 to 0 in steps of 1/4; rarer ones are in the
    first bin."""


@dataclass(frozen=True, slots=True)
class Fidelity:
    """How well a dictionary stands in for the activations it was trained on. BOS is left out of everything."""

    dictionary: DictionaryInfo
    writes: str
    """Site that the reconstruction is held against; another than ``dictionary.site`` for a transcoder."""
    model_id: str
    tokens_measured: int
    """Tokens behind L0 and variance, BOS counted in."""
    ce_tokens: int
    """Tokens behind the cross-entropies, BOS counted in."""
    l0: float
    """Mean number of active features a token."""
    l0_at_bos: float
    variance_explained: float
    """1 - sum|x - x^|^2 / sum|x - mean|^2, pooled over tokens and dimensions."""
    fvu: float
    """Fraction of variance unexplained, the rest."""
    variance_explained_trimmed: float
    """The same without the 1 % of tokens of largest norm."""
    variance_explained_tutorial: float
    """1 - mean((x - x^)^2) / var(x) with a single mean and variance over all numbers, as the Gemma Scope tutorial
    computes it. Much of that variance is between dimensions: predicting the mean alone scores
    ``variance_explained_tutorial_of_mean``."""
    variance_explained_tutorial_of_mean: float
    variance_explained_pca: float
    """The same as ``variance_explained`` of the best linear map whose rank is ``l0``, rounded, fitted on these very
    tokens: of an SAE PCA, of a transcoder PCA of what least squares predicts."""
    variance_explained_linear: float | None
    """Of the best linear map of any rank from what a transcoder reads to what it writes; None of an SAE."""
    cosine: float
    """Mean cosine of activation and reconstruction."""
    silent: float
    """Share of features that never fired on the measured tokens."""
    density: Density
    """On the training mix where one was given, else on the measured tokens."""
    dead: float | None
    """Share of features that never fired on ``dead_tokens`` of the training mix; None where no mix was given."""
    dead_tokens: int
    high_norm_share: float
    """Share of the variance that the 1 % of tokens of largest norm hold."""
    norm_max_over_median: float
    ce_clean: float
    spliced: LossWith
    """The activation replaced by its reconstruction."""
    zeroed: LossWith
    mean_ablated: LossWith
    """The activation replaced by its mean."""
    verdict: tuple[str, ...]
    """In words, worst first."""
    warnings: tuple[str, ...] = ()

    @property
    def ce_recovered(self) -> float:
        """Share of the loss of zeroing the site that the reconstruction avoids."""
        return 1 - self.spliced.above_clean / self.zeroed.above_clean

    @property
    def ce_recovered_mean(self) -> float:
        """The same against replacing the activation by its mean, a much harder baseline."""
        return 1 - self.spliced.above_clean / self.mean_ablated.above_clean


@dataclass(frozen=True, slots=True)
class QuantizationCost:
    """A dictionary before and after it was stored in fewer bits, on the same tokens."""

    exact: Fidelity
    quantized: Fidelity
    kept: float
    """Share of the active features, by token, that are still active: |before and after| / |before|."""
    added: float
    """Active features, by token, that were not active before, relative to all that were."""

    @property
    def ce_change(self) -> float:
        """Nats a token that splicing in costs more than before."""
        return self.quantized.spliced.ce - self.exact.spliced.ce

    @property
    def variance_explained_change(self) -> float:
        return self.quantized.variance_explained - self.exact.variance_explained


@dataclass(frozen=True, slots=True)
class SweepPoint:
    """One dictionary of a sweep."""

    figures: Fidelity
    l0_named: str | None
    """What its name or config promises: ``small``, ``71``."""
    on_front: bool
    """No other of the sweep has both fewer active features and a lower cost."""


@dataclass(frozen=True, slots=True)
class Sweep:
    """All dictionaries of one site, measured on the same text."""

    release: str
    site: str
    model_id: str
    points: tuple[SweepPoint, ...]
    """By width, then by L0 as measured."""
    failed: tuple[tuple[str, str], ...] = ()
    """Path and reason of those that could not be measured."""


@dataclass(frozen=True, slots=True)
class SetFidelity:
    """A model all of whose MLPs are replaced at once, each by what a transcoder, or a CLT, makes of its input.

    Measured where cross-entropy is: at the predictions of rows of 128 tokens, BOS neither edited nor counted.
    """

    name: str
    """What the transcoders are called, ``layer_*`` for their layers; of a CLT its path."""
    release: str
    layers: tuple[int, ...]
    """Whose MLPs are replaced."""
    model_id: str
    tokens: int
    """BOS counted in."""
    ce_clean: float
    spliced: LossWith
    """Without errors."""
    kl: float
    """KL(clean || spliced) of the next-token distributions, in nats a token."""
    kl_standard_error: float
    """Over rows of text."""
    agreement: float
    """Share of tokens at which the clean and the spliced model find the same next token likeliest."""
    logit_error: float
    """With errors cached from a clean pass added, the largest difference of any logit to the clean model's: how exactly
    the replacement model with errors is the model."""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class QualityCard:
    """Every dictionary of a release, and every complete set of transcoders, measured on the same text."""

    release: str
    model_id: str
    texts: tuple[str, ...]
    """Names of what was measured on."""
    dictionaries: tuple[Fidelity, ...]
    """By series (``series_name``), then by layer."""
    sets: tuple[SetFidelity, ...]
    failed: tuple[tuple[str, str], ...]
    """Path and reason of those that could not be measured."""
    provenance: Provenance


def series_name(path: str) -> str:
    """What the dictionaries of several layers have in common: ``resid_post/layer_*_width_4k_l0_medium``."""
    return _LAYER.sub(r"\1*", path, count=1)


def width_name(width: int) -> str:
    """As dictionaries are named, by thousands rounded down: 16384 -> ``16k``, 65536 -> ``65k``, 1048576 -> ``1m``."""
    for size, unit in ((10**6, "m"), (1000, "k")):
        if width >= size:
            return f"{width // size}{unit}"
    return str(width)
