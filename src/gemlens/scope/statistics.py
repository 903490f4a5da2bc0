"""``statistics.safetensors``: what gemlens counts beside the examples. Google's dictionaries have none.

    histogram_top [F], histogram [F, B]      half-octave bins: activation a counts in bin floor(2 log2 a). Column j is
                                             bin histogram_top - j; the last column also holds all below
    position_profile [F, 3]                  firings in the first, middle and last third of the sequences' tokens, BOS
                                             and padding left out
    coactive, coactive_share [F, c]          features that fire most often where this one does; |A and B| / |A or B|
    neighbours, neighbour_cosine [F, n]      by cosine of decoder rows
    basis, basis_weight [F, m]               largest entries of the unit decoder row by size, signed
    neurons, neuron_cosine [F, m]            neurons of the layer's MLP whose output is nearest to the decoder row

All optional; -1 fills empty slots. The metadata's ``gemlens`` is JSON on what made the file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from gemlens.errors import InputError, WeightsError
from gemlens.scope.slices import SliceFile, write_safetensors

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["STATISTICS", "Statistics", "write_statistics"]

STATISTICS = "statistics.safetensors"
PAIRS = {
    "coactive": "coactive_share",
    "neighbours": "neighbour_cosine",
    "basis": "basis_weight",
    "neurons": "neuron_cosine",
}
"""Indices -> the number that goes with each."""
_NAMES = {"histogram_top", "histogram", "position_profile", *PAIRS, *PAIRS.values()}


def write_statistics(path: Path, tensors: dict[str, Tensor], *, about: Mapping[str, Any]) -> None:
    """Write a file of statistics, whole or not at all; the same bytes for the same arguments.

    Raises:
        InputError: a name that is none of those above, or shapes that contradict each other.
        OutputError: the file cannot be written.
    """
    if strange := set(tensors) - _NAMES:
        raise InputError(f"{', '.join(sorted(strange))} is no statistic; there is {', '.join(sorted(_NAMES))}")
    for one, other in {**PAIRS, "histogram_top": "histogram"}.items():
        if (one in tensors) != (other in tensors):
            raise InputError(f"{one} and {other} go together")
        if one in PAIRS and one in tensors and tensors[one].shape != tensors[other].shape:
            raise InputError(f"{one} has shape {list(tensors[one].shape)}, {other} {list(tensors[other].shape)}")
    if len({len(tensor) for tensor in tensors.values()}) > 1:
        raise InputError("the statistics are of several numbers of features")
    write_safetensors(path, tensors, {"gemlens": json.dumps(dict(about), sort_keys=True, ensure_ascii=True)})


class Statistics:
    """A file of statistics, read a feature at a time.

    Raises:
        WeightsError: of another width than the examples, or with shapes that contradict each other.
    """

    def __init__(self, file: SliceFile, *, width: int) -> None:
        self._file, self.name = file, file.parts.name
        for name in _NAMES & set(file.names):
            shape = file.shape(name)
            if shape[0] != width or len(shape) != (1 if name == "histogram_top" else 2):
                raise WeightsError(
                    f"{self.name}: {name} has shape {list(shape)}, the examples beside it {width} features"
                )
        for one, other in {**PAIRS, "histogram_top": "histogram"}.items():
            if (one in file) != (other in file) or (
                one in PAIRS and one in file and file.shape(one) != file.shape(other)
            ):
                raise WeightsError(f"{self.name}: {one} and {other} do not fit together; download it again")
        self._width = width

    def __contains__(self, name: str) -> bool:
        return name in self._file

    def feature(self, index: int) -> dict[str, NDArray[Any]]:
        """Name -> the row of one feature, in one read; histogram_top is a number.

        Raises:
            WeightsError: a feature that does not exist among its neighbours.
        """
        names = sorted(_NAMES & set(self._file.names))
        rows = self._file.rows([(name, [index]) for name in names])
        found = {name: row[0] for name, row in zip(names, rows, strict=True)}
        for name in ("coactive", "neighbours"):
            if name in found and not (found[name].min(initial=0) >= -1 and found[name].max(initial=0) < self._width):
                raise WeightsError(f"{self.name}: feature {index} has a neighbour out of range; download it again")
        return found

    def pairs(self, found: Mapping[str, NDArray[Any]], name: str) -> list[tuple[int, float]]:
        """Indices and numbers of one list of ``feature``, empty slots left out."""
        if name not in found:
            return []
        pairs = zip(found[name].tolist(), found[PAIRS[name]].tolist(), strict=True)
        return [(int(index), float(value)) for index, value in pairs if index >= 0 and isfinite(value)]
