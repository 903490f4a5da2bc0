"""Gemma Scope 2: cross-layer transcoders and crosscoders, one file a layer.

    clt/width_262k_l0_big_affine/params_layer_{i}.safetensors                   one for every layer of the model
    crosscoder/layer_7_13_17_22_width_262k_l0_medium/params_layer_{i}.safetensors    one for each layer of the name

    w_enc [d, F_i]  w_dec [F_i, layers, d]  b_enc [F_i]  b_dec [d]  threshold [F_i]
    affine_skip_connection [d, d] (optional)

The features of file i read layer i; a CLT of some layers only, as gemlens trains them, lists its hook points in
``config.json``. In a CLT only what they write to layers >= i means anything: the rest of
``w_dec`` is not read into memory, which halves it. In a crosscoder they write all layers.

Config against tensors: the width in names and configs is a round total (a '262k' CLT of 26 layers has 26 x 10,080),
so the tensors are right. The number of files has to be the number of layers in ``w_dec``.
"""

from __future__ import annotations

import re
from typing import Any

from gemlens.errors import NotFoundError, WeightsError
from gemlens.scope.folder import Folder, LocalFolder, read_config
from gemlens.scope.formats.gemma_scope_2 import LAYOUT, check_config, check_skip, model_name
from gemlens.scope.formats.layout import Target, check_layers, read
from gemlens.scope.multilayer import Layer, MultiLayer
from gemlens.scope.rows import DenseRows
from gemlens.scope.weights import open_safetensors
from gemlens.sites import Site, parse_hook_point

__all__ = ["names_crosscoder", "read_layers"]

_LAYERS = re.compile(r"(?:^|/)layer_([0-9]{1,6}(?:_[0-9]{1,6})+)_width_[^/]*$")


def names_crosscoder(path: str) -> bool:
    """Whether the last folder of a path names several layers."""
    return _LAYERS.search(path) is not None


def read_layers(folder: Folder, to: Target) -> MultiLayer:
    """The CLT or crosscoder of a folder: a crosscoder if the folder's name lists its layers."""
    crosses = _LAYERS.search(folder.said)
    path = folder.find("config.json")
    config = check_config(read_config(path), str(path)) if path else {}
    count = _count(folder)
    if crosses:
        numbers = [int(number) for number in crosses[1].split("_")]
        reads = writes = [Site(number, "resid_post") for number in numbers]
        if len(numbers) != count or sorted(set(numbers)) != numbers:
            raise WeightsError(
                f"{folder.path or folder.release} names the layers {crosses[1]}, its tensors are of {count} layers"
            )
    else:
        reads, writes = (
            _sites(config.get(f"hf_hook_point_{side}"), name, count, folder)
            for side, name in (("in", "mlp_in"), ("out", "mlp_out"))
        )
    layers = [_layer(folder, index, count, 0 if crosses else index, to) for index in range(count)]
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


def _sites(stated: Any, name: str, count: int, folder: Folder) -> list[Site]:
    """A layer each, as the config lists them; every layer from 0 on where it does not."""
    if not isinstance(stated, list):
        return [Site(number, name) for number in range(count)]
    if len(stated) != count:
        raise WeightsError(
            f"{folder.path or folder.release} lists {len(stated)} hook points, its tensors are of {count} layers"
        )
    return [parse_hook_point(str(point)) for point in stated]


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


def _layer(folder: Folder, index: int, count: int, first: int, to: Target) -> Layer:
    try:
        path = folder.need(f"params_layer_{index}.safetensors")
        tensors = read(open_safetensors(path), LAYOUT, to, outputs=count, first=first)
    except NotFoundError as error:
        raise WeightsError(
            f"{folder.path or folder.release} is of {count} layers and lacks params_layer_{index}.safetensors; "
            "download it again"
        ) from error
    return Layer(
        DenseRows(tensors["encoder"]),
        DenseRows(tensors["decoder"].flatten(0, 1)),
        b_enc=tensors["b_enc"],
        threshold=tensors["threshold"],
        b_dec=tensors["b_dec"],
        skip=tensors.get("skip"),
        first=first,
    )
