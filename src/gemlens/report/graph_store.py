"""A graph whole, in one file of our own: safetensors, with everything that is no array as JSON in its header.

Neither pickle nor a second file that could be of another moment. Edges are written a block of rows at a time and read
as a memory map, so that a graph never has to fit in memory to be saved or pruned. More than half of them are 0, since
links only lead up and on: they are stored as they are, since what is mapped cannot be packed.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemlens.errors import GemlensError, InputError, NotFoundError
from gemlens.files import told, whole
from gemlens.records.analysis import DictionaryInfo, Provenance
from gemlens.records.graph import Graph, GraphTarget, GraphToken

__all__ = ["KIND", "read_graph", "write_graph"]

KIND = "gemlens-graph-1"
_ARRAYS = ("features", "activations", "errors", "target_values", "biases", "pre_activations", "edges")
_DTYPES = {"I32": np.dtype("<i4"), "F32": np.dtype("<f4")}
_ROWS = 256


def write_graph(graph: Graph, path: Path) -> None:
    """Write the file, whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    arrays = {name: getattr(graph, name) for name in _ARRAYS}
    stored = {name: "I32" if name in ("features", "errors") else "F32" for name in _ARRAYS}
    table: dict[str, Any] = {"__metadata__": {"gemlens": json.dumps(_plain(graph), allow_nan=False)}}
    end = 0
    for name, array in arrays.items():
        start, end = end, end + array.size * 4
        table[name] = {"dtype": stored[name], "shape": list(array.shape), "data_offsets": [start, end]}
    header = json.dumps(table).encode()
    header += b" " * (-len(header) % 8)
    with whole(path) as file, told(path):
        file.write(len(header).to_bytes(8, "little") + header)
        for name, array in arrays.items():
            for start in range(0, len(array), _ROWS):
                file.write(np.ascontiguousarray(array[start : start + _ROWS], dtype=_DTYPES[stored[name]]).tobytes())


def read_graph(path: Path) -> Graph:
    """Read such a file; its edges are mapped, not read.

    Raises:
        NotFoundError: no such file.
        InputError: another kind of file, or a damaged one; the message names the field.
    """
    try:
        return _read(path)
    except FileNotFoundError as error:
        raise NotFoundError(
            f"there is no file {path}; name one that gemlens circuit --export safetensors wrote"
        ) from error
    except GemlensError as error:
        raise InputError(f"{path}: {error}") from error
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error


def _read(path: Path) -> Graph:
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= size - 8:
            raise InputError("not a graph of gemlens: it is no safetensors file, or cut off")
        try:
            table = json.loads(file.read(length))
            said = json.loads(table["__metadata__"]["gemlens"])
        except (ValueError, TypeError, LookupError, RecursionError) as error:
            raise InputError("not a graph of gemlens: the header has no field 'gemlens'") from error
    if not isinstance(said, dict) or said.get("kind") != KIND:
        raise InputError(f"field 'kind' is {said.get('kind') if isinstance(said, dict) else said!r:.40}, not {KIND!r}")
    arrays = {name: _array(path, table, name, 8 + length, size) for name in _ARRAYS}
    graph = _graph(said, {name: value if name == "edges" else np.array(value) for name, value in arrays.items()})
    _check_shapes(graph)
    return graph


def _array(path: Path, table: dict[str, Any], name: str, begin: int, size: int) -> NDArray[Any]:
    try:
        dtype, shape, (start, stop) = _DTYPES[table[name]["dtype"]], table[name]["shape"], table[name]["data_offsets"]
        count = int(np.prod([int(n) for n in shape], dtype=np.int64))
    except (LookupError, TypeError, ValueError) as error:
        raise InputError(f"field {name!r} is missing, or not the table entry of an array") from error
    if count * 4 != stop - start or not 0 <= start <= stop <= size - begin:
        raise InputError(f"field {name!r} of shape {shape} does not lie inside the file: it is cut off or damaged")
    if not count:
        return np.zeros(shape, dtype)
    return np.memmap(path, dtype, "r", begin + start, tuple(shape))


def _plain(graph: Graph) -> dict[str, Any]:
    """What is no array, as JSON holds it."""
    return {
        "kind": KIND,
        "prompt": graph.prompt,
        "model_id": graph.model_id,
        "tokens": [[token.token_id, token.text] for token in graph.tokens],
        "dictionaries": [dataclasses.asdict(each) for each in graph.dictionaries],
        "n_layers": graph.n_layers,
        "targets": [dataclasses.asdict(each) for each in graph.targets],
        "n_active": graph.n_active,
        "provenance": dataclasses.asdict(graph.provenance),
        "settings": dict(graph.settings),
        "warnings": list(graph.warnings),
    }


def _graph(said: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> Graph:
    field = ""
    try:
        made: dict[str, Any] = {}
        for field in ("prompt", "model_id", "n_layers", "n_active", "settings"):
            made[field] = said[field]
        field = "tokens"
        made[field] = tuple(GraphToken(int(token), str(text)) for token, text in said[field])
        field = "dictionaries"
        made[field] = tuple(DictionaryInfo(**each) for each in said[field])
        field = "targets"
        made[field] = tuple(GraphTarget(**each) for each in said[field])
        field = "provenance"
        made[field] = Provenance(**said[field])
        field = "warnings"
        made[field] = tuple(map(str, said[field]))
    except (LookupError, TypeError, ValueError) as error:
        raise InputError(f"field {field!r} is missing, or not what gemlens writes there") from error
    return Graph(**made | arrays)


def _check_shapes(graph: Graph) -> None:
    n, m, t, tokens = len(graph.features), len(graph.errors), len(graph.targets), len(graph.tokens)
    wanted = {
        "features": (n, 3),
        "activations": (n,),
        "errors": (m, 2),
        "target_values": (t,),
        "biases": (n + t,),
        "pre_activations": (n,),
        "edges": (n + t, n + m + tokens),
    }
    for name, shape in wanted.items():
        found = getattr(graph, name).shape
        if found != shape:
            raise InputError(f"field {name!r} is of shape {list(found)}, not {list(shape)} as the other fields say")
