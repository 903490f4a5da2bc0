"""Gemma Scope 2: SAEs and transcoders over one layer.

    config.json           hook points, width, model_name, architecture, affine_connection; some folders have none
    params.safetensors    w_enc [d_in, F]  w_dec [F, d_out]  b_enc [F]  b_dec [d_out]  threshold [F]
                          affine_skip_connection [d_in, d_out] (optional)
    or with ``quantized: int8`` in config.json, as ``int8`` has it

Config against tensors: the tensors are what was trained, so a skip that is there is applied whatever the config says.
What would have to be guessed is refused: another width, another architecture, a skip that is announced and missing.
Config against path: the config's hook points win; the path stands in where there are none.
"""

from __future__ import annotations

import re
from typing import Any

from gemlens.errors import NotFoundError, WeightsError
from gemlens.scope.folder import Folder, read_config
from gemlens.scope.formats.int8 import is_quantized, read_weights
from gemlens.scope.formats.layout import Layout, Target
from gemlens.scope.sae import SAE
from gemlens.scope.weights import open_safetensors
from gemlens.sites import Site, parse_hook_point

__all__ = ["LAYOUT", "check_config", "check_skip", "model_name", "read_sae"]

LAYOUT = Layout(
    "a Gemma Scope 2",
    {
        "encoder": "w_enc",
        "decoder": "w_dec",
        "b_enc": "b_enc",
        "b_dec": "b_dec",
        "threshold": "threshold",
        "skip": "affine_skip_connection",
    },
    transposed=frozenset({"encoder"}),
)
# The folder that dictionaries of a kind lie in -> where they read and write.
_CATEGORIES = {
    "resid_post": ("resid_post", "resid_post"),
    "attn_out": ("attn_out", "attn_out"),
    "mlp_out": ("mlp_out", "mlp_out"),
    "transcoder": ("mlp_in", "mlp_out"),
}
_CATEGORY = re.compile(rf"(?:^|/)({'|'.join(_CATEGORIES)})(?:_all)?/(?:[^/]*_)?layer_([0-9]{{1,6}})(?![0-9])")


def read_sae(folder: Folder, to: Target) -> SAE:
    """The SAE or transcoder of a folder."""
    file = open_safetensors(folder.need("params.safetensors"))
    path = folder.find("config.json")
    config = check_config(read_config(path), str(path)) if path else {}
    reads, writes = _sites(config, folder)
    weights = read_weights(file, LAYOUT, to, quantized=is_quantized(config, str(path)))
    small, width = weights.small, weights.encoder.width
    if config.get("width", width) != width:
        raise WeightsError(
            f"{path} says width {str(config['width'])[:40]!r}, the tensors beside it have {width} features; "
            "download both again"
        )
    check_skip(config, folder, has_skip="skip" in small)
    return SAE(
        weights.encoder,
        weights.decoder,
        b_enc=small["b_enc"],
        b_dec=small["b_dec"],
        threshold=small["threshold"],
        skip=small.get("skip"),
        reads=reads,
        writes=writes,
        info=folder.info(reads, width, model_name(config)),
    )


def check_config(config: dict[str, Any], where: str) -> dict[str, Any]:
    """Refuse another architecture."""
    if (kind := config.get("architecture", "jump_relu")) != "jump_relu":
        raise WeightsError(f"{where} describes a {str(kind)[:40]!r} dictionary; gemlens reads jump_relu ones")
    return config


def check_skip(config: dict[str, Any], folder: Folder, *, has_skip: bool) -> None:
    """Refuse a dictionary that lost its skip: its reconstruction would silently be wrong."""
    announced = config.get("affine_connection", folder.path.endswith("_affine"))
    if announced and not has_skip:
        raise WeightsError(
            f"{folder.path or folder.release} should have an affine skip connection, and the tensors have none; "
            "download it again"
        )


def model_name(config: dict[str, Any]) -> str | None:
    """Some configs say gemma-v3 for gemma-3."""
    name = config.get("model_name")
    return name.replace("gemma-v3-", "gemma-3-") if isinstance(name, str) else None


def _sites(config: dict[str, Any], folder: Folder) -> tuple[Site, Site]:
    """From the config's hook points; from the path where the config is missing or names none."""
    if config.get("hf_hook_point_in") is not None:
        reads = parse_hook_point(str(config["hf_hook_point_in"]))
        return reads, parse_hook_point(str(config.get("hf_hook_point_out", config["hf_hook_point_in"])))
    # A path of several parts is believed over the folders that the release lies in.
    said = _CATEGORY.findall(folder.path if "/" in folder.path else folder.said)
    if not said:
        raise NotFoundError(
            f"{folder.path or folder.release} has no config.json that says what it reads, and its path does not; "
            f"expected CATEGORY/layer_L_…, with a category of {', '.join(_CATEGORIES)}"
        )
    category, layer = said[-1]
    read, written = _CATEGORIES[category]
    return Site(int(layer), read), Site(int(layer), written)
