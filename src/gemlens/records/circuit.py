"""A circuit: an attribution graph pruned to what matters, as files hold it and views draw it.

Its words are those of graph files (``docs/circuit-files.md``), and whatever else such a file says is kept beside them:
read and written again, a file has lost nothing.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gemlens.errors import NotFoundError, nearest

__all__ = ["Circuit", "CircuitNode", "CircuitPath", "CircuitView", "NodeEvidence", "Kind", "NodeGroup", "shown_label"]

Kind = Literal["feature", "error", "token", "target", "other"]

_OUTPUT = re.compile(r'Output "(.*)" \(p=[0-9.e+-]+\)', re.DOTALL)


@dataclass(frozen=True, slots=True)
class CircuitNode:
    id: str
    """Unique in its circuit: ``12_345_6`` is feature 345 of layer 12 at position 6."""
    kind: Kind
    """``other`` is what files of other tools hold besides, such as biases."""
    feature_type: str
    """The file's own word for it, e.g. ``cross layer transcoder``."""
    layer: int | None
    """None of token embeddings; of targets one more than the model has layers."""
    position: int
    feature: int | None
    """Number in its dictionary; of a token or target its vocabulary id; None of errors."""
    label: str = ""
    activation: float | None = None
    influence: float | None = None
    """Share of all influence on the targets that this node and the more influential ones hold together: from 0 to 1,
    small is important. None of targets, and where a file does not say."""
    probability: float | None = None
    """Of a target as the next token."""
    first_target: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)
    """What else its file says of it."""


@dataclass(frozen=True, slots=True)
class CircuitView:
    """What a reader has chosen to see; ``qParams`` in a file."""

    pinned: tuple[str, ...] = ()
    """Ids of nodes."""
    supernodes: tuple[tuple[str, ...], ...] = ()
    """Each a label and then the ids that it stands for."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """``linkType``, ``clickedId``, ``sg_pos`` and what else a file has."""


@dataclass(frozen=True, slots=True)
class Circuit:
    """Nodes, and the direct effects between them: ``weights[i]`` of node ``sources[i]`` on node ``targets[i]``."""

    metadata: Mapping[str, Any]
    """``slug``, ``scan`` (the model), ``prompt``, ``prompt_tokens`` and more, as in the file."""
    nodes: tuple[CircuitNode, ...]
    sources: NDArray[np.int32]
    """[links], indices into ``nodes``"""
    targets: NDArray[np.int32]
    """[links]"""
    weights: NDArray[np.float64]
    """[links], signed"""
    view: CircuitView = field(default_factory=CircuitView)
    link_extra: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    """What else a file says of some links, by their index."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """What else the file says."""
    warnings: tuple[str, ...] = ()

    @property
    def tokens(self) -> tuple[str, ...]:
        """Texts of the prompt's tokens."""
        return tuple(self.metadata["prompt_tokens"])

    @property
    def n_layers(self) -> int:
        """Of the model, as far as the nodes tell."""
        outputs = [node.layer for node in self.nodes if node.kind == "target" and node.layer is not None]
        inner = [node.layer for node in self.nodes if node.kind != "target" and node.layer is not None]
        return max([*(layer - 1 for layer in outputs), *(layer + 1 for layer in inner)], default=0)

    def number(self, identifier: str) -> int:
        """Index of a node.

        Raises:
            NotFoundError: naming the nearest ids.
        """
        for index, node in enumerate(self.nodes):
            if node.id == identifier:
                return index
        near = nearest(identifier, [node.id for node in self.nodes])
        raise NotFoundError(f"no node {identifier!r} in this circuit of {len(self.nodes)} nodes; {near}")

    def only(self, kept: NDArray[np.bool_], links: NDArray[np.bool_] | None = None) -> Circuit:
        """The nodes of a mask, and the links of another between them."""
        ends = kept[self.sources] & kept[self.targets]
        chosen = np.flatnonzero(ends if links is None else ends & links)
        place = np.cumsum(kept) - 1
        moved = {int(old): new for new, old in enumerate(chosen)} if self.link_extra else {}
        ids = {node.id for node, keep in zip(self.nodes, kept, strict=True) if keep}
        return dataclasses.replace(
            self,
            nodes=tuple(node for node, keep in zip(self.nodes, kept, strict=True) if keep),
            sources=place[self.sources[chosen]].astype(np.int32),
            targets=place[self.targets[chosen]].astype(np.int32),
            weights=self.weights[chosen],
            view=_within(self.view, ids),
            link_extra={moved[old]: said for old, said in self.link_extra.items() if old in moved},
        )

    def subgraph(self, pins: Iterable[str] | None = None) -> Circuit:
        """The nodes of these ids, of the view's pins where none are given, and the links among them, all pinned.

        Raises:
            NotFoundError: an id that is not here.
        """
        names = tuple(self.view.pinned if pins is None else pins)
        kept = np.zeros(len(self.nodes), dtype=bool)
        kept[[self.number(name) for name in names]] = True
        part = self.only(kept)
        return dataclasses.replace(part, view=dataclasses.replace(part.view, pinned=names))

    def _repr_html_(self) -> str:
        from gemlens.report.circuit_notebook import circuit_view

        return circuit_view(self)


@dataclass(frozen=True, slots=True)
class CircuitPath:
    """One way through a circuit, from a token or error to a target."""

    nodes: tuple[int, ...]
    """Indices into ``Circuit.nodes``, the target last."""
    share: float
    """Product over its links of the link's share of all that enters the node: the fraction of the target's value, all
    counted by size, that comes in this way. Its sign is the product of the links' signs."""


@dataclass(frozen=True, slots=True)
class NodeGroup:
    """Nodes that seem to do one thing together: a supernode to suggest."""

    label: str
    nodes: tuple[int, ...]
    """Indices into ``Circuit.nodes``."""
    reason: str
    """In words, for the reader who has to decide."""


@dataclass(frozen=True, slots=True)
class NodeEvidence:
    """What is known of one feature, for a page to show."""

    label: str = ""
    top_tokens: tuple[tuple[str, float], ...] = ()
    """Tokens that it makes likelier, by its decoder's effect on their logits."""
    bottom_tokens: tuple[tuple[str, float], ...] = ()
    examples: tuple[tuple[tuple[str, ...], tuple[float, ...]], ...] = ()
    """Texts on which it is active: the tokens of each, and its activation at them."""
    decoder: NDArray[np.float32] | None = None
    """[d], what it writes, in any space that is the same for all features of a page."""


def shown_label(node: CircuitNode) -> str:
    """The label without the wrapping that files put around outputs: ``Output " Austin" (p=0.332)`` is `` Austin``."""
    found = _OUTPUT.fullmatch(node.label) if node.kind == "target" else None
    return found[1] if found else node.label


def _within(view: CircuitView, ids: set[str]) -> CircuitView:
    supernodes = ((group[0], *(name for name in group[1:] if name in ids)) for group in view.supernodes if group)
    return dataclasses.replace(
        view,
        pinned=tuple(name for name in view.pinned if name in ids),
        supernodes=tuple(group for group in supernodes if len(group) > 1),
    )
