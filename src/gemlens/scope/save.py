"""Write a dictionary in Gemma Scope 2's layout."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from gemlens.errors import InputError, OutputError
from gemlens.scope.activation import JumpReLU
from gemlens.scope.sae import SAE

__all__ = ["save_sae"]


def save_sae(sae: SAE, folder: Path, *, l0: float, dtype: torch.dtype = torch.bfloat16) -> None:
    """Write ``config.json`` and ``params.safetensors`` to ``folder``, both or neither.

    Args:
        l0: mean active features a token, for the config.
        dtype: of the stored tensors.

    Raises:
        InputError: a TopK dictionary, which that layout cannot hold.
        OutputError: ``folder`` exists and is not empty, or cannot be written.
    """
    from safetensors.torch import save_file

    if not isinstance(sae.activation, JumpReLU):
        raise InputError(
            f"{sae.info.id} is a {type(sae.activation).__name__} dictionary; its layout holds JumpReLU ones"
        )
    tensors = {
        "w_enc": torch.cat([block for _, block in sae.encoder.blocks()]).T,
        "w_dec": torch.cat([block for _, block in sae.decoder.blocks()]),
        "b_enc": sae.b_enc,
        "b_dec": sae.b_dec,
        "threshold": sae.threshold,
    }
    if sae.skip is not None:
        tensors["affine_skip_connection"] = sae.skip
    if folder.exists() and any(folder.iterdir()):
        raise OutputError(f"{folder} is not empty; choose another folder")
    work = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        work.mkdir(parents=True)
        params = work / "params.safetensors"
        save_file({name: tensor.to(dtype).contiguous() for name, tensor in tensors.items()}, params)
        params.chmod(0o644)  # save_file leaves it to its owner alone
        (work / "config.json").write_text(json.dumps(_config(sae, l0), indent=2) + "\n", encoding="utf-8")
        work.replace(folder)
    except OSError as error:
        raise OutputError(f"cannot write {folder} ({error.strerror or error}); free space or choose another") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _config(sae: SAE, l0: float) -> dict[str, Any]:
    return {
        "hf_hook_point_in": sae.reads.hf_hook_point,
        "hf_hook_point_out": sae.writes.hf_hook_point,
        "width": sae.width,
        "model_name": sae.info.model_name,
        "architecture": "jump_relu",
        "l0": round(l0),
        "affine_connection": sae.skip is not None,
        "type": "transcoder" if sae.is_transcoder else "sae",
    }
