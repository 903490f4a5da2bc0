"""Sources carried forwards to a layer in the middle, where rows from above meet them.

A row from high up that goes down to layer 0 passes every layer for the sake of the sources there. Where these are
about as many as the rows, it is less work to carry both halfway: rows down to layer ``m``, what is written below up to
it, and to contract them there, over all positions that both have. The mirror of the sweep: a source at position q
touches positions >= q, its first attention starts from one vector, and sources of one position are carried together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gemlens.study.circuit.linear import Attention, CleanRun
from gemlens.study.circuit.nodes import Nodes

__all__ = ["Carried", "carried", "carried_prefix", "middle"]


@dataclass(frozen=True, eq=False)
class Carried:
    """What the sources at one position below layer ``m`` add to the residual stream that layer ``m`` is fed."""

    place: int
    """Positions from here on, counted from the first that is read."""
    state: Tensor
    """[sources, positions, d_model]: the embedding, then by layer an error and features."""
    errors: Tensor
    """int64 [m], rows of ``state``."""
    features: Tensor
    """int64, rows of ``state``, in the order of ``columns``."""
    columns: slice
    """Of the features, by position and layer."""


def carried(run: CleanRun, nodes: Nodes, position: int, written: Sequence[Tensor], columns: slice) -> Carried:
    """Carry the sources at ``position`` to the input of block ``len(written)``.

    Args:
        written: by layer [features of it and of the layers before, d_model], what they write there.
    """
    counts = [len(rows) for rows in written]
    # Rows in the order in which they join, so that those that have joined are one piece.
    layers, order = len(written), torch.arange(1 + len(written) + counts[-1])
    errors = torch.tensor([1 + layer + before for layer, before in enumerate([0, *counts[:-1]])])
    features = order[1:][~torch.isin(order[1:], errors)]
    state = run.embedding.new_zeros(len(order), run.n - position, run.embedding.shape[1])
    state[0, 0] = run.embedding[position]
    passed, joined = 0, 1
    for layer in range(layers):
        attention = run.layers[layer].attention
        if passed:
            _attend(attention, state[:passed], position)
        _spread(attention, state[passed:joined], position)
        _skip(run, nodes, layer, state[:joined], position)
        state[errors[layer], 0] = nodes.errors[layer, position]
        state[features[: counts[layer]], 0] += written[layer]
        passed, joined = joined, 2 + layer + counts[layer]
    return Carried(position - nodes.first, state, errors, features, columns)


def carried_prefix(run: CleanRun, nodes: Nodes, layers: int) -> Tensor:
    """[1 + (layers + 1) * first, positions from the first on, d_model]: all constants, then what the positions before
    the first add behind it, their embeddings and then their errors, layer-major."""
    first = nodes.first
    state = run.embedding.new_zeros(1 + (layers + 1) * first, *run.embedding.shape)
    at = torch.arange(first)
    state[1 + at, at] = run.embedding[:first]
    for layer in range(layers):
        state += run.layers[layer].attention.forward(state)
        _skip(run, nodes, layer, state, 0)
        state[0] += nodes.constants[layer]
        state[1 + (layer + 1) * first + at, at] = nodes.errors[layer, :first]
    return state[:, first:]


def middle(nodes: Nodes, layers: Tensor, positions: Tensor, *, d: int, step: int, room: int) -> int:
    """The layer at which rows and sources meet with the least work; 0: nowhere but at the embeddings.

    Args:
        layers, positions: of the rows; a row of the last output has the number of layers.
        d: numbers of a residual stream; ``step``: multiplications that carry one of them on by a layer.
        room: bytes that the carried sources may take.
    """
    count, n = nodes.errors.shape[:2]
    places = (positions - nodes.first + 1).double()
    remain = (n - nodes.index[:, 1]).double()
    all_positions = torch.arange(n - nodes.first).double()
    best, chosen = float("inf"), 0
    for m in range(count):
        above, below = layers >= m, nodes.index[:, 0] < m
        rows = ((layers - m).clamp(min=0) * places)[above].sum() + ((layers - 1).clamp(min=0) * places)[~above].sum()
        if m == 0:
            rows = ((layers - 1).clamp(min=0) * places).sum()
        sources = ((m - 2 - nodes.index[below, 0]).clamp(min=0) * remain[below]).sum()
        behind = (n - nodes.first - all_positions).sum()
        sources += behind * sum(range(m)) if m else 0
        by_row = torch.bincount(positions[above] - nodes.first, minlength=n - nodes.first).double()
        by_source = torch.bincount(nodes.index[below, 1] - nodes.first, minlength=n - nodes.first).double() + m + 1
        overlap = (all_positions[:, None] - all_positions + 1).clamp(min=0)
        met = float(by_row @ overlap @ by_source) * d if m else 0.0
        held = int((by_source * (n - nodes.first - all_positions)).sum()) * d * nodes.errors.element_size()
        work = float(rows + sources) * step + met
        if work < best and (m == 0 or held <= room):
            best, chosen = work, m
    return chosen


def _attend(attention: Attention, state: Tensor, position: int) -> None:
    """[sources, positions, d_model] from ``position`` on, in place."""
    rows, width, d = state.shape
    groups, _, _, each = attention.mix.shape
    values = (state.flatten(0, 1) @ attention.value.T).view(rows, width, groups, attention.head_dim)
    flat = state.view(rows * width, d)
    for group, out in enumerate(attention.out.split(each * attention.head_dim, dim=1)):
        mix = attention.mix[group, position:, position:].flatten(1).T
        heads = torch.matmul(mix, values[:, :, group])
        flat.addmm_(heads.view(rows * width, -1), out.T)


def _spread(attention: Attention, state: Tensor, position: int) -> None:
    """The same of what is at ``position`` alone: one vector a source goes through the heads, whatever they see."""
    vectors = state[:, 0].clone()
    each = attention.mix.shape[3]
    values = vectors @ attention.value.T
    heads = [
        values[:, head // each * attention.head_dim : (head // each + 1) * attention.head_dim] @ out.T
        for head, out in enumerate(attention.out.split(attention.head_dim, dim=1))
    ]
    # [queries, heads]
    mix = attention.mix[:, position, position : position + state.shape[1]].transpose(0, 1).flatten(1)
    torch.matmul(mix, torch.stack(heads, dim=1), out=state)
    state[:, 0] += vectors


def _skip(run: CleanRun, nodes: Nodes, layer: int, state: Tensor, position: int) -> None:
    part = nodes.parts.get(layer)
    if part is not None and part.skip is not None:
        state.addcmul_(state @ part.skip.T, (run.layers[layer].mlp_scale * nodes.read)[position:, None])
