"""Write a dictionary in Gemma Scope 2's layout: float32, bfloat16, or int8 as ``formats.int8`` has it."""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gemlens.errors import GemlensError, InputError, OutputError
from gemlens.scope.activation import JumpReLU
from gemlens.scope.formats.gemma_scope_2 import LAYOUT
from gemlens.scope.formats.gemma_scope_2_layers import sites_of
from gemlens.scope.formats.int8 import column_scale_name, scale_name
from gemlens.scope.int8 import ENCODER_POWER, OUTPUT_POWER, Int8Rows, quantize
from gemlens.scope.multilayer import Layer, MultiLayer
from gemlens.scope.rows import DenseRows, Rows
from gemlens.scope.sae import SAE

__all__ = ["check_savable", "new_folder", "save_multilayer", "save_sae", "write_dictionary"]

_DTYPES = (torch.float32, torch.bfloat16, torch.int8)


def save_sae(sae: SAE, folder: Path, *, l0: float, dtype: torch.dtype = torch.bfloat16) -> None:
    """Write ``config.json`` and ``params.safetensors`` to ``folder``, both or neither.

    Args:
        l0: mean active features a token, for the config.
        dtype: of the stored tensors: float32, bfloat16, or int8 for the matrices and float32 for the rest.

    Raises:
        InputError: a TopK dictionary, which that layout cannot hold, or another dtype.
        OutputError: ``folder`` exists and is not empty, or cannot be written.
    """
    check_savable(sae, folder, dtype)
    with new_folder(folder) as work:
        write_dictionary(sae, work, l0=l0, dtype=dtype)


def save_multilayer(
    dictionary: MultiLayer, folder: Path, *, l0: float | None = None, dtype: torch.dtype = torch.bfloat16
) -> None:
    """Write a CLT or crosscoder, ``config.json`` and one file a layer, to ``folder``, all or nothing.

    What a CLT's features would write to earlier layers is written as zeros: the layout has room for it.

    Args:
        folder: of a crosscoder, named for its layers: ``layer_7_13_17_22_width_262k_l0_medium``.
        l0: mean active features a token, for the config.
        dtype: as for ``save_sae``.

    Raises:
        InputError: sites that the layout and the folder's name do not stand for, or another dtype.
        OutputError: ``folder`` exists and is not empty, or cannot be written.
    """
    check_savable(dictionary, folder, dtype)
    with new_folder(folder) as work:
        write_dictionary(dictionary, work, l0=l0, dtype=dtype)


def check_savable(dictionary: SAE | MultiLayer, folder: Path, dtype: torch.dtype) -> None:
    """Raise InputError for what Gemma Scope 2's layout could not say of a dictionary in this folder."""
    if dtype not in _DTYPES:
        kind = str(dtype).removeprefix("torch.")
        raise InputError(f"dictionaries are stored as float32, bfloat16 or int8, not {kind}; choose one of these")
    if isinstance(dictionary, SAE):
        if not isinstance(dictionary.activation, JumpReLU):
            kind = type(dictionary.activation).__name__
            raise InputError(f"{dictionary.info.id} is a {kind} dictionary; its layout holds JumpReLU ones")
        return
    reads, writes = sites_of(folder.absolute().as_posix(), len(dictionary), _config_of_layers(dictionary))
    if (dictionary.reads, dictionary.writes) != (tuple(reads), tuple(writes)):
        raise InputError(
            f"a folder called {folder.name} stands for a dictionary from {reads[0]} to {writes[-1]}, and "
            f"{dictionary.info.id} goes from {dictionary.reads[0]} to {dictionary.writes[-1]}; a crosscoder's folder "
            "names its layers (layer_7_13_17_22_width_…), a CLT's does not"
        )


@contextmanager
def new_folder(folder: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield an empty folder that becomes ``folder`` when the block ends well, and is gone if it does not.

    Args:
        replace: what is in ``folder``, once the new one is whole.

    Raises:
        OutputError: ``folder`` is a file, is not empty and not to be replaced, or cannot be written.
    """
    from safetensors import SafetensorError

    mark = secrets.token_hex(6)
    work, old = (folder.absolute().with_name(f".gemlens-{mark}.{kind}") for kind in ("new", "old"))
    made: list[Path] = []
    try:
        if folder.exists() and any(folder.iterdir()) and not replace:
            raise OutputError(f"{folder} is not empty; choose another folder")
        made = [path for path in folder.absolute().parents if not path.exists()]
        work.mkdir(parents=True)
        yield work
        _put(work, folder, old)
        made = []
    except GemlensError:
        raise
    except (OSError, SafetensorError) as error:  # the latter is what a full disk is to safetensors
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise OutputError(f"cannot write {folder} ({reason}); free space or choose another") from error
    finally:
        for rest in (work, old):
            shutil.rmtree(rest, ignore_errors=True)
        for path in made:  # the deepest first
            with suppress(OSError):
                path.rmdir()


def _put(work: Path, folder: Path, old: Path) -> None:
    """``work`` in the place of ``folder``; that goes to ``old``, and comes back if the place cannot be taken."""
    if folder.exists():
        folder.replace(old)
    try:
        work.replace(folder)
    except BaseException:
        if old.exists():
            old.replace(folder)
        raise


def write_dictionary(dictionary: SAE | MultiLayer, folder: Path, *, l0: float | None, dtype: torch.dtype) -> None:
    """Write tensors and config to a folder that is there; one layer of a CLT after the other."""
    if isinstance(dictionary, SAE):
        _write_tensors(dictionary, folder / "params.safetensors", dtype)
        config = _config_of_sae(dictionary)
    else:
        for index, layer in enumerate(dictionary.layers):
            assert isinstance(layer, Layer)
            path = folder / f"params_layer_{index}.safetensors"
            _write_tensors(layer, path, dtype, outputs=len(dictionary), first=layer.first)
        config = _config_of_layers(dictionary)
    config |= {"l0": None if l0 is None else round(l0)} | ({"quantized": "int8"} if dtype == torch.int8 else {})
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _write_tensors(
    weights: SAE | Layer, path: Path, dtype: torch.dtype, *, outputs: int | None = None, first: int = 0
) -> None:
    from safetensors.torch import save_file

    matrices = {"encoder": weights.encoder, "decoder": weights.decoder}
    if weights.skip is not None:
        matrices["skip"] = DenseRows(weights.skip)
    tensors = {ours: getattr(weights, ours) for ours in ("b_enc", "b_dec", "threshold")}
    small = torch.float32 if dtype == torch.int8 else dtype
    stored = {LAYOUT.names[ours]: tensor.to(small) for ours, tensor in tensors.items()}
    for ours, rows in matrices.items():
        for name, tensor in _matrix(LAYOUT.names[ours], rows, dtype).items():
            if ours == "decoder" and outputs is not None and name != column_scale_name(LAYOUT.names[ours]):
                # Codes of 0 need a scale above 0 beside them.
                tensor = _by_output(tensor, outputs, first, empty=0 if name == LAYOUT.names[ours] else 1)
            stored[name] = tensor.T if name in _TRANSPOSED else tensor
    save_file({name: tensor.contiguous() for name, tensor in stored.items()}, path)
    path.chmod(0o644)  # save_file leaves it to its owner alone


_TRANSPOSED = {LAYOUT.names[ours] for ours in LAYOUT.transposed}


def _matrix(name: str, rows: Rows, dtype: torch.dtype) -> dict[str, Tensor]:
    """One matrix under its name; in int8 with its scales."""
    if dtype != torch.int8:
        return {name: torch.cat([block.to(dtype) for _, block in rows.blocks()])}
    # What is int8 already stays what it is, to the bit.
    if not isinstance(rows, Int8Rows):
        rows = quantize(rows, power=ENCODER_POWER if name == LAYOUT.names["encoder"] else OUTPUT_POWER)
    stored = {name: rows.codes, scale_name(name): rows.scale.float()}
    return stored if rows.columns is None else stored | {column_scale_name(name): rows.columns.float()}


def _by_output(tensor: Tensor, outputs: int, first: int, *, empty: int) -> Tensor:
    """[F * written, …] -> [F, outputs, …], with ``empty`` for the outputs before the first."""
    written = tensor.unflatten(0, (-1, outputs - first))
    return torch.cat([written.new_full((len(written), first, *tensor.shape[1:]), empty), written], dim=1)


def _config_of_sae(sae: SAE) -> dict[str, Any]:
    return {
        "hf_hook_point_in": sae.reads.hf_hook_point,
        "hf_hook_point_out": sae.writes.hf_hook_point,
        "width": sae.width,
        "model_name": sae.info.model_name,
        "architecture": "jump_relu",
        "affine_connection": sae.skip is not None,
        "type": "transcoder" if sae.is_transcoder else "sae",
    }


def _config_of_layers(dictionary: MultiLayer) -> dict[str, Any]:
    """Of a CLT with its hook points, a layer each, which Google's lack: theirs are of every layer of the model."""
    first = dictionary.layers[0]
    assert isinstance(first, Layer)
    about = {
        "width": dictionary.width,
        "model_name": dictionary.info.model_name,
        "architecture": "jump_relu",
        "affine_connection": first.skip is not None,
        "type": "clt" if dictionary.is_transcoder else "crosscoder",
    }
    if not dictionary.is_transcoder:
        return about
    return about | {
        "hf_hook_point_in": [site.hf_hook_point for site in dictionary.reads],
        "hf_hook_point_out": [site.hf_hook_point for site in dictionary.writes],
    }
