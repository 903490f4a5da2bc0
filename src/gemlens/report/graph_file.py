"""Graph files: the JSON of attribution graphs as circuit-tracer writes it and Neuronpedia serves it.

Written is schema 1, with ids that no two nodes share. Read is also what came before: files without a version, and error
nodes whose ids are those of features of layer 0. Everything that a file says and this one has no word for is kept and
written again.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gemlens.errors import InputError, NotFoundError
from gemlens.records.circuit import Circuit, CircuitNode, CircuitView
from gemlens.report.graph_ids import resolve
from gemlens.report.graph_nodes import check_number, read_node, write_node
from gemlens.report.visible import escape_surrogates

__all__ = [
    "LARGEST",
    "circuit_from_dict",
    "circuit_from_json",
    "circuit_to_dict",
    "circuit_to_json",
    "read_circuit",
    "renamed",
    "view_to_dict",
    "with_view",
]

LARGEST = 1 << 30
"""Bytes of JSON that are read; packed files count as what they unpack to."""
_PART = 1 << 20


def read_circuit(path: Path, *, report: Callable[[int, int], None] = lambda _done, _total: None) -> Circuit:
    """Read a graph file, plain or packed by gzip.

    Args:
        report: called with bytes read and bytes of the file.

    Raises:
        NotFoundError: no such file.
        InputError: it is no graph file; the message names the field.
    """
    try:
        if path.is_dir():
            raise InputError(f"{path} is a folder; name a graph file in it, such as my-graph.json")
        data = _read(path, report)
    except FileNotFoundError as error:
        raise NotFoundError(
            f"there is no file {path}; name a graph file, as gemlens circuit --export json writes"
        ) from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path} is packed, and damaged ({error}); fetch it again") from error
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    try:
        return circuit_from_json(data)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def circuit_from_json(data: bytes | str) -> Circuit:
    """A circuit from the text of a graph file.

    Raises:
        InputError: naming the field that is missing or wrong.
    """
    try:
        text = data.decode("utf-8-sig") if isinstance(data, bytes) else data
        raw = json.loads(text, parse_constant=_refuse)
    except UnicodeDecodeError as error:
        raise InputError(f"not a graph file: it is not UTF-8 text (byte {error.start})") from error
    except json.JSONDecodeError as error:
        raise InputError(f"not a graph file: line {error.lineno} is not JSON ({error.msg})") from error
    except (RecursionError, ValueError) as error:
        raise InputError(f"not a graph file ({str(error)[:80]})") from error
    return circuit_from_dict(raw)


def circuit_from_dict(raw: Any) -> Circuit:
    """A circuit from the parsed JSON; raises InputError as ``circuit_from_json`` does."""
    if not isinstance(raw, dict):
        raise InputError("not a graph file: it holds no JSON object with 'metadata', 'nodes' and 'links'")
    if missing := [name for name in ("metadata", "nodes", "links") if name not in raw]:
        has = ", ".join(sorted(map(str, raw))[:6]) or "nothing"
        raise InputError(f"not a graph file: it has no {missing[0]!r}, only {has[:120]}")
    metadata = _metadata(raw["metadata"])
    schema = _schema(metadata)
    nodes = [
        read_node(_object(each, f"nodes[{i}]"), f"nodes[{i}]", schema=schema)
        for i, each in enumerate(_list(raw["nodes"], "nodes"))
    ]
    links = [_object(each, f"links[{i}]") for i, each in enumerate(_list(raw["links"], "links"))]
    weights = np.array([_weight(link, i) for i, link in enumerate(links)], dtype=np.float64)
    ends = [(_end(link, "source", i), _end(link, "target", i)) for i, link in enumerate(links)]
    named, sources, targets, warnings = resolve(nodes, ends)
    known = {"source", "target", "weight"}
    return Circuit(
        metadata={**metadata, "schema_version": 1},
        nodes=named,
        sources=sources,
        targets=targets,
        weights=weights,
        view=_view(raw.get("qParams")),
        link_extra={
            i: {name: value for name, value in link.items() if name not in known}
            for i, link in enumerate(links)
            if len(link) > len(known)
        },
        extra={name: value for name, value in raw.items() if name not in ("metadata", "nodes", "links", "qParams")},
        warnings=warnings,
    )


def circuit_to_dict(circuit: Circuit) -> dict[str, Any]:
    """The circuit as plain dicts and lists, keys in the order of the file."""
    ids = [node.id for node in circuit.nodes]
    links: list[dict[str, Any]] = [
        {"source": ids[source], "target": ids[target], "weight": weight}
        for source, target, weight in zip(
            circuit.sources.tolist(), circuit.targets.tolist(), circuit.weights.tolist(), strict=True
        )
    ]
    for index, said in circuit.link_extra.items():
        links[index].update(said)
    return {
        "metadata": {**circuit.metadata, "schema_version": 1},
        "qParams": view_to_dict(circuit.view),
        "nodes": [write_node(_plain(node)) for node in circuit.nodes],
        "links": links,
        **circuit.extra,
    }


def circuit_to_json(circuit: Circuit) -> str:
    """Return the graph file, one line a node and a link: readers of large files see where they are."""
    said = circuit_to_dict(circuit)
    fields = []
    for name, value in said.items():
        if name in ("nodes", "links"):
            rows = ",\n  ".join(map(_json, value))
            fields.append(f'"{name}": [\n  {rows}\n ]' if rows else f'"{name}": []')
        else:
            fields.append(f"{_json(name)}: {_json(value)}")
    return escape_surrogates("{\n " + ",\n ".join(fields) + "\n}\n")


def renamed(circuit: Circuit, *, slug: str | None = None, scan: str | None = None) -> Circuit:
    """The circuit under another name, and with its model called otherwise."""
    changes = {name: value for name, value in (("slug", slug), ("scan", scan)) if value is not None}
    return dataclasses.replace(circuit, metadata={**circuit.metadata, **changes})


def with_view(circuit: Circuit, said: Mapping[str, Any]) -> Circuit:
    """The circuit with parts of its view replaced, as ``qParams`` names them.

    Raises:
        InputError: naming the field that is not what it has to be.
    """
    return dataclasses.replace(circuit, view=_view({**view_to_dict(circuit.view), **said}))


def view_to_dict(view: CircuitView) -> dict[str, Any]:
    """``qParams``, as other tools read it."""
    return {
        "linkType": "both",
        "clickedId": "",
        "sg_pos": "",
        **view.extra,
        "pinnedIds": list(view.pinned),
        "supernodes": [list(group) for group in view.supernodes],
    }


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _plain(node: CircuitNode) -> CircuitNode:
    """JSON has no NaN and no infinity; null keeps the file readable and the fault visible."""
    finite = {name: getattr(node, name) for name in ("activation", "influence", "probability")}
    bad: dict[str, Any] = {name: None for name, value in finite.items() if value is not None and not np.isfinite(value)}
    return dataclasses.replace(node, **bad) if bad else node


def _read(path: Path, report: Callable[[int, int], None]) -> bytes:
    total, parts, size = path.stat().st_size, [], 0
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        stream = gzip.GzipFile(fileobj=file) if packed else file
        while part := stream.read(_PART):
            size += len(part)
            if size > LARGEST:
                raise InputError(
                    f"{path} holds more than {LARGEST >> 30} GiB of JSON; prune the graph where it was made, "
                    "with a lower node or edge threshold"
                )
            parts.append(part)
            report(file.tell(), total)
    return b"".join(parts)


def _metadata(raw: Any) -> Mapping[str, Any]:
    metadata = _object(raw, "metadata")
    if "prompt_tokens" not in metadata:
        raise InputError("metadata has no 'prompt_tokens'")
    for i, text in enumerate(_list(metadata["prompt_tokens"], "metadata.prompt_tokens")):
        if not isinstance(text, str):
            raise InputError(f"metadata.prompt_tokens[{i}] is {text!r:.40}, where a string is expected")
    for name in ("slug", "scan", "prompt"):
        if not isinstance(metadata.get(name, ""), str):
            raise InputError(f"metadata.{name} is {metadata[name]!r:.40}, where a string is expected")
    needed = {"slug": "circuit", "scan": "", "prompt": "".join(metadata["prompt_tokens"])}
    return metadata | {name: value for name, value in needed.items() if name not in metadata}


def _schema(metadata: Mapping[str, Any]) -> int:
    version = metadata.get("schema_version")
    if version in (None, 0):
        return 0
    if version != 1 or isinstance(version, bool):
        raise InputError(f"metadata.schema_version is {version!r:.40}; this gemlens reads files without one and 1")
    return 1


def _view(raw: Any) -> CircuitView:
    if raw is None:
        return CircuitView()
    view = _object(raw, "qParams")
    pinned = _strings(view.get("pinnedIds") or [], "qParams.pinnedIds")
    groups = _list(view.get("supernodes") or [], "qParams.supernodes")
    return CircuitView(
        pinned=tuple(pinned),
        supernodes=tuple(tuple(_strings(group, f"qParams.supernodes[{i}]")) for i, group in enumerate(groups)),
        extra={name: value for name, value in view.items() if name not in ("pinnedIds", "supernodes")},
    )


def _weight(link: Mapping[str, Any], index: int) -> float:
    if "weight" not in link:
        raise InputError(f"links[{index}] has no 'weight'")
    value = check_number(link["weight"], f"links[{index}].weight")
    if value is None:
        raise InputError(f"links[{index}].weight is null, where a number is expected")
    return value


def _end(link: Mapping[str, Any], name: str, index: int) -> str:
    if not isinstance(link.get(name), str):
        raise InputError(f"links[{index}].{name} is {link.get(name)!r:.40}, where a node's id is expected")
    return link[name]


def _object(value: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{place} is {value!r:.40}, where an object is expected")
    return value


def _list(value: Any, place: str) -> list[Any]:
    if not isinstance(value, list):
        raise InputError(f"{place} is {value!r:.40}, where a list is expected")
    return value


def _strings(value: Any, place: str) -> list[str]:
    for i, each in enumerate(_list(value, place)):
        if not isinstance(each, str):
            raise InputError(f"{place}[{i}] is {each!r:.40}, where a string is expected")
    return value


def _refuse(constant: str) -> None:
    raise ValueError(f"it holds {constant}, which JSON does not have")
