"""Write a dictionary in Gemma Scope 2's layout (``scope.formats``)."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gemlens.errors import InputError, OutputError
from gemlens.scope.activation import JumpReLU
from gemlens.scope.multilayer import Layer, MultiLayer
from gemlens.scope.rows import Rows
from gemlens.scope.sae import SAE

__all__ = ["save_clt", "save_sae"]


def save_sae(sae: SAE, folder: Path, *, l0: float, dtype: torch.dtype = torch.bfloat16) -> None:
    """Write ``config.json`` and ``params.safetensors`` to ``folder``, both or neither.

    Args:
        l0: mean active features a token, for the config.
        dtype: of the stored tensors.

    Raises:
        InputError: a TopK dictionary, which that layout cannot hold.
        OutputError: ``folder`` exists and is not empty, or cannot be written.
    """
    if not isinstance(sae.activation, JumpReLU):
        raise InputError(
            f"{sae.info.id} is a {type(sae.activation).__name__} dictionary; its layout holds JumpReLU ones"
        )
    config = {
        "hf_hook_point_in": sae.reads.hf_hook_point,
        "hf_hook_point_out": sae.writes.hf_hook_point,
        "affine_connection": sae.skip is not None,
        "type": "transcoder" if sae.is_transcoder else "sae",
    }
    _write(folder, {"params": _tensors(sae, _matrix(sae.decoder))}, config | _about(sae, sae.width, l0), dtype)


def save_clt(clt: MultiLayer, folder: Path, *, l0: float, dtype: torch.dtype = torch.bfloat16) -> None:
    """Write ``config.json`` and ``params_layer_{i}.safetensors`` of a CLT, all or none of them.

    Hook points in the config are lists, one a layer, which Gemma Scope 2's own lack: theirs are of every layer of
    the model.

    Args:
        l0: mean active features a token and layer, for the config.
        dtype: of the stored tensors.

    Raises:
        InputError: a crosscoder.
        OutputError: ``folder`` exists and is not empty, or cannot be written.
    """
    if clt.reads == clt.writes:
        raise InputError(f"{clt.info.id} is a crosscoder; save_clt writes cross-layer transcoders")
    files = {}
    for index in range(len(clt)):
        layer = clt.layer(clt.reads[index])
        rows = _matrix(layer.decoder).reshape(layer.encoder.width, layer.outputs, -1)
        # Layers before its own a feature does not write.
        files[f"params_layer_{index}"] = _tensors(layer, F.pad(rows, (0, 0, layer.first, 0)))
    config = {
        "hf_hook_point_in": [site.hf_hook_point for site in clt.reads],
        "hf_hook_point_out": [site.hf_hook_point for site in clt.writes],
        "affine_connection": all("affine_skip_connection" in tensors for tensors in files.values()),
        "type": "clt",
    }
    _write(folder, files, config | _about(clt, sum(len(each["b_enc"]) for each in files.values()), l0), dtype)


def _tensors(part: SAE | Layer, w_dec: Tensor) -> dict[str, Tensor]:
    named = {
        "w_enc": _matrix(part.encoder).T,
        "w_dec": w_dec,
        "b_enc": part.b_enc,
        "b_dec": part.b_dec,
        "threshold": part.threshold,
    }
    return named if part.skip is None else named | {"affine_skip_connection": part.skip}


def _matrix(rows: Rows) -> Tensor:
    return torch.cat([block for _, block in rows.blocks()])


def _about(dictionary: SAE | MultiLayer, width: int, l0: float) -> dict[str, Any]:
    name = dictionary.info.model_name
    return {"width": width, "model_name": name, "architecture": "jump_relu", "l0": round(l0)}


def _write(folder: Path, files: Mapping[str, Mapping[str, Tensor]], config: dict[str, Any], dtype: torch.dtype) -> None:
    """Tensors by file, and the config, into a new folder, whole or not at all."""
    from safetensors.torch import save_file

    if folder.exists() and any(folder.iterdir()):
        raise OutputError(f"{folder} is not empty; choose another folder")
    work = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        work.mkdir(parents=True)
        for name, tensors in files.items():
            file = work / f"{name}.safetensors"
            save_file({name: tensor.to(dtype).contiguous() for name, tensor in tensors.items()}, file)
            file.chmod(0o644)  # save_file leaves it to its owner alone
        (work / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        work.replace(folder)
    except OSError as error:
        raise OutputError(f"cannot write {folder} ({error.strerror or error}); free space or choose another") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
