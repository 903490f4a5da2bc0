"""The layouts that dictionaries are published in, one file each, and which of them a folder is in.

    params.safetensors            Gemma Scope 2, SAE or transcoder          gemma_scope_2
    params_layer_0.safetensors …  Gemma Scope 2, CLT or crosscoder          gemma_scope_2_layers
    params.npz                    Gemma Scope 1                             gemma_scope_1
    sae_weights.safetensors       SAELens' own                              saelens
    layer_3.safetensors           circuit-tracer, the transcoder of layer 3 circuit_tracer
    W_enc_0.safetensors …         circuit-tracer, CLT                       circuit_tracer

The file on the left decides. Each reader takes a folder and gives a dictionary; what it needs to know beside the
tensors comes from a config beside them, and from names where there is none.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from gemlens.scope.folder import Folder
from gemlens.scope.formats import circuit_tracer, gemma_scope_1, gemma_scope_2, gemma_scope_2_layers, saelens
from gemlens.scope.formats.layout import Target
from gemlens.scope.multilayer import MultiLayer
from gemlens.scope.sae import SAE

__all__ = ["FORMATS", "Format", "dictionaries_below", "likeliest_first"]


@dataclass(frozen=True)
class Format:
    """One layout: how to tell it, and how to read it."""

    name: str
    marker: str
    """The file that every dictionary of this format has; empty where the id names the file itself."""
    read: Callable[[Folder, Target], SAE | MultiLayer]
    hint: str
    """Pattern of the paths under which it is published."""
    over_layers: bool = False
    """CLTs and crosscoders."""

    def place(self, path: str) -> tuple[str, str] | None:
        """Folder and file that the dictionary ``path`` of a release would have; None if it cannot be of this format."""
        if self.marker:
            return path, self.marker
        folder, _, name = path.rpartition("/")
        name = name.removesuffix(".safetensors")
        return (folder, f"{name}.safetensors") if circuit_tracer.LAYER_ID.fullmatch(name) else None


FORMATS = [
    Format("Gemma Scope 2", "params.safetensors", gemma_scope_2.read_sae, r"_l0_(small|medium|big)"),
    Format("Gemma Scope 1", "params.npz", gemma_scope_1.read_sae, r"average_l0_|^embedding/"),
    Format("SAELens", "sae_weights.safetensors", saelens.read_sae, r"blocks\.\d+\."),
    Format("circuit-tracer", "", circuit_tracer.read_transcoder, r"(^|/)layer_\d+(\.safetensors)?$"),
    Format(
        "Gemma Scope 2", "params_layer_0.safetensors", gemma_scope_2_layers.read_layers, r"^(clt|crosscoder)/", True
    ),
    Format("circuit-tracer", "W_enc_0.safetensors", circuit_tracer.read_clt, r"^$", True),
]


def likeliest_first(path: str, *, over_layers: bool | None) -> list[Format]:
    """The formats of a kind, or of both, those first that are published under such paths."""
    of_kind = [each for each in FORMATS if over_layers in (None, each.over_layers)]
    return sorted(of_kind, key=lambda each: re.search(each.hint, path) is None)


def dictionaries_below(root: Path) -> Iterator[str]:
    """Paths of all dictionaries in a folder and the folders below it; ``.`` for the folder itself."""
    for path in root.rglob("*"):
        name, folder = path.name, PurePosixPath(path.parent.relative_to(root).as_posix())
        if any(name == each.marker for each in FORMATS):
            yield str(folder)
        elif path.suffix == ".safetensors" and circuit_tracer.LAYER_ID.fullmatch(path.stem):
            yield str(folder / path.stem)
