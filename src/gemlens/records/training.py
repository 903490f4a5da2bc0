"""How one dictionary was trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemlens.records.analysis import DictionaryInfo

__all__ = ["CURVE_COLUMNS", "Training"]

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
