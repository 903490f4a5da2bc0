"""The attribution graph of one prompt: what each feature and target is made of, by direct effects.

Ameisen et al. 2025, "Circuit Tracing" (transformer-circuits.pub/2025/attribution-graphs).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gemlens.records.analysis import DictionaryInfo, Provenance

if TYPE_CHECKING:
    from gemlens.records.circuit import Circuit

__all__ = ["Graph", "GraphTarget", "GraphToken"]


@dataclass(frozen=True, slots=True)
class GraphToken:
    """One position of the prompt."""

    token_id: int
    text: str
    """What the token adds to the decoded text; of BOS and other control tokens the raw piece."""


@dataclass(frozen=True, slots=True)
class GraphTarget:
    """What a graph explains: a next token's logit, a difference of two, a direction, or a feature."""

    label: str
    """The token's text, ``a - b``, or the name of the direction or feature."""
    token_id: int | None
    """Vocabulary id; None for differences, directions and features."""
    probability: float | None
    """Of the token as the next one; None where there is no such thing."""
    layer: int | None = None
    """Of a feature target, with ``feature``."""
    feature: int | None = None


@dataclass(frozen=True, slots=True)
class Graph:
    """Attribution graph of one prompt: a row for each target node, a column for each source node.

    Rows are the feature nodes and then the targets. Columns are the feature nodes, the error nodes (MLP output minus
    reconstruction, at one layer and position) and the token embeddings, one a position. What comes from constants is
    in ``biases``, so that ``edges.sum(1) + biases`` is the pre-activation of a feature, the value of a target.
    """

    prompt: str
    model_id: str
    tokens: tuple[GraphToken, ...]
    """All positions, BOS first."""
    dictionaries: tuple[DictionaryInfo, ...]
    """A transcoder for each of some layers, or one CLT."""
    n_layers: int
    """Of the model."""
    features: NDArray[np.int32]
    """[n, 3] layer, position and feature of the nodes that were kept, sorted so."""
    activations: NDArray[np.float32]
    """[n]"""
    errors: NDArray[np.int32]
    """[m, 2] layer and position of the error nodes, sorted so."""
    targets: tuple[GraphTarget, ...]
    target_values: NDArray[np.float32]
    """[t], a logit minus the mean logit, before the soft-cap; or what else the target measures."""
    edges: NDArray[np.float32]
    """[n + t, n + m + tokens], the direct effect of a source (column) on a node (row): its share of the node's value.
    A ``numpy.memmap`` where it is large."""
    biases: NDArray[np.float32]
    """[n + t], what of each row comes from constants and from features that were not kept as nodes."""
    pre_activations: NDArray[np.float32]
    """[n], of the feature nodes."""
    n_active: int
    """Features that were active before some were chosen as nodes."""
    provenance: Provenance
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Options that the graph was made with."""
    warnings: tuple[str, ...] = ()

    def subgraph(self, pins: Iterable[str]) -> Circuit:
        """The nodes of these ids, such as ``12_345_6``, and the links among them; raises NotFoundError."""
        from gemlens.records.graph_circuit import subgraph_of

        return subgraph_of(self, pins)

    def _repr_html_(self) -> str:
        from gemlens.report.circuit_notebook import graph_view

        return graph_view(self)
