"""What a long run has done so far, in a folder: killed at any moment, it goes on where it was.

    FOLDER/run.json                    what made the parts; another run's are thrown away
    FOLDER/0003-model.safetensors      a window of items: scores, and activations until all dictionaries have seen them
    FOLDER/0003-007.safetensors        features that dictionary 7 found in them
    FOLDER/cause-3f0a….safetensors     scores of the held-out half without some features

A part is whole once it has its name. Items are cut into windows by their order alone, so that a run that was killed
computes the batches of an unbroken one, and ends in the same bytes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from gemlens.errors import OutputError
from gemlens.files import check_folder, whole, write

__all__ = ["Parts", "remove"]


class Parts:
    """Named groups of tensors in ``folder``; without a folder nothing is kept."""

    def __init__(self, folder: Path | None, about: Mapping[str, Any]) -> None:
        self._folder = folder
        if folder is None:
            return
        said = json.dumps(about, indent=1, sort_keys=True) + "\n"
        there = folder / "run.json"
        try:
            same = there.read_text("utf-8") == said
        except (OSError, UnicodeDecodeError):
            same = False
        if not same:
            remove(folder)
            check_folder(folder)
            write(said, there)

    def get(self, name: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """What was kept under ``name``, or what ``make`` returns, which is kept then."""
        if (found := self.read(name)) is not None:
            return found
        made = make()
        self.keep(name, made)
        return made

    def read(self, name: str) -> dict[str, Tensor] | None:
        if self._folder is None or not (path := self._path(name)).is_file():
            return None
        try:
            return load_file(path)
        except (OSError, ValueError, SafetensorError):  # damaged on disk: it is made again
            return None

    def keep(self, name: str, tensors: dict[str, Tensor]) -> None:
        if self._folder is not None:
            with whole(self._path(name)) as file:
                file.write(save({key: each.contiguous() for key, each in tensors.items()}))

    def _path(self, name: str) -> Path:
        assert self._folder is not None
        return self._folder / f"{name}.safetensors"


def remove(folder: Path) -> None:
    """Remove a folder of parts.

    Raises:
        OutputError: it holds anything that no run put there.
    """
    if not folder.exists():
        return
    inside = list(folder.iterdir()) if folder.is_dir() else [folder]
    strange = [
        path.name
        for path in inside
        if path.name != "run.json" and path.suffix != ".safetensors" and not path.name.startswith(".gemlens-")
    ]
    if strange:
        raise OutputError(
            f"{folder} holds {strange[0]}, which is not of a run; move it, or choose another --output-file"
        )
    with suppress(OSError):
        shutil.rmtree(folder)
