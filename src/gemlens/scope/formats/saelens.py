"""SAELens' own saved folders, version 6 and before.

    cfg.json                   architecture, d_in, d_sae, apply_b_dec_to_input, normalize_activations, metadata
    sae_weights.safetensors    W_enc [d_in, F]  W_dec [F, d_out]  b_enc [F]  b_dec [d_out]
                               threshold [F] (jumprelu)  W_skip [d_out, d_in] (skip transcoders)

    standard   relu(pre)       jumprelu   relu(pre) * (pre > threshold)       topk   relu of the k largest pre

Options are folded into the weights, so that one formula computes all of them:

    apply_b_dec_to_input            b_enc - b_dec @ W_enc for b_enc
    rescale_acts_by_decoder_norm    W_enc |W_dec|, b_enc |W_dec| and W_dec / |W_dec|, norms by feature

Inputs that are normalised by statistics of each token, or of a data set that the folder does not hold, are refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gemlens.errors import NotFoundError, WeightsError
from gemlens.records import DictionaryInfo
from gemlens.scope.activation import Activation, JumpReLU, TopK
from gemlens.scope.folder import Folder, read_config
from gemlens.scope.formats.hooks import site_of_hook
from gemlens.scope.formats.layout import Layout, Target, read
from gemlens.scope.rows import DenseRows
from gemlens.scope.sae import SAE
from gemlens.scope.weights import open_safetensors
from gemlens.sites import Site, parse_hook_point

__all__ = ["build", "read_sae"]

_NAMES = {"encoder": "W_enc", "decoder": "W_dec", "b_enc": "b_enc", "b_dec": "b_dec"}
_TRANSPOSED = frozenset({"encoder", "skip"})
_RELU = Layout("a SAELens", _NAMES, transposed=_TRANSPOSED)
_JUMP = Layout("a SAELens", _NAMES | {"threshold": "threshold"}, transposed=_TRANSPOSED)
_SKIP = {"skip": "W_skip"}
_ARCHITECTURES = {
    "standard": _RELU,
    "topk": _RELU,
    "jumprelu": _JUMP,
    "transcoder": _RELU,
    "jumprelu_transcoder": _JUMP,
    "skip_transcoder": Layout("a SAELens", {**_RELU.names, **_SKIP}, frozenset(), _TRANSPOSED),
    "jumprelu_skip_transcoder": Layout("a SAELens", {**_JUMP.names, **_SKIP}, frozenset(), _TRANSPOSED),
}


def read_sae(folder: Folder, to: Target) -> SAE:
    """The SAE or transcoder of a folder."""
    weights = folder.need("sae_weights.safetensors")
    path = folder.need("cfg.json")
    config = read_config(path)
    return build(config, str(path), lambda layout: read(open_safetensors(weights), layout, to), folder.info)


def build(
    config: dict[str, Any],
    where: str,
    tensors_of: Callable[[Layout], dict[str, Tensor]],
    info: Callable[[Site, int, str | None], DictionaryInfo],
) -> SAE:
    """The SAE or transcoder that a config of SAELens describes.

    Args:
        where: the config, for messages.
        tensors_of: the tensors of a layout by our names; they are changed in place.
        info: how users name it, by site, width and model.
    """
    config = _defaults(config)
    layout, activation = _activation(config, where)
    _refuse_what_cannot_be_honoured(config, where)
    reads, writes = _sites(config, where)
    tensors = tensors_of(layout)
    width, d_in = tensors["encoder"].shape
    for name, size in (("d_in", d_in), ("d_sae", width), ("d_out", len(tensors["b_dec"]))):
        if config.get(name, size) != size:
            raise WeightsError(f"{where} says {name} {str(config[name])[:40]!r}, the tensors beside it have {size}")
    if isinstance(activation, TopK) and activation.k > width:
        raise WeightsError(f"{where} says k {activation.k}, the tensors beside it have {width} features")
    if config["apply_b_dec_to_input"]:
        if len(tensors["b_dec"]) != d_in:
            raise WeightsError(f"{where}: apply_b_dec_to_input needs b_dec of the input's size {d_in}")
        tensors["b_enc"] -= tensors["encoder"] @ tensors["b_dec"]
    if config["rescale_acts_by_decoder_norm"]:
        _fold_norms(tensors)
    return SAE(
        DenseRows(tensors["encoder"]),
        DenseRows(tensors["decoder"]),
        b_enc=tensors["b_enc"],
        b_dec=tensors["b_dec"],
        threshold=tensors.get("threshold", torch.zeros_like(tensors["b_enc"])),
        skip=tensors.get("skip"),
        reads=reads,
        writes=writes,
        info=info(reads, width, _text(config, "model_name")),
        activation=activation,
    )


def _defaults(config: dict[str, Any]) -> dict[str, Any]:
    """What SAELens takes for granted, and its older names."""
    metadata = config.get("metadata")
    inner = metadata if isinstance(metadata, dict) else {}
    outer = {"hook_name": config.get("hook_point"), "activation_fn": config.get("activation_fn_str", "relu")}
    settings = {"architecture": "standard", "apply_b_dec_to_input": True, "rescale_acts_by_decoder_norm": False}
    return settings | outer | config | inner


def _activation(config: dict[str, Any], where: str) -> tuple[Layout, Activation]:
    architecture, function = config["architecture"], config["activation_fn"]
    arguments = config.get("activation_fn_kwargs")
    if architecture == "standard" and function == "topk":  # before version 6
        architecture = "topk"
        config = config | (arguments if isinstance(arguments, dict) else {})
    if not isinstance(architecture, str) or architecture not in _ARCHITECTURES:
        raise WeightsError(
            f"{where} describes a {str(architecture)[:40]!r} dictionary; gemlens reads {', '.join(_ARCHITECTURES)}"
        )
    layout = _ARCHITECTURES[architecture]
    if architecture == "topk":
        k = config.get("k", 100)
        if type(k) is not int or k < 1:
            raise WeightsError(f"{where} says k {str(k)[:40]!r}, which is not a number of features")
        return layout, TopK(k)
    if function != "relu":
        raise WeightsError(f"{where} says activation_fn {str(function)[:40]!r}; gemlens reads relu and topk")
    return layout, JumpReLU()


def _refuse_what_cannot_be_honoured(config: dict[str, Any], where: str) -> None:
    kept = {
        "normalize_activations": ("none", None, False),
        "reshape_activations": ("none", "hook_z", None),
        "finetuning_scaling_factor": (False, None),
        "hook_head_index": (None,),
        "apply_b_dec_to_input": (True, False),
        "rescale_acts_by_decoder_norm": (True, False),
    }
    for name, honoured in kept.items():
        value = config.get(name)
        # By identity for bools: 1 == True, and a config with numbers there is damaged.
        if name in config and not any(value is each or (isinstance(value, str) and value == each) for each in honoured):
            choices = " or ".join(str(each) for each in honoured)
            raise WeightsError(
                f"{where} says {name} {str(value)[:40]!r}, which gemlens cannot apply; it reads {choices}"
            )
    if config["rescale_acts_by_decoder_norm"] and config["architecture"] != "topk":
        raise WeightsError(f"{where} says rescale_acts_by_decoder_norm, which only topk dictionaries have")


def _sites(config: dict[str, Any], where: str) -> tuple[Site, Site]:
    reads = _site(config, "")
    if reads is None:
        raise NotFoundError(f"{where} has no hook_name that says what the dictionary reads")
    return reads, _site(config, "_out") or reads


def _site(config: dict[str, Any], suffix: str) -> Site | None:
    # Hugging Face's name first: SAELens' names for Gemma Scope 2 are not always TransformerLens'.
    if point := _text(config, f"hf_hook_name{suffix}"):
        return parse_hook_point(point)
    name = _text(config, f"hook_name{suffix}")
    return site_of_hook(name) if name else None


def _text(config: dict[str, Any], name: str) -> str | None:
    value = config.get(name)
    return value if isinstance(value, str) else None


def _fold_norms(tensors: dict[str, Tensor]) -> None:
    norms = torch.linalg.vector_norm(tensors["decoder"], dim=1)
    tensors["encoder"].mul_(norms[:, None])
    tensors["b_enc"].mul_(norms)
    # A feature without a decoder never fires then: its pre-activation is 0.
    tensors["decoder"].div_(norms.masked_fill(norms == 0, 1)[:, None])
