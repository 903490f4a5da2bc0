"""The backward sweep: the direct effects on many nodes at once, without an autograd tape.

The frozen model is linear, so what a node reads of every source is one cotangent, carried back from where the node
reads to where the source writes:

1. Rows (nodes, targets) are cut into blocks of one position or neighbours; a row at position p touches none behind it.
2. A block goes from its topmost layer down. At each layer its cotangents ``[rows, positions, d_model]`` are
   a. contracted with what the sources of that layer write (active decoder rows, errors, constants);
   b. carried through the skip: ``G += scale * (G @ S.T)``;
   c. carried through attention: output projection, pattern, value projection: three large products;
   d. joined by the rows that read this very layer, whose cotangents are of one position and reach all by one product.
3. At layer 0 what is left is contracted with the token embeddings; where a table of these, carried through layer 0's
   attention, is small enough, that layer takes one product.

Positions before the first that transcoders read (BOS) have no rows and no features. Their errors and embeddings are
carried forwards instead, a few vectors once, and met where later positions attend to them: no cotangents lie there.
Ameisen et al. 2025 (transformer-circuits.pub/2025/attribution-graphs), the frozen model; the order of work is ours.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from gemlens.study.circuit.carry import carried, carried_prefix, middle
from gemlens.study.circuit.linear import Attention, CleanRun
from gemlens.study.circuit.nodes import Nodes

__all__ = ["Effects", "Rows", "Sweep"]

# Keys that are mixed at a time: what lies after them is not computed for the whole block.
_KEYS = 64
# Bytes of the table that takes layer 0 in one product.
_TABLE = 64 << 20


@dataclass(frozen=True, eq=False)
class Rows:
    """What is explained: where each row reads, and along which direction."""

    layer: Tensor
    """int64 [R]: reads the residual stream between attention and MLP of that layer; n_layers: the last output."""
    position: Tensor
    """int64 [R]"""
    vector: Tensor
    """[R, d_model]"""


class Effects(NamedTuple):
    """Direct effects on some rows."""

    rows: Tensor
    """int64 [r], indices into ``Rows``."""
    features: Tensor
    """[r, N], by the nodes of ``Nodes.index``."""
    errors: Tensor
    """[r, layers, n]"""
    tokens: Tensor
    """[r, n]"""
    constants: Tensor
    """[r]"""


class _Sources(NamedTuple):
    """What writes at one layer, sorted by position."""

    written: Tensor
    """[S, d_model], activations times decoder rows."""
    runs: list[tuple[int, int, int, int]]
    """(position, first column, last + 1, first row of ``written``) for each position where something writes."""

    def at(self, position: int) -> _Piece | None:
        """What writes at one position."""
        for place, first, last, row in self.runs:
            if place == position:
                return _Piece(first, self.written[row : row + last - first])
        return None


class _Piece(NamedTuple):
    column: int
    written: Tensor


class Meeting:
    """Everything that is written below ``layer``, carried to where it is read."""

    def __init__(self, run: CleanRun, nodes: Nodes, layer: int, sources: Sequence[_Sources]) -> None:
        self.layer, self.first = layer, nodes.first
        self._prefix = carried_prefix(run, nodes, layer)
        self._carried = []
        for position in range(nodes.first, run.n):
            place = position - nodes.first
            pieces = [each.at(place) for each in sources[:layer]]
            joined = torch.bincount(nodes.index[nodes.index[:, 1] == position, 0], minlength=layer)[:layer].cumsum(0)
            start = min((first for first, *_ in filter(None, pieces)), default=0)
            total = int(joined[-1])
            written = [
                _padded(piece, start, int(count), run.embedding) for piece, count in zip(pieces, joined, strict=True)
            ]
            columns = slice(start, start + total)
            self._carried.append(carried(run, nodes, position, written, columns))

    def __call__(self, state: Tensor, effects: Effects) -> None:
        """Contract cotangents [rows, positions, d_model] of what ``layer`` is fed."""
        width, first, layer = state.shape[1], self.first, self.layer
        flat = state.flatten(1)
        for each in self._carried[:width]:
            behind = state[:, each.place :].flatten(1)
            found = behind @ each.state[:, : width - each.place].flatten(1).T
            effects.tokens[:, first + each.place] += found[:, 0]
            effects.errors[:, :layer, first + each.place] += found[:, each.errors]
            effects.features[:, each.columns] += found[:, each.features]
        found = flat @ self._prefix[:, :width].flatten(1).T
        effects.constants.add_(found[:, 0])
        effects.tokens[:, :first] += found[:, 1 : 1 + first]
        effects.errors[:, :layer, :first] += found[:, 1 + first :].unflatten(1, (layer, first))


class Sweep:
    """All that the rows of one prompt share.

    Args:
        cells: cotangents of a block, rows times positions.
        room: bytes that sources may take which are carried to meet rows halfway (``carry``).
    """

    def __init__(self, run: CleanRun, nodes: Nodes, *, cells: int = 2048, room: int = 0) -> None:
        self.run, self.nodes, self.cells, self.room = run, nodes, cells, room
        self.layers, self.n, self.first = len(run.layers), run.n, nodes.first
        self.d = run.embedding.shape[1]
        # Columns while sweeping: by position, then layer, so that what a layer writes at a position is one piece.
        index = nodes.index
        order = (index[:, 1] * self.layers + index[:, 0]).argsort(stable=True)
        self._back = order.argsort()
        self._sources = [
            self._sources_at(layer, index[order], nodes.activations[order]) for layer in range(self.layers)
        ]
        self._fixed = [
            torch.stack([nodes.errors[layer], nodes.constants[layer]], dim=2)[self.first :]
            for layer in range(self.layers)
        ]
        inside = nodes.read[self.first :, None]
        self._scale = [layer.mlp_scale[self.first :, None] * inside for layer in run.layers]
        # Where a block is worked on: memory that is taken once, not page by page for every product.
        self._rooms: dict[str, Tensor] = {}
        self._prefix = self._prefix_values()
        self._table = self._token_table()

    def __call__(self, rows: Rows) -> Iterator[Effects]:
        """Effects on all rows, block by block."""
        step = sum(a.shape[0] * a.shape[1] // self.d for a in (self.attention.out_weight, self.attention.value))
        meet = middle(self.nodes, rows.layer, rows.position, d=self.d, step=step * self.d, room=self.room)
        lower, upper = ((rows.layer < meet).nonzero()[:, 0], (rows.layer >= meet).nonzero()[:, 0])
        for block in self.blocks(rows, lower):
            yield self._sweep(rows, block)
        met = Meeting(self.run, self.nodes, meet, self._sources) if meet and len(upper) else None
        for block in self.blocks(rows, upper):
            yield self._sweep(rows, block, met)

    @property
    def attention(self) -> Attention:
        """Of the first block; those of the others are as large."""
        return self.run.layers[0].attention

    def blocks(self, rows: Rows, some: Tensor) -> Iterator[Tensor]:
        """Indices of rows that are swept together, within the bound on cells; each by layer, the topmost first."""
        order = some[(rows.position[some] * (self.layers + 1) + self.layers - rows.layer[some]).argsort(stable=True)]
        order = order.flip(0)
        positions = (rows.position[order] - self.first + 1).tolist()
        start = 0
        while start < len(order):
            most, stop = positions[start], start + 1
            # Rows at earlier positions carry zeros: at most one position in eight.
            while stop < len(order) and (stop - start) * most < self.cells and positions[stop] * 8 >= most * 7:
                stop += 1
            block = order[start:stop]
            yield block[(self.layers - rows.layer[block]).argsort(stable=True)]
            start = stop

    # ---- one block ----

    def _sweep(self, rows: Rows, block: Tensor, met: Meeting | None = None) -> Effects:
        layers, places, vectors = rows.layer[block], rows.position[block] - self.first, rows.vector[block]
        width = int(places.max()) + 1
        state = self._room("state", len(block), width, self.d)
        effects = self._empty(block)
        active = int((layers == self.layers).sum())
        state[:active] = 0
        state[torch.arange(active), places[:active]] = vectors[:active]
        for layer in reversed(range(met.layer if met else 0, self.layers)):
            joining = slice(active, active + int((layers == layer).sum()))
            if active:
                self._contract(layer, state[:active], effects, active)
                self._skip(layer, state[:active])
            if layer == 0 and self._table is not None:
                self._through_table(state[:active], vectors[joining], places[joining], effects)
                return self._finished(effects)
            if active:
                self._attend(layer, state[:active], effects, active)
            if joining.stop > active:
                self._join(layer, state, joining, places[joining], vectors[joining], effects)
                active = joining.stop
        if met:
            met(state, effects)
            return self._finished(effects)
        effects.tokens[:, self.first : self.first + width] += torch.einsum(
            "tqd,qd->tq", state, self.run.embedding[self.first : self.first + width]
        )
        return self._finished(effects)

    def _room(self, name: str, *shape: int) -> Tensor:
        """Uninitialised, and the same memory at the next call of that name."""
        size = math.prod(shape)
        if name not in self._rooms or self._rooms[name].numel() < size:
            self._rooms[name] = self.run.embedding.new_empty(size)
        return self._rooms[name][:size].view(shape)

    def _empty(self, block: Tensor) -> Effects:
        like, r = self.run.embedding, len(block)
        return Effects(
            block,
            like.new_zeros(r, len(self.nodes.index)),
            like.new_zeros(r, self.layers, self.n),
            like.new_zeros(r, self.n),
            like.new_zeros(r),
        )

    def _finished(self, effects: Effects) -> Effects:
        return effects._replace(features=effects.features[:, self._back])

    def _contract(self, layer: int, state: Tensor, effects: Effects, active: int) -> None:
        width = state.shape[1]
        written, runs = self._sources[layer]
        for position, first, last, row in runs:
            if position >= width:
                break
            effects.features[:active, first:last].addmm_(state[:, position], written[row : row + last - first].T)
        # By position: [rows, d] @ [d, 2].
        fixed = torch.bmm(state.transpose(0, 1), self._fixed[layer][:width])
        effects.errors[:active, layer, self.first : self.first + width] = fixed[:, :, 0].T
        effects.constants[:active] += fixed[:, :, 1].sum(dim=0)

    def _skip(self, layer: int, state: Tensor) -> None:
        part = self.nodes.parts.get(layer)
        if part is not None and part.skip is not None:
            skipped = self._room("skipped", *state.shape)
            torch.mm(state.flatten(0, 1), part.skip, out=skipped.flatten(0, 1))
            state.addcmul_(skipped, self._scale[layer][: state.shape[1]])

    def _attend(self, layer: int, state: Tensor, effects: Effects, active: int) -> None:
        attention = self.run.layers[layer].attention
        flat, (rows, width, _) = state.flatten(0, 1), state.shape
        groups, head_dim, each = attention.kv_heads, attention.head_dim, attention.mix.shape[3]
        mixed = self._room("mixed", rows, width, groups * head_dim)
        heads = self._room("heads", rows, width * each, head_dim)
        for group, out in enumerate(attention.out.split(each * head_dim, dim=1)):
            torch.mm(flat, out, out=heads.view(rows * width, each * head_dim))
            mix = attention.mix[group]
            of_group = slice(group * head_dim, (group + 1) * head_dim)
            for keys, queries in _spans(width, attention.reach):
                at = slice(queries.start * each, queries.stop * each)
                weights = mix[self.first :, self.first :][keys, queries].flatten(1)
                torch.matmul(weights, heads[:, at], out=mixed[:, keys, of_group])
            if self.first:
                weights = mix[: self.first, self.first : self.first + width].flatten(1)
                self._meet_prefix(layer, group, torch.matmul(weights, heads), effects, slice(0, active))
        flat.addmm_(mixed.flatten(0, 1), attention.value)

    def _join(
        self, layer: int, state: Tensor, joining: slice, places: Tensor, vectors: Tensor, effects: Effects
    ) -> None:
        """Rows that read this layer: their cotangents are at one position each, so attention spreads one vector."""
        attention = self.run.layers[layer].attention
        groups, head_dim, each = attention.kv_heads, attention.head_dim, attention.mix.shape[3]
        width, new = state.shape[1], len(vectors)
        heads = (vectors @ attention.out).view(new, groups, each, head_dim)
        # [new, groups, keys, each]
        weights = attention.mix[:, :, places + self.first].permute(2, 0, 1, 3)
        values = torch.stack(
            [heads[:, group] @ value for group, value in enumerate(attention.value.split(head_dim))], dim=1
        )
        spread = weights[:, :, self.first : self.first + width].transpose(1, 2).flatten(2)
        torch.bmm(spread, values.flatten(1, 2), out=state[joining])
        state[torch.arange(joining.start, joining.stop), places] += vectors
        for group in range(groups if self.first else 0):
            met = weights[:, group, : self.first] @ heads[:, group]
            self._meet_prefix(layer, group, met, effects, joining)

    # ---- positions before the first ----

    def _prefix_values(self) -> list[Tensor]:
        """By layer [kv heads, prefix * head_dim, sources]: what attention reads of the prefix, by where it comes from:
        the embeddings there, then the errors, layer-major."""
        first, embedding = self.first, self.run.embedding
        if not first:
            return []
        carried = embedding.new_zeros((self.layers + 1) * first, first, self.d)
        at = torch.arange(first)
        carried[at, at] = embedding[:first]
        found = []
        for index, layer in enumerate(self.run.layers):
            attention = layer.attention
            values = (carried @ attention.value.T).unflatten(2, (attention.kv_heads, attention.head_dim))
            found.append(values.permute(2, 1, 3, 0).flatten(1, 2).contiguous())
            carried += attention.forward(carried)
            carried[(index + 1) * first + at, at] = self.nodes.errors[index, :first]
        return found

    def _meet_prefix(self, layer: int, group: int, heads: Tensor, effects: Effects, rows: slice) -> None:
        """[rows, prefix, head_dim] cotangents of the values there, with what these are made of."""
        first = self.first
        met = heads.flatten(1) @ self._prefix[layer][group]
        effects.tokens[rows, :first] += met[:, :first]
        effects.errors[rows, :, :first] += met[:, first:].unflatten(1, (self.layers, first))

    # ---- sources ----

    def _sources_at(self, layer: int, index: Tensor, values: Tensor) -> _Sources:
        """``index`` is sorted by position, layer and feature."""
        parts = self.nodes.parts
        writing = [each for each, part in parts.items() if each <= layer <= part.last]
        mine = torch.isin(index[:, 0], torch.tensor(writing, dtype=torch.int64)).nonzero()[:, 0]
        written = values.new_empty(len(mine), self.d)
        for each in writing:
            own = (index[mine, 0] == each).nonzero()[:, 0]
            written[own] = parts[each].written_by(index[mine[own], 2], layer) * values[mine[own], None]
        runs = []
        positions = index[mine, 1]
        starts = (positions.diff(prepend=positions.new_tensor([-1])) != 0).nonzero()[:, 0].tolist()
        for start, stop in pairwise([*starts, len(mine)]):
            column = int(mine[start])
            runs.append((int(positions[start]) - self.first, column, column + stop - start, start))
        return _Sources(written, runs)

    def _token_table(self) -> Tensor | None:
        """[positions, d_model, n]: what each embedding does to ``mid`` of layer 0, or None where that is large."""
        first, n, embedding = self.first, self.n, self.run.embedding
        if (n - first) * n * self.d * embedding.element_size() > _TABLE:
            return None
        attention = self.run.layers[0].attention
        groups, each = attention.kv_heads, attention.mix.shape[3]
        values = (embedding @ attention.value.T).view(n, groups, attention.head_dim)
        outs = attention.out.view(self.d, groups, each, attention.head_dim)
        added = torch.einsum("kgh,dgrh->kgrd", values, outs)
        table = torch.einsum("gkqr,kgrd->qdk", attention.mix[:, :, first:], added).contiguous()
        at = torch.arange(n - first)
        table[at, :, at + first] += embedding[first:]
        return table

    def _through_table(self, state: Tensor, vectors: Tensor, places: Tensor, effects: Effects) -> None:
        assert self._table is not None
        active = len(state)
        if active:
            table = self._table[: state.shape[1]].flatten(0, 1)
            effects.tokens[:active] += state.flatten(1) @ table
        for place in places.unique().tolist():
            at = (places == place).nonzero()[:, 0]
            effects.tokens[active + at] += vectors[at] @ self._table[place]


def _padded(piece: _Piece | None, start: int, total: int, like: Tensor) -> Tensor:
    """[total, d_model] from column ``start`` on, with zeros for the columns before the piece."""
    full = like.new_zeros(total, like.shape[1])
    if piece is not None:
        full[piece.column - start : piece.column - start + len(piece.written)] = piece.written
    return full


def _spans(width: int, reach: int) -> Iterator[tuple[slice, slice]]:
    """Keys, and the queries that may see any of them."""
    for start in range(0, width, _KEYS):
        stop = min(start + _KEYS, width)
        yield slice(start, stop), slice(start, min(width, stop + reach))
