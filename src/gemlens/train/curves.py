"""The course of one dictionary's training, in some thousand points however long it takes."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gemlens.records import CURVE_COLUMNS
from gemlens.train.config import FitConfig
from gemlens.train.learner import Step

__all__ = ["Recorder", "to_csv"]

_POINTS = 1000


class Recorder:
    """Takes every step and keeps means over a few of them; part of a checkpoint, so that curves go on without a gap."""

    def __init__(self, config: FitConfig) -> None:
        self._config = config
        self._every = max(1, config.steps // _POINTS)
        self._points: list[list[float]] = []
        self._waiting: list[list[float]] = []

    def add(self, at: Step) -> None:
        features = self._config.width * len(self._config.reads)
        tokens = at.step * self._config.batch
        self._waiting.append([at.step, tokens, at.loss, at.fvu, at.l0, at.dead / features])
        if len(self._waiting) == self._every or at.step == self._config.steps:
            means = np.mean(self._waiting, axis=0).tolist()
            self._points.append([at.step, tokens, *means[2:]])
            self._waiting = []

    @property
    def points(self) -> NDArray[np.float64]:
        """[points, columns of ``CURVE_COLUMNS``]"""
        return np.array(self._points, dtype=np.float64).reshape(-1, len(CURVE_COLUMNS))

    def state(self) -> dict[str, Tensor]:
        parts = {"points": self._points, "waiting": self._waiting}
        return {
            name: torch.tensor(rows, dtype=torch.float64).reshape(-1, len(CURVE_COLUMNS))
            for name, rows in parts.items()
        }

    def restore(self, state: Mapping[str, Tensor | float | int]) -> None:
        self._points, self._waiting = (torch.as_tensor(state[name]).tolist() for name in ("points", "waiting"))


def to_csv(points: NDArray[np.float64]) -> str:
    """``curves.csv``: a line a point, ``step`` and ``tokens`` whole."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(CURVE_COLUMNS)
    rows.writerows([int(step), int(tokens), *(f"{value:.6g}" for value in rest)] for step, tokens, *rest in points)
    return text.getvalue()
