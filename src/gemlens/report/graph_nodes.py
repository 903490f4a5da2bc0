"""A node of a graph file: from JSON and to JSON.

Schema 1 pairs layer and feature into one number, as Cantor did: ``(l + f)(l + f + 1) / 2 + f``. Files without a schema
version (v0) hold ``layer * 100000 + feature``. What a node says beyond our own words stays in ``extra``, also where it
says the same otherwise: writing gives back what was read.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

from gemlens.errors import InputError
from gemlens.records.circuit import CircuitNode, Kind

__all__ = ["check_number", "pair", "read_node", "unpair", "write_node"]

_V0 = 100_000
_TOKEN = re.compile(r"E_(\d+)_\d+")
_NAMED = re.compile(r"(\d+)_(\d+)_(\d+)")
_LARGEST = 1 << 62


def pair(layer: int, feature: int) -> int:
    """The Cantor number of two non-negative whole numbers."""
    return (layer + feature) * (layer + feature + 1) // 2 + feature


def unpair(number: int) -> tuple[int, int]:
    """Layer and feature of a Cantor number; exact for numbers of any size."""
    diagonal = (math.isqrt(8 * number + 1) - 1) // 2
    feature = number - diagonal * (diagonal + 1) // 2
    return diagonal - feature, feature


def read_node(raw: Mapping[str, Any], place: str, *, schema: int) -> CircuitNode:
    """A node from its JSON object.

    Args:
        place: what it is called in errors, e.g. ``nodes[3]``.
        schema: 1, or 0 for features numbered as before there was a version.

    Raises:
        InputError: naming the field that is missing or not what it has to be.
    """
    for name in ("node_id", "feature_type", "layer", "ctx_idx"):
        if name not in raw:
            raise InputError(f"{place} has no {name!r}")
    kind = _kind(_text(raw, "feature_type", place))
    layer = _layer(raw, place)
    position = check_number(raw["ctx_idx"], f"{place}.ctx_idx", whole=True)
    node = CircuitNode(
        id=_text(raw, "node_id", place),
        kind=kind,
        feature_type=raw["feature_type"],
        layer=layer,
        position=int(position or 0),
        feature=_feature(raw, kind, layer, place, schema),
        label=_text(raw, "clerp", place) if raw.get("clerp") is not None else "",
        activation=check_number(raw.get("activation"), f"{place}.activation"),
        influence=None if kind == "target" else check_number(raw.get("influence"), f"{place}.influence"),
        # 0 is what is written where there is none: of differences, directions and features.
        probability=check_number(raw.get("token_prob"), f"{place}.token_prob") or None if kind == "target" else None,
        first_target=raw.get("is_target_logit") is True,
    )
    written = write_node(node)
    extra = {name: value for name, value in raw.items() if not _same(written.get(name, ...), value)}
    if schema == 0 and kind == "feature":
        extra.pop("feature", None)  # written as schema 1 has it
    return dataclasses.replace(node, extra=extra)


def write_node(node: CircuitNode) -> dict[str, Any]:
    """The JSON object of a node, in the order of fields that other tools write."""
    known: dict[str, Any] = {
        "node_id": node.id,
        "feature": _number(node),
        "layer": "E" if node.layer is None else str(node.layer),
        "ctx_idx": node.position,
        "feature_type": node.feature_type,
        "token_prob": node.probability if node.probability is not None else 0.0,
        "is_target_logit": node.first_target,
        "run_idx": 0,
        "reverse_ctx_idx": 0,
        "jsNodeId": _script_id(node),
        "clerp": node.label,
        "influence": node.influence,
        "activation": node.activation,
    }
    return known | dict(node.extra)


def check_number(value: Any, place: str, *, whole: bool = False) -> float | None:
    """``value`` as it is, if it is null or a finite number, and with ``whole`` a whole one that is not negative.

    Raises:
        InputError: naming the field.
    """
    if value is None and not whole:
        return None
    wanted = "a whole number from 0" if whole else "a number or null"
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
        raise InputError(f"{place} is {_shown(value)}, where {wanted} is expected")
    if not abs(value) <= (_LARGEST if whole else 1e300) or (whole and value < 0):
        raise InputError(f"{place} is {_shown(value)}, where {wanted} is expected")
    return value


def _kind(feature_type: str) -> Kind:
    if feature_type == "embedding":
        return "token"
    if feature_type == "logit":
        return "target"
    if "error" in feature_type:
        return "error"
    return "feature" if feature_type.endswith("transcoder") or feature_type == "lorsa" else "other"


def _layer(raw: Mapping[str, Any], place: str) -> int | None:
    """Layers are strings in files, ``E`` at tokens; numbers are understood."""
    value = raw["layer"]
    text = str(value) if isinstance(value, (str, int)) and not isinstance(value, bool) else ""
    if text.upper().startswith("E"):
        return None
    if not re.fullmatch(r"[0-9]{1,6}", text):
        raise InputError(f"{place}.layer is {_shown(value)}, where a layer's number or 'E' is expected")
    return int(text)


def _feature(raw: Mapping[str, Any], kind: Kind, layer: int | None, place: str, schema: int) -> int | None:
    """The number inside the dictionary; where the file's does not fit the layer, the one in the node's id."""
    if kind == "error":
        return None
    if kind == "token":
        named = _TOKEN.fullmatch(raw["node_id"])
        return int(named[1]) if named else None
    if raw.get("feature") is None:
        raise InputError(f"{place} has no 'feature'")
    value = raw["feature"]
    if kind == "other" and value == -1:
        return None
    number = int(check_number(value, f"{place}.feature", whole=True) or 0)
    if kind == "target" or layer is None:
        return number
    if schema == 0:
        return number - layer * _V0 if layer * _V0 <= number < (layer + 1) * _V0 else number
    paired, feature = unpair(number)
    if paired == layer:
        return feature
    named = _NAMED.fullmatch(raw["node_id"])
    return int(named[2]) if named and int(named[1]) == layer else number


def _number(node: CircuitNode) -> int:
    if node.kind == "token":
        return node.position
    if node.feature is None:
        return -1
    return pair(node.layer, node.feature) if node.kind == "feature" and node.layer is not None else node.feature


def _script_id(node: CircuitNode) -> str:
    if node.kind == "error":
        return f"{node.layer}_-1-{node.position}"
    if node.kind == "token":
        return f"E_{node.feature}-{node.position}"
    return f"L_{node.feature}-{node.position}" if node.kind == "target" else f"{node.layer}_{node.feature}-0"


def _text(raw: Mapping[str, Any], name: str, place: str) -> str:
    if not isinstance(raw[name], str):
        raise InputError(f"{place}.{name} is {_shown(raw[name])}, where a string is expected")
    return raw[name]


def _same(a: Any, b: Any) -> bool:
    """Equal as JSON has it, where true is not 1."""
    return a == b and isinstance(a, bool) == isinstance(b, bool)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:39] + "…"
