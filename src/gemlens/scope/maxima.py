"""How strongly a feature was ever seen to fire: what lies beside its dictionary.

``max_activation.safetensors`` holds it for dictionaries that gemlens trained, over a million tokens;
``examples.safetensors``, each feature's strongest activations, for others where it is on this machine. It is 0.8 GB on
the hub, so it is never fetched for this.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from gemlens.errors import GemlensError, InputError, WeightsError
from gemlens.records import DictionaryInfo
from gemlens.scope.folder import LocalFolder, is_cached
from gemlens.scope.load import locate

__all__ = ["EXAMPLES", "MAX_ACTIVATION", "maxima"]

MAX_ACTIVATION, EXAMPLES = "max_activation.safetensors", "examples.safetensors"


def maxima(info: DictionaryInfo, features: Sequence[int]) -> Tensor:
    """float32 [len(features)], the largest activation that each is known to have had.

    Raises:
        InputError: nothing beside the dictionary says, or a feature never fired.
        WeightsError: the file is damaged, or of another dictionary.
    """
    name = info.path or info.id
    file = _file(info)
    if file is None:
        raise InputError(
            f"nothing beside {name} says how strongly its features fire ({MAX_ACTIVATION}, or {EXAMPLES} on this "
            "machine); give the maximum yourself, or a strength that is absolute or relative to the norm"
        )
    found = _read(file, info, features)
    for feature, value in zip(features, found.tolist(), strict=True):
        if value <= 0:
            raise InputError(
                f"feature {feature} of {name} never fired on the text of {file.name}, so a strength relative to its "
                "maximum means nothing; give one that is absolute or relative to the norm"
            )
    return found


def _file(info: DictionaryInfo) -> Path | None:
    try:
        folder, _ = locate(info.release, info.path or "/".join(filter(None, [info.category, info.id])), None, None)
        if isinstance(folder, LocalFolder):
            return folder.find(MAX_ACTIVATION) or folder.find(EXAMPLES)
        if found := folder.find(MAX_ACTIVATION):
            return found
        path = f"{info.path or info.id}/{EXAMPLES}"
        return folder.need(EXAMPLES) if is_cached(info.release, path, info.revision) else None
    except GemlensError:  # put together by hand, moved since, or a hub that cannot be asked
        return None


def _read(file: Path, info: DictionaryInfo, features: Sequence[int]) -> Tensor:
    from safetensors import SafetensorError, safe_open

    name = "max_activation" if file.name == MAX_ACTIVATION else "activations"
    try:
        with safe_open(file, framework="pt") as tensors:
            part = tensors.get_slice(name)
            if part.get_shape()[0] != info.width:
                raise WeightsError(f"{file} is of {part.get_shape()[0]} features, {info.id} has {info.width}")
            # Of examples, one feature's row at a time: the file is 0.8 GB.
            rows = [part[feature : feature + 1].float().max() for feature in features]
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{file} cannot be read ({error}); download it again") from error
    return torch.stack(rows) if rows else torch.zeros(0)
