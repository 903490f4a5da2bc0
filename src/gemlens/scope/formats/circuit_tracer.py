"""circuit-tracer's folders: transcoders of one layer each, or a CLT.

    config.yaml               model_name, model_kind, feature_input_hook, feature_output_hook
    layer_{i}.safetensors     transcoder of layer i (model_kind: transcoder_set):
                              W_enc [F, d]  W_dec [F, d]  b_enc [F]  b_dec [d]
                              activation_function.threshold or threshold (JumpReLU; else ReLU), W_skip [d_out, d_in]
    W_enc_{i}.safetensors     layer i of a CLT (model_kind: cross_layer_transcoder):
                              W_enc_{i} [F, d]  b_enc_{i} [F]  b_dec_{i} [d]  threshold_{i} [F] (JumpReLU)
                              W_skip_{i} [d_in, d_out] (optional)
    W_dec_{i}.safetensors     W_dec_{i} [F, layers - i, d], what layer i writes to layers i, i + 1, …

A skip is applied as ``x @ W_skip.T`` in the first and as ``x @ W_skip`` in the second: so circuit-tracer does.
Hooks are TransformerLens' names inside a block: ``hook_resid_mid`` is what most CLTs read, ``mlp.hook_in`` and
``ln2.hook_normalized`` what Gemma Scope's transcoders do.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from gemlens.errors import InputError, NotFoundError, WeightsError
from gemlens.scope.folder import Folder, LocalFolder, read_config
from gemlens.scope.formats.hooks import site_of_hook
from gemlens.scope.formats.layout import Layout, Target, read
from gemlens.scope.multilayer import Layer, MultiLayer
from gemlens.scope.rows import DenseRows
from gemlens.scope.sae import SAE
from gemlens.scope.weights import TensorFile, check_shapes, open_safetensors
from gemlens.sites import Site

__all__ = ["LAYER_ID", "read_clt", "read_transcoder"]

LAYER_ID = re.compile(r"layer_(0|[1-9][0-9]{0,5})")
_TRANSCODER = Layout(
    "a circuit-tracer",
    {"encoder": "W_enc", "decoder": "W_dec", "b_enc": "b_enc", "b_dec": "b_dec", "skip": "W_skip"},
    transposed=frozenset({"skip"}),
)
_THRESHOLDS = ("activation_function.threshold", "threshold")
_CLT = {"encoder": "W_enc", "b_enc": "b_enc", "b_dec": "b_dec", "threshold": "threshold", "skip": "W_skip"}


def read_transcoder(folder: Folder, to: Target) -> SAE:
    """The transcoder of one layer; the folder's path ends in ``layer_{i}``."""
    name = folder.path.rpartition("/")[2].removesuffix(".safetensors")
    file = open_safetensors(folder.need(f"{name}.safetensors"))
    config = _config(folder, "transcoder_set")
    layer = int(name.removeprefix("layer_"))
    reads, writes = (_site(config, key, layer) for key in ("feature_input_hook", "feature_output_hook"))
    tensors = read(file, _TRANSCODER, to)
    width = len(tensors["b_enc"])
    return SAE(
        DenseRows(tensors["encoder"]),
        DenseRows(tensors["decoder"]),
        b_enc=tensors["b_enc"],
        b_dec=tensors["b_dec"],
        threshold=_threshold(file, width, to),
        skip=tensors.get("skip"),
        reads=reads,
        writes=writes,
        info=folder.info(reads, width, _model_name(config)),
    )


def read_clt(folder: Folder, to: Target) -> MultiLayer:
    """The CLT of a folder."""
    config = _config(folder, "cross_layer_transcoder")
    count = _count(folder)
    reads, writes = (
        [_site(config, key, layer) for layer in range(count)] for key in ("feature_input_hook", "feature_output_hook")
    )
    layers = [_layer(folder, index, count, to) for index in range(count)]
    # A repository is not mixed by accident, and asking it costs.
    if isinstance(folder, LocalFolder) and folder.find(f"W_enc_{count}.safetensors"):
        raise WeightsError(
            f"{folder.path or folder.release} has W_enc_{count}.safetensors, its tensors are of {count} layers; "
            "files of two dictionaries are mixed"
        )
    skips = {layer.skip is None for layer in layers}
    if len(skips) > 1:
        raise WeightsError(f"{folder.path or folder.release}: some layers have a W_skip and some lack it")
    width = sum(layer.encoder.width for layer in layers)
    return MultiLayer(layers, reads=reads, writes=writes, info=folder.info(reads[0], width, _model_name(config)))


def _parse(text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    # What its constructors raise on scalars that are not what their tags say.
    except (yaml.YAMLError, LookupError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(str(error)) from error


def _config(folder: Folder, expected: str) -> dict[str, Any]:
    path = folder.need("config.yaml")
    config = read_config(path, _parse)
    kind = config.get("model_kind", expected)
    if kind != expected:
        shown = repr(kind[:40]) if isinstance(kind, str) else "no name"
        raise WeightsError(f"{path} says model_kind {shown}, the files beside it are of a {expected}")
    if links := config.get("transcoders"):
        first = links[0] if isinstance(links, list) else None
        shown = first[:200] if isinstance(first, str) else "nothing readable"
        raise InputError(
            f"{path} only points to dictionaries of other repositories ({shown}, …); load those by their own names"
        )
    return config


def _site(config: dict[str, Any], key: str, layer: int) -> Site:
    hook = config.get(key)
    if not isinstance(hook, str):
        raise NotFoundError(f"config.yaml has no {key} that says what the dictionary reads or writes")
    if "{layer}" in hook:  # some write it in full
        return site_of_hook(hook.replace("{layer}", str(layer)))
    return site_of_hook(f"blocks.{layer}.{hook}")


def _model_name(config: dict[str, Any]) -> str | None:
    name = config.get("model_name")
    return name if isinstance(name, str) else None


def _threshold(file: TensorFile, width: int, to: Target) -> Tensor:
    """[F], of a threshold that may be one for all; ReLU is threshold 0."""
    name = next((name for name in _THRESHOLDS if name in file.tensors), None)
    if name is None:
        return torch.zeros(width, dtype=to.dtype, device=to.device)
    if file.tensors[name].shape not in {(), (1,), (1, width)}:
        check_shapes(file, {name: (width,)}, "a circuit-tracer")
    return file.read(name, to.dtype).to(to.device).flatten().expand(width).contiguous()


def _count(folder: Folder) -> int:
    """Layers that the decoder of the first layer writes."""
    file = _open(folder, "W_dec_0.safetensors")
    file.require({"W_dec_0"})
    shape = file.tensors["W_dec_0"].shape
    if len(shape) != 3 or 0 in shape:
        raise WeightsError(
            f"{file.path}: W_dec_0 has shape {list(shape)}, expected [features, layers, d_out]; "
            "the file is not of a CLT"
        )
    return shape[1]


def _layer(folder: Folder, index: int, count: int, to: Target) -> Layer:
    names = {ours: f"{theirs}_{index}" for ours, theirs in _CLT.items()}
    optional = frozenset({"threshold", "skip"})
    file = _open(folder, f"W_enc_{index}.safetensors")
    tensors = read(file, Layout("a circuit-tracer", names, optional), to)
    width, d_out = len(tensors["b_enc"]), len(tensors["b_dec"])
    decoder = _open(folder, f"W_dec_{index}.safetensors")
    decoder.require({f"W_dec_{index}"})
    check_shapes(decoder, {f"W_dec_{index}": (width, count - index, d_out)}, "a circuit-tracer")
    rows = decoder.read(f"W_dec_{index}", to.dtype).to(to.device)
    return Layer(
        DenseRows(tensors["encoder"]),
        DenseRows(rows.flatten(0, 1)),
        b_enc=tensors["b_enc"],
        threshold=tensors.get("threshold", torch.zeros_like(tensors["b_enc"])),
        b_dec=tensors["b_dec"],
        skip=tensors.get("skip"),
        first=index,
    )


def _open(folder: Folder, name: str) -> TensorFile:
    try:
        return open_safetensors(folder.need(name))
    except NotFoundError as error:
        raise WeightsError(f"{folder.path or folder.release} lacks {name}; download it again") from error
