"""Which features fire on each token of one text, and what records share: dictionaries by name, what made a record."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from gemlens.records.labels import Label, Labels

__all__ = [
    "SCHEMA_VERSION",
    "ActiveFeatures",
    "Analysis",
    "DictionaryInfo",
    "FeatureActivation",
    "Provenance",
    "TokenRecord",
]

SCHEMA_VERSION = 1


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
    labels: Labels = field(default=())
    """Aligned with ``dictionaries``: what its features are called, of those that fire; empty where nobody said."""

    def label_of(self, dictionary: int, feature_id: int) -> Label | None:
        return self.labels[dictionary].get(feature_id) if dictionary < len(self.labels) else None

    @property
    def generated_text(self) -> str:
        return "".join(token.text for token in self.tokens if token.is_generated)

    def _repr_html_(self) -> str:
        from gemlens.report.notebook import token_view

        return token_view(self)
