"""What the verbs of gemlens return: frozen records, free of torch, that every view in ``report`` reads.

Field names are those of the JSON files (``docs/formats.md``).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "CURVE_COLUMNS",
    "ActiveFeatures",
    "Analysis",
    "DENSITY_DECADES",
    "DENSITY_STEPS",
    "Density",
    "DictionaryInfo",
    "FeatureActivation",
    "Fidelity",
    "LossWith",
    "Provenance",
    "QualityCard",
    "QuantizationCost",
    "SetFidelity",
    "Sweep",
    "SweepPoint",
    "TokenRecord",
    "Training",
    "series_name",
    "width_name",
]

SCHEMA_VERSION = 1
_LAYER = re.compile(r"((?:^|/)layer_)[0-9]+")


@dataclass(frozen=True, slots=True)
class DictionaryInfo:
    """One dictionary, as users name it."""

    release: str
    """Release or hub repository, e.g. ``google/gemma-scope-2-270m-it``; a folder as given."""
    category: str
    """Folder that groups dictionaries of one kind, e.g. ``resid_post``."""
    id: str
    """Name inside the category, e.g. ``layer_12_width_16k_l0_small``."""
    site: str
    """Where it reads, e.g. ``resid_post.12``."""
    layer: int
    width: int
    """Number of features."""
    neuronpedia: str | None
    """Neuronpedia's ``model/source`` id where it is known for exactly this dictionary, e.g.
    ``gemma-3-270m-it/12-gemmascope-2-res-16k``; feature pages are ``https://www.neuronpedia.org/{id}/{feature}``."""
    model_name: str | None = None
    """Model it was trained on, as its config says."""
    revision: str | None = None
    """Commit of the hub repository it was read from."""
    path: str | None = None
    """Path inside the repository, or the folder."""


@dataclass(frozen=True, slots=True)
class FeatureActivation:
    feature_id: int
    activation: float
    dictionary: int = 0
    """Index into ``Analysis.dictionaries``."""


@dataclass(frozen=True, slots=True)
class TokenRecord:
    position: int
    token_id: int
    token: str
    """Raw vocabulary piece, e.g. ``▁Hello`` or ``<0xF0>``."""
    text: str
    """What the token adds to the decoded text; the texts of all tokens joined are the text. Empty for
    all but the last byte token of a character that takes several."""
    is_generated: bool
    is_special: bool
    """BOS and other control tokens."""
    l0: int | None
    """Active features of the first dictionary; None where dictionaries were not applied: at BOS, and at the tokens
    that open a chat if Gemma Scope 2 left them out of its training."""
    features: tuple[FeatureActivation, ...]
    """The ``top_k`` strongest of each dictionary, strongest first, dictionaries in order; none where ``l0`` is None."""


@dataclass(frozen=True, slots=True)
class ActiveFeatures:
    """All active features of one dictionary over a prompt, one CSR row a token (empty where it was not applied).

    Row ``t`` is ``ids[indptr[t]:indptr[t + 1]]`` with ``values`` alike, ids ascending.
    """

    indptr: NDArray[np.int64]
    """[tokens + 1]"""
    ids: NDArray[np.int64]
    """[nnz]"""
    values: NDArray[np.float32]
    """[nnz], activations, > 0"""

    def row(self, token: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        start, stop = self.indptr[token], self.indptr[token + 1]
        return self.ids[start:stop], self.values[start:stop]

    def column(self, feature_id: int) -> NDArray[np.float32]:
        """[tokens], the activation of one feature at every token, 0 where it is silent."""
        rows = np.repeat(np.arange(len(self.indptr) - 1), np.diff(self.indptr))
        out = np.zeros(len(self.indptr) - 1, dtype=np.float32)
        hit = self.ids == feature_id
        out[rows[hit]] = self.values[hit]
        return out


@dataclass(frozen=True, slots=True)
class Provenance:
    """What made a record."""

    gemlens_version: str
    torch_version: str
    transformers_version: str
    model_revision: str | None
    dtype: str
    device: str
    seed: int
    temperature: float | None
    """None when decoding was greedy or nothing was generated."""
    top_p: float | None
    created: str
    """UTC, ISO 8601."""


@dataclass(frozen=True, slots=True)
class Analysis:
    """Which features fire on each token of one text."""

    prompt: str
    system: str | None
    prompt_text: str
    """The string fed to the model: the prompt after the chat template, where one was used."""
    model_id: str
    top_k: int
    max_new_tokens: int
    dictionaries: tuple[DictionaryInfo, ...]
    tokens: tuple[TokenRecord, ...]
    activations: tuple[ActiveFeatures, ...]
    """Aligned with ``dictionaries``."""
    provenance: Provenance
    warnings: tuple[str, ...] = field(default=())
    """Shown in every view, e.g. that the dictionary was trained on the ``it`` sibling of this model."""

    @property
    def generated_text(self) -> str:
        return "".join(token.text for token in self.tokens if token.is_generated)

    def _repr_html_(self) -> str:
        from gemlens.report.notebook import token_view

        return token_view(self)


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


CURVE_COLUMNS = ("step", "tokens", "loss", "fvu", "l0", "dead")
"""Of ``Training.curves``; ``dead`` is a share of the features."""


@dataclass(frozen=True, slots=True)
class Training:
    """How one dictionary was trained."""

    dictionary: DictionaryInfo
    config: dict[str, Any]
    """The ``FitConfig`` as plain values."""
    source: dict[str, Any]
    """What was read: model, texts and how, as far as it was told."""
    tokens: int
    seconds: float
    """Of all dictionaries that were trained together, waiting for the model included."""
    curves: NDArray[np.float64]
    """[points, columns of ``CURVE_COLUMNS``]: means over the steps since the point before, of training's batches."""
    version: str
    """Of gemlens."""

    def last(self, column: str) -> float:
        return float(self.curves[-1, CURVE_COLUMNS.index(column)])


def series_name(path: str) -> str:
    """What the dictionaries of several layers have in common: ``resid_post/layer_*_width_4k_l0_medium``."""
    return _LAYER.sub(r"\1*", path, count=1)


def width_name(width: int) -> str:
    """As dictionaries are named, by thousands rounded down: 16384 -> ``16k``, 65536 -> ``65k``, 1048576 -> ``1m``."""
    for size, unit in ((10**6, "m"), (1000, "k")):
        if width >= size:
            return f"{width // size}{unit}"
    return str(width)
