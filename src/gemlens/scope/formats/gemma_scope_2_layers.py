"""Gemma Scope 2: cross-layer transcoders and crosscoders, one file a layer.

    clt/width_262k_l0_big_affine/params_layer_{i}.safetensors                   one for every layer of the model
    crosscoder/layer_7_13_17_22_width_262k_l0_medium/params_layer_{i}.safetensors    one for each layer of the name

    w_enc [d, F_i]  w_dec [F_i, layers, d]  b_enc [F_i]  b_dec [d]  threshold [F_i]
    affine_skip_connection [d, d] (optional)

The features of file i read layer i; a CLT that gemlens writes lists its hook points in ``config.json``, since it may be
of some layers only. In a CLT only what they write to layers >= i means anything: the rest of ``w_dec`` is not read into
memory, which halves it. In a crosscoder they write all layers.

Config against tensors: the width in names and configs is a round total (a '262k' CLT of 26 layers has 26 x 10,080),
so the tensors are right. The number of files has to be the number of layers in ``w_dec``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from gemlens.errors import NotFoundError, WeightsError
from gemlens.scope.folder import Folder, LocalFolder, read_config
from gemlens.scope.formats.gemma_scope_2 import LAYOUT, check_config, check_skip
from gemlens.scope.formats.int8 import is_quantized, read_weights
from gemlens.scope.formats.layout import Target, check_layers
from gemlens.scope.multilayer import Layer, MultiLayer
from gemlens.scope.names import model_name
from gemlens.scope.weights import open_safetensors
from gemlens.sites import Site, parse_hook_point

__all__ = ["names_crosscoder", "read_layers", "sites_of"]

_LAYERS = re.compile(r"(?:^|/)layer_([0-9]{1,6}(?:_[0-9]{1,6})+)_width_[^/]*$")


def names_crosscoder(path: str) -> bool:
    """Whether the last folder of a path names several layers."""
    return _LAYERS.search(path) is not None


def read_layers(folder: Folder, to: Target) -> MultiLayer:
    """The CLT or crosscoder of a folder: a crosscoder if the folder's name lists its layers."""
    path = folder.find("config.json")
    config = check_config(read_config(path), str(path)) if path else {}
    count = _count(folder)
    reads, writes = sites_of(folder.said, count, config)
    if len(reads) != count or len(writes) != count or sorted(set(reads)) != reads:
        named = "_".join(str(site.layer) for site in min(reads, writes, key=len))
        raise WeightsError(
            f"{folder.path or folder.release} says it is of the layers {named}, its tensors are of {count} layers"
        )
    quantized = is_quantized(config, str(path))
    layers = [
        _layer(folder, index, count, 0 if reads == writes else index, to, quantized=quantized) for index in range(count)
    ]
    # A repository is not mixed by accident, and asking it costs.
    if isinstance(folder, LocalFolder) and folder.find(f"params_layer_{count}.safetensors"):
        raise WeightsError(
            f"{folder.path or folder.release} has params_layer_{count}.safetensors, its tensors are of {count} layers; "
            "files of two dictionaries are mixed"
        )
    check_layers(folder, layers)
    check_skip(config, folder, has_skip=all(layer.skip is not None for layer in layers))
    width = sum(layer.encoder.width for layer in layers)
    return MultiLayer(layers, reads=reads, writes=writes, info=folder.info(reads[0], width, model_name(config)))


def sites_of(path: str, count: int, config: Mapping[str, Any]) -> tuple[list[Site], list[Site]]:
    """What a dictionary of ``count`` layers in such a folder, with such a config, reads and writes."""
    if crosses := _LAYERS.search(path):
        numbers = [int(number) for number in crosses[1].split("_")]
        return ([Site(number, "resid_post") for number in numbers],) * 2
    return (
        _stated(config.get("hf_hook_point_in"), "mlp_in", count),
        _stated(config.get("hf_hook_point_out"), "mlp_out", count),
    )


def _stated(points: Any, name: str, count: int) -> list[Site]:
    """A layer each, as a config lists them; every layer from 0 on where it does not."""
    if not isinstance(points, list):
        return [Site(number, name) for number in range(count)]
    return [parse_hook_point(str(point)) for point in points]


def _count(folder: Folder) -> int:
    """Layers that the decoder of the first file writes."""
    file = open_safetensors(folder.need("params_layer_0.safetensors"))
    file.require({"w_dec"})
    shape = file.tensors["w_dec"].shape
    if len(shape) != 3 or not shape[1]:
        raise WeightsError(
            f"{file.path}: w_dec has shape {list(shape)}, expected [features, layers, d_out]; "
            "the file is not of a CLT or crosscoder"
        )
    return shape[1]


def _layer(folder: Folder, index: int, count: int, first: int, to: Target, *, quantized: bool) -> Layer:
    try:
        path = folder.need(f"params_layer_{index}.safetensors")
        file = open_safetensors(path)
        weights = read_weights(file, LAYOUT, to, quantized=quantized, outputs=count, first=first)
    except NotFoundError as error:
        raise WeightsError(
            f"{folder.path or folder.release} is of {count} layers and lacks params_layer_{index}.safetensors; "
            "download it again"
        ) from error
    small = weights.small
    return Layer(
        weights.encoder,
        weights.decoder,
        b_enc=small["b_enc"],
        threshold=small["threshold"],
        b_dec=small["b_dec"],
        skip=small.get("skip"),
        first=first,
    )
