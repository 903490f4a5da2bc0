"""Attribution graphs of the starter, ours and circuit-tracer's, and what holds them against each other.

circuit-tracer's nnsight backend has two conventions of its own on Gemma 3: token columns are of the unscaled
embeddings, so they are ours / sqrt(d_model); and errors at positions without features (BOS) are dropped, so its rows do
not add up. Both are left as they are here: what is compared is features, and errors behind BOS.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gemlens.lm.starter import starter_folder
from gemlens.records.graph import Graph
from gemlens.scope.load import load_transcoder
from gemlens.scope.sae import SAE
from gemlens.scope.save import save_sae

__all__ = ["Compared", "attribute", "circuit_tracer", "compare", "transcoders"]

LAYERS = 18


def transcoders(*, skip: bool) -> list[SAE]:
    """The starter's, in float32 (they are stored as int8), with or without their affine skips."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for layer in range(LAYERS):
            name = f"transcoder_all/layer_{layer}_width_2k_l0_small_affine"
            sae = load_transcoder("starter", name)
            if not skip:
                sae.skip = None
            save_sae(sae, Path(folder, name), l0=17, dtype=torch.float32)
            found.append(load_transcoder(folder, name))
    return found


def circuit_tracer(ours: list[SAE]) -> Any:
    """circuit-tracer's replacement model of the starter with the same transcoders, by its own loaders."""
    from circuit_tracer.replacement_model.replacement_model_nnsight import NNSightReplacementModel
    from circuit_tracer.transcoder.single_layer_transcoder import TranscoderSet, load_gemma_scope_2_transcoder

    cpu = torch.device("cpu")
    with tempfile.TemporaryDirectory() as folder:
        theirs = {}
        for layer, sae in enumerate(ours):
            save_sae(sae, Path(folder, str(layer)), l0=17, dtype=torch.float32)
            theirs[layer] = load_gemma_scope_2_transcoder(f"{folder}/{layer}/params.safetensors", layer, cpu)
    loaded = TranscoderSet(theirs, feature_input_hook="mlp.hook_in", feature_output_hook="hook_mlp_out")
    return NNSightReplacementModel.from_pretrained_and_transcoders(str(starter_folder()), loaded, cpu, torch.float32)


def attribute(model: Any, prompt: str, batch_size: int) -> Any:
    from circuit_tracer import attribute

    return attribute(prompt, model, batch_size=batch_size)


class Compared(NamedTuple):
    features: int
    differing: int
    """Active on one side only."""
    rows: int
    worst_feature: float
    """Largest difference of an edge from a feature, relative to its row's largest edge from one."""
    worst_error: float
    """The same of edges from errors behind BOS."""

    @property
    def holds(self) -> bool:
        return self.features > 0 and not self.differing and max(self.worst_feature, self.worst_error) <= 1e-3


def compare(ours: Graph, theirs: Any) -> Compared:
    """Rows of features that fire on both sides, and of the targets; theirs uncapped."""
    mine = {tuple(node): row for row, node in enumerate(ours.features.tolist())}
    other = {tuple(node): row for row, node in enumerate(theirs.active_features.tolist())}
    common = sorted(mine.keys() & other.keys())
    a, b = (torch.tensor([each[node] for node in common]) for each in (mine, other))
    layers, n = ours.n_layers, len(ours.tokens)
    adjacency: Tensor = theirs.adjacency_matrix
    edges = torch.from_numpy(ours.edges)
    first = len(other)
    logits = first + (layers + 1) * n
    tokens = {int(token): logits + at for at, token in enumerate(theirs.logit_token_ids.tolist())}
    targets = [(len(mine) + at, tokens[t.token_id]) for at, t in enumerate(ours.targets) if t.token_id in tokens]
    rows, their_rows = (
        torch.cat([x, torch.tensor(y)]) for x, y in zip((a, b), zip(*targets, strict=True), strict=True)
    )
    behind = (torch.arange(layers * n) % n > 0).nonzero()[:, 0]
    features = edges[rows][:, a], adjacency[their_rows][:, b]
    errors = edges[rows][:, len(mine) + behind], adjacency[their_rows][:, first + behind]
    return Compared(
        features=len(mine),
        differing=len(mine.keys() ^ other.keys()),
        rows=len(rows),
        worst_feature=_worst(*features),
        worst_error=_worst(*errors),
    )


def _worst(ours: Tensor, theirs: Tensor) -> float:
    """Rows without any edge (the lowest layer's) have none that differs."""
    largest = torch.maximum(ours.abs().amax(dim=1), theirs.abs().amax(dim=1)).clamp(min=1e-9)
    return float(((ours - theirs).abs().amax(dim=1) / largest).max())
