"""The folder of one trained dictionary: weights as Gemma Scope 2 stores them, and how it was trained.

config.json, params.safetensors       what loaders read; of a CLT params_layer_0.safetensors and on
training.json                         the ``FitConfig``, what was read, tokens and time
curves.csv                            loss, FVU, L0 and dead share over training
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gemlens import __version__
from gemlens.files import check_folder, told, write
from gemlens.records import Training
from gemlens.scope.multilayer import MultiLayer
from gemlens.scope.sae import SAE
from gemlens.scope.save import save_multilayer, save_sae
from gemlens.train.config import FitConfig
from gemlens.train.curves import to_csv

__all__ = ["write_dictionary"]


def write_dictionary(
    folder: Path,
    dictionary: SAE | MultiLayer,
    config: FitConfig,
    *,
    source: dict[str, Any],
    seconds: float,
    curves: NDArray[np.float64],
    dtype: torch.dtype,
) -> Training:
    """Write the files, over those that an earlier end of the same run wrote; others in the folder stay.

    Raises:
        OutputError: it cannot be written.
    """
    training = Training(
        dictionary=dictionary.info,
        config=asdict(config),
        source=source,
        tokens=config.steps * config.batch,
        seconds=seconds,
        curves=curves,
        version=__version__,
    )
    _save(dictionary, check_folder(folder), training.last("l0"), dtype)
    about = {
        "config": training.config,
        "source": source,
        "tokens": training.tokens,
        "seconds": round(seconds, 1),
        "gemlens_version": __version__,
    }
    write(json.dumps(about, indent=2) + "\n", folder / "training.json")
    write(to_csv(curves), folder / "curves.csv")
    return training


def _save(dictionary: SAE | MultiLayer, folder: Path, l0: float, dtype: torch.dtype) -> None:
    """Through a folder beside, since what saves dictionaries writes into none that holds anything."""
    made = folder.with_name(f".{folder.name}.new")
    with told(folder):
        shutil.rmtree(made, ignore_errors=True)  # of a run that was killed here
        if isinstance(dictionary, MultiLayer):
            save_multilayer(dictionary, made, l0=l0, dtype=dtype)
        else:
            save_sae(dictionary, made, l0=l0, dtype=dtype)
        for file in made.iterdir():
            file.replace(folder / file.name)
        made.rmdir()
