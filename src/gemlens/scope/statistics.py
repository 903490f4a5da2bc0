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
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemlens.errors import InputError
from gemlens.scope.slices import write_safetensors

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["STATISTICS", "write_statistics"]

STATISTICS = "statistics.safetensors"
PAIRS = {
    "coactive": "coactive_share",
    "neighbours": "neighbour_cosine",
    "basis": "basis_weight",
    "neurons": "neuron_cosine",
}
"""Indices -> the number that goes with each."""


def write_statistics(path: Path, tensors: dict[str, Tensor], *, about: Mapping[str, Any]) -> None:
    """Write a file of statistics, whole or not at all; the same bytes for the same arguments.

    Raises:
        InputError: a name that is none of those above, or shapes that contradict each other.
        OutputError: the file cannot be written.
    """
    known = {"histogram_top", "histogram", "position_profile", *PAIRS, *PAIRS.values()}
    if strange := set(tensors) - known:
        raise InputError(f"{', '.join(sorted(strange))} is no statistic; there is {', '.join(sorted(known))}")
    for one, other in {**PAIRS, "histogram_top": "histogram"}.items():
        if (one in tensors) != (other in tensors):
            raise InputError(f"{one} and {other} go together")
        if one in PAIRS and one in tensors and tensors[one].shape != tensors[other].shape:
            raise InputError(f"{one} has shape {list(tensors[one].shape)}, {other} {list(tensors[other].shape)}")
    if len({len(tensor) for tensor in tensors.values()}) > 1:
        raise InputError("the statistics are of several numbers of features")
    write_safetensors(path, tensors, {"gemlens": json.dumps(dict(about), sort_keys=True, ensure_ascii=True)})
