"""What every layout has in common: its own names for the same few tensors.

encoder    [F, d_in]     one row a feature
decoder    [F, d_out]    one row a feature; [F, outputs, d_out] where a feature writes several layers
b_enc      [F]
b_dec      [d_out]
threshold  [F]           absent for ReLU
skip       [d_in, d_out] applied as ``x @ skip``; optional
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gemlens.errors import WeightsError
from gemlens.scope.folder import Folder
from gemlens.scope.multilayer import Layer
from gemlens.scope.weights import TensorFile, check_shapes

__all__ = ["Layout", "Target", "check_layers", "read"]


@dataclass(frozen=True)
class Layout:
    """The rename table of one format."""

    called: str
    """With its article: ``a Gemma Scope 2``."""
    names: Mapping[str, str]
    """Our name -> the file's."""
    optional: frozenset[str] = frozenset({"skip"})
    """Ours."""
    transposed: frozenset[str] = frozenset()
    """Ours; stored the other way round."""


@dataclass(frozen=True)
class Target:
    """Where tensors go, and as what."""

    device: torch.device
    dtype: torch.dtype


def read(
    file: TensorFile,
    layout: Layout,
    to: Target,
    *,
    outputs: int | None = None,
    first: int = 0,
    codes: frozenset[str] = frozenset(),
) -> dict[str, Tensor]:
    """The tensors of one file by our names, of shapes that fit together; one at a time.

    Args:
        outputs: of a decoder [F, outputs, d_out].
        first: of these outputs to keep; the ones before are never held in memory.
        codes: ours; stored as int8, and given as such.

    Raises:
        WeightsError: a tensor is missing, damaged or not finite, or shapes contradict each other.
    """
    theirs = layout.names
    file.require({name for ours, name in theirs.items() if ours not in layout.optional})
    encoder, bias = (file.tensors[theirs[ours]].shape for ours in ("encoder", "b_dec"))
    features_first = "encoder" not in layout.transposed
    if len(encoder) != 2 or len(bias) != 1 or 0 in (*encoder, *bias):
        raise WeightsError(
            f"{file.path}: {theirs['encoder']} has shape {list(encoder)} and {theirs['b_dec']} {list(bias)}, expected "
            f"{'[features, d_in]' if features_first else '[d_in, features]'} and [d_out]; "
            f"the file is not {layout.called} dictionary"
        )
    (width, d_in), (d_out,) = encoder if features_first else encoder[::-1], bias
    decoder = (width, d_out) if outputs is None else (width, outputs, d_out)
    shapes: dict[str, tuple[int, ...]] = {
        "decoder": decoder,
        "b_enc": (width,),
        "threshold": (width,),
        "skip": (d_in, d_out),
    }
    expected = {
        theirs[ours]: shape[::-1] if ours in layout.transposed else shape
        for ours, shape in shapes.items()
        if ours in theirs
    }
    check_shapes(file, expected, layout.called)
    tensors = {}
    for ours, name in theirs.items():
        if name in file.tensors:
            dtype = torch.int8 if ours in codes else to.dtype
            kept = first if ours == "decoder" else 0
            tensor = file.read(name, dtype, first=kept, transposed=ours in layout.transposed)
            tensors[ours] = tensor.to(to.device)
    return tensors


def check_layers(folder: Folder, layers: Sequence[Layer]) -> None:
    """Hold the files of one CLT or crosscoder against each other.

    Raises:
        WeightsError: they read or write activations of several sizes, or some have a skip and some do not.
    """
    name = folder.path or folder.release
    sizes = sorted({(layer.encoder.d, layer.decoder.d) for layer in layers})
    if len(sizes) > 1:
        raise WeightsError(f"{name}: its layers read and write {sizes}; files of two dictionaries are mixed")
    if len({layer.skip is None for layer in layers}) > 1:
        raise WeightsError(f"{name}: some layers have a skip and some lack it; download it again")
