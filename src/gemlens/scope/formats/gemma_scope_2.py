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

from typing import Any

from gemlens.errors import WeightsError
from gemlens.scope.folder import Folder, read_config
from gemlens.scope.formats.int8 import is_quantized, read_weights
from gemlens.scope.formats.layout import Layout, Target
from gemlens.scope.names import model_name, sites
from gemlens.scope.sae import SAE
from gemlens.scope.weights import open_safetensors

__all__ = ["LAYOUT", "check_config", "check_skip", "read_sae"]

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


def read_sae(folder: Folder, to: Target) -> SAE:
    """The SAE or transcoder of a folder."""
    file = open_safetensors(folder.need("params.safetensors"))
    path = folder.find("config.json")
    config = check_config(read_config(path), str(path)) if path else {}
    reads, writes = sites(config, folder)
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
