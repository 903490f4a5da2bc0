"""``circuit``: the attribution graph of one prompt.

1. One clean pass of the model; its patterns and norm scales are frozen (``linear``).
2. Transcoders encode what their MLPs were fed: features, errors, constants (``nodes``).
3. What is to be explained (``targets``); where features are too many, the ones that matter most to it (``choice``).
4. The sweep back, whose rows go into the graph as they come (``sweep``).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gemlens.errors import InputError
from gemlens.lm.gemma import Model
from gemlens.lm.text import pieces, texts
from gemlens.records import DictionaryInfo
from gemlens.records.graph import Graph, GraphToken
from gemlens.study.analysis import provenance_of, text_of, tokens_read
from gemlens.study.circuit.choice import strongest
from gemlens.study.circuit.linear import clean_run
from gemlens.study.circuit.nodes import Nodes, check_transcoders, nodes_of
from gemlens.study.circuit.sweep import Rows, Sweep
from gemlens.study.circuit.targets import Scene, Target, Targets, salient, targets_of
from gemlens.study.replacement import Transcoders, sites_of

__all__ = ["circuit", "scene_of"]

MEMORY = 4 << 30


def circuit(
    model: Model,
    transcoders: Transcoders,
    prompt: str,
    *,
    targets: Targets | Sequence[Targets] | None = None,
    max_features: int | None = 7500,
    memory: int = MEMORY,
    system: str | None = None,
    chat: bool | None = None,
    allow_missing: bool = False,
    report: Callable[[int, int], None] = lambda _done, _total: None,
) -> Graph:
    """The attribution graph of what follows ``prompt``.

    Args:
        transcoders: one for each layer, or a CLT.
        targets: what to explain, by the functions of ``targets``; the likeliest next tokens unless given.
        max_features: feature nodes to keep; None for all that fire.
        memory: bytes that the graph and the work on it may take, beyond the model and the transcoders. A graph that
            would take more than half of it lies in a file of its own, mapped into memory.
        system, chat: as for ``analyze``.
        allow_missing: leave the MLPs of layers without a transcoder as errors.
        report: called with rows done and rows to do.

    Raises:
        InputError: an empty prompt, transcoders that cannot stand in together, a target that is none.
        MismatchError: a transcoder that does not fit the model.
    """
    if max_features is not None and max_features < 1:
        raise InputError(f"at most {max_features} feature nodes: at least 1, or None for all")
    if memory < _LEAST:
        raise InputError(f"{memory} bytes of memory are too few for a graph; give at least {_LEAST}")
    infos, warnings = check_transcoders(model, transcoders, allow_missing=allow_missing)
    text = text_of(model, prompt, system=system, chat=chat)
    scene = scene_of(model, transcoders, text.ids, infos)
    wanted = targets_of(scene, salient() if targets is None else targets)
    nodes = scene.nodes
    if max_features is not None and nodes.n_active > max_features:
        nodes = nodes.keeping(strongest(scene, wanted, max_features))
    edges, biases = _swept(Scene(model, scene.run, nodes), wanted, memory, report)
    ids = text.ids.tolist()
    return Graph(
        prompt=prompt,
        model_id=model.name,
        tokens=tuple(map(GraphToken, ids, _token_texts(model, ids))),
        dictionaries=tuple(infos),
        n_layers=model.n_layers,
        features=nodes.index.numpy().astype(np.int32),
        activations=_float32(nodes.activations),
        errors=_error_nodes(nodes),
        targets=tuple(target.record for target in wanted),
        target_values=np.array([target.value(scene.run) for target in wanted], dtype=np.float32),
        edges=edges,
        biases=biases,
        pre_activations=_float32(nodes.activations),
        n_active=nodes.n_active,
        provenance=provenance_of(model),
        settings={"max_features": max_features, "prompt_text": text.fed},
        warnings=tuple(warnings),
    )


_LEAST = 64 << 20


def scene_of(model: Model, transcoders: Transcoders, ids: Tensor, infos: Sequence[DictionaryInfo]) -> Scene:
    """A clean run over [n] ids and all that fires there."""
    run = clean_run(model, ids, sites_of(transcoders))
    return Scene(model, run, nodes_of(run, transcoders, tokens_read(model, infos, ids)))


def _swept(
    scene: Scene, wanted: Sequence[Target], memory: int, report: Callable[[int, int], None]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    run, nodes = scene.run, scene.nodes
    rows, constants = _rows(scene, wanted)
    n_features, n_errors = len(nodes.index), len(run.layers) * run.n
    edges = _room(len(rows.layer), n_features + n_errors + run.n, memory)
    biases = np.zeros(len(edges), dtype=np.float32)
    sweep = Sweep(run, nodes, cells=_cells(scene, memory), room=memory // 4)
    done = 0
    with torch.no_grad():
        for effects in sweep(rows):
            at = effects.rows.numpy()
            for column, part in (
                (0, effects.features),
                (n_features, effects.errors.flatten(1)),
                (n_features + n_errors, effects.tokens),
            ):
                edges[at, column : column + part.shape[1]] = part.cpu().numpy()
            biases[at] = (effects.constants + constants[effects.rows]).cpu().numpy()
            done += len(at)
            report(done, len(edges))
    return edges, biases


def _rows(scene: Scene, wanted: Sequence[Target]) -> tuple[Rows, Tensor]:
    """Feature nodes, then targets; and what each reads of nothing."""
    run, nodes = scene.run, scene.nodes
    vectors, biases = [], []
    for layer in range(len(run.layers)):
        mine = nodes.index[nodes.index[:, 0] == layer]
        if len(mine):
            part = nodes.parts[layer]
            vectors.append(part.read_by(mine[:, 2]) * run.layers[layer].mlp_scale[mine[:, 1], None])
            biases.append(part.weights.b_enc[mine[:, 2]].to(run.embedding))
    like = run.embedding
    vectors.append(torch.stack([target.vector for target in wanted]))
    biases.append(like.new_tensor([target.constant for target in wanted]))
    layers = torch.cat([nodes.index[:, 0], torch.tensor([target.layer for target in wanted])])
    positions = torch.cat([nodes.index[:, 1], torch.tensor([target.position for target in wanted])])
    return Rows(layers, positions, torch.cat(vectors)), torch.cat(biases)


# Of cotangents, rows times positions: enough for the products to be large, few enough for a CPU's caches.
_CELLS = 2048


def _cells(scene: Scene, memory: int) -> int:
    attention = scene.run.layers[0].attention
    widths = [scene.run.embedding.shape[1] * 2, attention.out_weight.shape[1], attention.value.shape[0]]
    return max(64, min(_CELLS, memory // 8 // (4 * sum(widths))))


def _room(rows: int, columns: int, memory: int) -> NDArray[np.float32]:
    if rows * columns * 4 <= memory // 2:
        return np.zeros((rows, columns), dtype=np.float32)
    # Without a name: gone with the last view of it.
    with tempfile.TemporaryFile(dir=Path(tempfile.gettempdir())) as file:
        return np.memmap(file, dtype=np.float32, mode="w+", shape=(rows, columns))


def _error_nodes(nodes: Nodes) -> NDArray[np.int32]:
    layers, n = nodes.errors.shape[:2]
    return np.indices((layers, n)).reshape(2, -1).T.astype(np.int32)


def _float32(values: Tensor) -> NDArray[np.float32]:
    return values.float().cpu().numpy()


def _token_texts(model: Model, ids: list[int]) -> list[str]:
    """Control tokens add nothing to a text, so they are called by their names."""
    rows = zip(ids, pieces(model, ids), texts(model, ids), strict=True)
    return [piece if token in model.special_ids else text for token, piece, text in rows]
