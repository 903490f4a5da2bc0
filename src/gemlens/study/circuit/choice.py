"""Which features become nodes, where they are too many: those whose gradient times activation is largest.

One pass back from the targets through the frozen model, features included: each passes on what it is read for, at the
rate at which it is active, so that one whose effect on the targets goes through other features counts as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from gemlens.study.circuit.targets import Scene, Target

__all__ = ["influence", "strongest"]

_TOGETHER = 1024


@torch.no_grad()
def strongest(scene: Scene, targets: Sequence[Target], most: int) -> Tensor:
    """bool [N]: the ``most`` features of largest gradient times activation, summed over targets by their sizes.

    A target weighs what its probability is, or 1 where it has none.
    """
    scores = influence(scene, targets)
    kept = torch.zeros(len(scores), dtype=torch.bool)
    # A stable sort, so that ties fall alike on every machine.
    kept[scores.argsort(descending=True, stable=True)[:most]] = True
    return kept


def influence(scene: Scene, targets: Sequence[Target]) -> Tensor:
    """[N], of every feature: the sum over targets of weight * |d target / d activation * activation|."""
    run, nodes = scene.run, scene.nodes
    index, weights = nodes.index, [1.0 if t.record.probability is None else t.record.probability for t in targets]
    weight = run.embedding.new_tensor(weights)
    state = run.embedding.new_zeros(len(targets), run.n, run.embedding.shape[1])
    # Per feature: by how much each target changes with its activation, as far as the layers that were passed tell.
    gradient = run.embedding.new_zeros(len(targets), len(index))
    _start(state, targets, len(run.layers))
    for layer in reversed(range(len(run.layers))):
        for some in _writing(scene, layer):
            part = nodes.parts[int(index[some[0], 0])]
            rows = part.written_by(index[some, 2], layer)
            gradient[:, some] += torch.einsum("tmd,md->tm", state[:, index[some, 1]], rows)
        _through_mlp(scene, layer, state, gradient)
        _start(state, targets, layer)
        state += run.layers[layer].attention.backward(state)
    return (gradient * nodes.activations).abs().T @ weight


def _start(state: Tensor, targets: Sequence[Target], layer: int) -> None:
    for row, target in enumerate(targets):
        if target.layer == layer:
            state[row, target.position] += target.vector


def _writing(scene: Scene, layer: int) -> Iterator[Tensor]:
    """Features that write to one layer, some of one layer at a time."""
    index = scene.nodes.index
    for each, part in scene.nodes.parts.items():
        if each <= layer <= part.last:
            yield from _some(index, each)


def _some(index: Tensor, layer: int) -> Iterator[Tensor]:
    mine = (index[:, 0] == layer).nonzero()[:, 0]
    yield from mine.split(_TOGETHER) if len(mine) else ()


def _through_mlp(scene: Scene, layer: int, state: Tensor, gradient: Tensor) -> None:
    """From what a layer writes to what it reads: by its skip and by its features, in place."""
    part = scene.nodes.parts.get(layer)
    if part is None:
        return
    index, scale = scene.nodes.index, scene.run.layers[layer].mlp_scale
    if part.skip is not None:
        state += (state @ part.skip) * (scale * scene.nodes.read)[:, None]
    for some in _some(index, layer):
        positions = index[some, 1]
        rows = part.read_by(index[some, 2]) * scale[positions, None]
        state.index_add_(1, positions, gradient[:, some, None] * rows)
