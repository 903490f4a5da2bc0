"""What a graph predicts of an intervention, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gemlens.records.graph import GraphTarget

__all__ = ["Edit", "Intervention", "Verification", "VerifiedNode"]


@dataclass(frozen=True, slots=True)
class Edit:
    """A feature node held at ``scale`` times its activation; 0 ablates it."""

    layer: int
    feature: int
    position: int | None = None
    """None: at every position where it is a node."""
    scale: float = 0.0


@dataclass(frozen=True, slots=True)
class Intervention:
    """What the targets of a graph measure, before and after some edits."""

    edits: tuple[Edit, ...]
    targets: tuple[GraphTarget, ...]
    before: NDArray[np.float32]
    """[t]"""
    predicted: NDArray[np.float32]
    """[t], the change that the graph adds up: direct effects, and those through features that are nodes."""
    constrained: NDArray[np.float32]
    """[t], the change with attention patterns, norm scales and errors frozen, features free to switch on and off."""
    free: NDArray[np.float32]
    """[t], the change in the model itself: what the edited features write is taken away or added, all answers."""


@dataclass(frozen=True, slots=True)
class VerifiedNode:
    """One feature node, ablated at its position."""

    layer: int
    position: int
    feature: int
    activation: float
    predicted: tuple[float, ...]
    """Change of each target."""
    constrained: tuple[float, ...]
    free: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Verification:
    """Predicted against actual changes, of the nodes that matter most to the targets of a graph."""

    targets: tuple[GraphTarget, ...]
    nodes: tuple[VerifiedNode, ...]
    """The most influential first."""

    @property
    def constrained_correlation(self) -> float:
        """Pearson's, over all nodes and targets; NaN where nothing varies."""
        return _correlation(self.nodes, "constrained")

    @property
    def free_correlation(self) -> float:
        return _correlation(self.nodes, "free")


def _correlation(nodes: tuple[VerifiedNode, ...], actual: str) -> float:
    pairs = np.array([pair for node in nodes for pair in zip(node.predicted, getattr(node, actual), strict=True)])
    if len(pairs) < 2 or not pairs.std(axis=0).all():
        return float("nan")
    return float(np.corrcoef(pairs.T)[0, 1])
