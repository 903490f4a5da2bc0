"""Where a run keeps its checkpoints: one process in one file, each of several in a folder of its own.

    FOLDER/checkpoint.safetensors
    FOLDER/checkpoint.2of4/checkpoint.safetensors        of the second of four processes

Processes that share features have to go on from the same step, and any of them may be killed at any moment:

1. Each writes its new checkpoint beside the old one.
2. Once all have, each puts the new one in the old one's place.
3. Whoever takes a run up finds one or two of each process, and goes on from the latest step of which all have one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from gemlens.data.checkpoint import CHECKPOINT, Checkpoint, State, read_checkpoint, write_checkpoint
from gemlens.errors import InputError, OutputError
from gemlens.files import check_folder, told
from gemlens.train.ranks import Place, Ranks

__all__ = ["RunFolder", "has_checkpoint"]

_NEXT = "next.safetensors"
_OF_SEVERAL = re.compile(r"checkpoint\.\d+of(\d+)")


class RunFolder:
    """The folder of a run, as one process sees it.

    Args:
        place: which of the processes that write there.
        ranks: those whose checkpoints have to be of one step.
    """

    def __init__(self, folder: Path, place: Place, ranks: Ranks) -> None:
        self._folder, self._place, self._ranks = folder, place, ranks
        self._own = folder if place.size == 1 else folder / f"checkpoint.{place.rank + 1}of{place.size}"

    @property
    def path(self) -> Path:
        return self._own / CHECKPOINT

    def read(self) -> Checkpoint | None:
        """The checkpoint to go on from; None if there is none, and the folder is free for a run.

        Raises:
            InputError: a run of another number of processes, or checkpoints of which some are missing.
            OutputError: the folder holds other files.
            WeightsError: a damaged checkpoint.
        """
        for left_over in self._own.glob(".gemlens-*.tmp"):  # of a process that was killed while it wrote
            left_over.unlink()
        self._check_free()
        found = [read_checkpoint(self.path), read_checkpoint(self._own / _NEXT)]
        steps = [int(each.parts["run"]["steps"]) if each else -1 for each in found]
        of_all = self._ranks.gather(torch.tensor([steps])).tolist()
        shared = set.intersection(*(set(each) for each in of_all)) - {-1}
        if not shared and any(current >= 0 for current, _ in of_all):
            told_of = "; ".join(" and ".join(str(step) for step in each if step >= 0) or "none" for each in of_all)
            raise InputError(
                f"the processes' checkpoints in {self._folder} have no step in common ({told_of}); bring back those "
                "that are missing, or delete all of them to train anew"
            )
        return found[steps.index(max(shared))] if shared else None

    def write(self, about: Mapping[str, Any], parts: Mapping[str, State]) -> None:
        """Write a checkpoint; of processes that share features, all or none has it in the end.

        Raises:
            OutputError: the disk is full, or the folder cannot be written; the checkpoint before it stays.
            NetworkError: another process ended; likewise.
        """
        if self._place.size > 1:
            check_folder(self._own)
        if self._ranks.size == 1:
            write_checkpoint(self.path, about, parts)
            return
        new = self._own / _NEXT
        write_checkpoint(new, about, parts)
        self._ranks.sum(torch.zeros(1))  # returns once all have come as far
        with told(self.path):
            new.replace(self.path)

    def _check_free(self) -> None:
        names = [path.name for path in self._folder.iterdir()]
        sizes = {size for name in names if (size := _processes(name))}
        if others := sizes - {self._place.size}:
            raise InputError(
                f"{self._folder} holds a run of {_counted(min(others))}, this one is of {_counted(self._place.size)}; "
                "start as many, or train into another folder"
            )
        # A process that starts at the same time proves that the folder can be written.
        if not sizes and (other := next((name for name in names if not name.startswith(".gemlens-")), None)):
            raise OutputError(f"{self._folder} holds other files, {other} among them; name a new or empty folder")


def has_checkpoint(folder: Path) -> bool:
    """Whether a run, of any number of processes, can go on there."""
    return any(_processes(path.name) for path in folder.iterdir())


def _processes(name: str) -> int | None:
    """To a run of how many processes a checkpoint of this name belongs."""
    if name == CHECKPOINT:
        return 1
    return int(match[1]) if (match := _OF_SEVERAL.fullmatch(name)) else None


def _counted(processes: int) -> str:
    return "1 process" if processes == 1 else f"{processes} processes"
