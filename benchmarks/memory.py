"""Peak memory of a piece of work, and the bytes of the tensors it works with."""

from __future__ import annotations

import ctypes
import dataclasses
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["Peak", "bytes_of", "children_peak"]

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Peak:
    """Counts from its creation; what was resident then is not part of it."""

    def __init__(self) -> None:
        self._start: int | None = None
        try:
            # What was freed goes back to the system, or the work would find its memory already there.
            ctypes.CDLL(None).malloc_trim(0)
            _CLEAR.write_text("5")
            self._start = _resident("VmRSS")
        except (OSError, AttributeError):  # not Linux, or a container that does not let us
            return

    def above(self) -> int | None:
        """Bytes; None where the system does not tell."""
        return None if self._start is None else max(0, _resident("VmHWM") - self._start)


def _resident(key: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


def children_peak() -> int:
    """Bytes that the largest process started here has held."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def bytes_of(*things: Any) -> int:
    """Of all tensors and arrays in them, each once; of a module that counts its ``nbytes`` itself, as it says."""
    return sum({_place(each): each.nbytes for thing in things for each in _arrays(thing)}.values())


def _place(array: Any) -> tuple[int, int]:
    if hasattr(array, "data_ptr"):
        return array.data_ptr(), array.nbytes
    return (array.ctypes.data if hasattr(array, "ctypes") else id(array)), array.nbytes


def _arrays(thing: Any) -> Iterator[Any]:
    if hasattr(thing, "nbytes"):
        yield thing
    elif hasattr(thing, "buffers"):
        yield from thing.parameters()
        yield from thing.buffers()
    elif isinstance(thing, dict):
        yield from _arrays(list(thing.values()))
    elif isinstance(thing, list | tuple):
        for each in thing:
            yield from _arrays(each)
    elif dataclasses.is_dataclass(thing):
        for part in dataclasses.fields(thing):
            yield from _arrays(getattr(thing, part.name))
