"""Bytes of a file in parts, read where it lies: on this machine, or on the hub by HTTP ranges (``gemlens.ranges``)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

from gemlens.errors import NotFoundError, WeightsError

__all__ = ["LocalParts", "Parts"]

Span = tuple[int, int]
"""Offset and number of bytes."""


class Parts(ABC):
    """A file of known size, of which any part can be had."""

    name: str
    """For messages: a path, or the repository's name and the file's in it."""
    size: int
    revision: str | None = None
    """Commit of the hub repository."""

    @abstractmethod
    def read(self, spans: Sequence[Span]) -> list[bytes]:
        """The bytes of each span, each as long as asked.

        Raises:
            WeightsError: the file ends early.
            NetworkError: of a file on the hub.
        """


class LocalParts(Parts):
    """A file of this machine."""

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        try:
            self._file = path.open("rb")
            self.size = path.stat().st_size
        except FileNotFoundError as error:
            raise NotFoundError(f"{path} does not exist") from error
        except OSError as error:
            raise WeightsError(f"{path} cannot be read ({error.strerror or error})") from error

    def read(self, spans: Sequence[Span]) -> list[bytes]:
        found = []
        for offset, size in spans:
            self._file.seek(offset)
            found.append(self._file.read(size))
            if len(found[-1]) != size:
                raise WeightsError(f"{self.name} is truncated: it ends before byte {offset + size}; download it again")
        return found
