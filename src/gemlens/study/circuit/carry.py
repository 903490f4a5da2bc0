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
    """[sources, positions, d_model]: the embedding, the errors by layer, then the features in order."""
    columns: slice
    """Of the features, by position and layer."""


def carried(run: CleanRun, nodes: Nodes, position: int, written: Sequence[Tensor], columns: slice) -> Carried:
    """Carry the sources at ``position`` to the input of block ``len(written)``.

    Args:
        written: by layer [features of it and of the layers before, d_model], what they write there.
    """
    like, layers = run.embedding, len(written)
    width, total = run.n - position, 1 + layers + len(written[-1])
    state = like.new_zeros(total, width, like.shape[1])
    state[0, 0] = run.embedding[position]
    # Rows of ``state`` that have joined: the embedding, an error a layer, and features; by their first layer.
    fresh = torch.tensor([0])
    old = torch.empty(0, dtype=torch.int64)
    for layer in range(layers):
        attention = run.layers[layer].attention
        if len(old):
            some = state[old]
            _attend(attention, some, position)
            state[old] = some
        state[fresh] = _spread(attention, state[fresh, 0], position, width)
        old = torch.cat([old, fresh])
        _skip(run, nodes, layer, state, old, position)
        state[1 + layer, 0] = nodes.errors[layer, position]
        before, now = len(written[layer - 1]) if layer else 0, len(written[layer])
        state[1 + layers : 1 + layers + now, 0] += written[layer]
        fresh = torch.cat([torch.tensor([1 + layer]), torch.arange(before, now) + 1 + layers])
    return Carried(position - nodes.first, state, columns)


def carried_prefix(run: CleanRun, nodes: Nodes, layers: int) -> Tensor:
    """[1 + (layers + 1) * first, positions from the first on, d_model]: all constants, then what the positions before
    the first add behind it, their embeddings and then their errors, layer-major."""
    first = nodes.first
    state = run.embedding.new_zeros(1 + (layers + 1) * first, *run.embedding.shape)
    at = torch.arange(first)
    state[1 + at, at] = run.embedding[:first]
    everything = torch.arange(len(state))
    for layer in range(layers):
        state += run.layers[layer].attention.forward(state)
        _skip(run, nodes, layer, state, everything, 0)
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


def _spread(attention: Attention, vectors: Tensor, position: int, width: int) -> Tensor:
    """[sources, width, d_model] of what is at ``position`` alone, [sources, d_model]."""
    groups, _, _, each = attention.mix.shape
    values = (vectors @ attention.value.T).view(len(vectors), groups, attention.head_dim)
    outs = attention.out.view(-1, groups, each, attention.head_dim)
    heads = torch.einsum("sgh,dgrh->sgrd", values, outs).flatten(1, 2)
    # [queries, heads]
    mix = attention.mix[:, position, position : position + width].transpose(0, 1).flatten(1)
    spread = torch.matmul(mix, heads)
    spread[:, 0] += vectors
    return spread


def _skip(run: CleanRun, nodes: Nodes, layer: int, state: Tensor, rows: Tensor, position: int) -> None:
    part = nodes.parts.get(layer)
    if part is None or part.skip is None:
        return
    scale = (run.layers[layer].mlp_scale * nodes.read)[position:, None]
    some = state[rows]
    state[rows] = some + (some @ part.skip.T) * scale
