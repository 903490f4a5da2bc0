"""Read a GGUF file: its metadata and its tensors, dequantised one at a time.

Layout (GGUF 3, little-endian): magic, version, tensor count, metadata count; the metadata as key, type,
value; one entry a tensor (name, dimensions, type, offset); padding; the tensors' bytes.

``gguf.GGUFReader`` makes several arrays for every string in the metadata, 18 seconds for Gemma's 262,144
tokens, and reads one file only, while the starter's comes in four parts. So the header is parsed here; the
quantised blocks are left to ``gguf.quants``.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gemlens.errors import WeightsError

_MAGIC = b"GGUF"
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


class TensorEntry(NamedTuple):
    name: str
    shape: tuple[int, ...]
    """Row-major, the reverse of GGUF's own order."""
    kind: int
    """GGML quantisation type."""
    offset: int
    """Bytes from the start of the buffer."""


class GGUFFile:
    """A GGUF file held in memory.

    Args:
        buffer: the whole file.

    Raises:
        WeightsError: the bytes are not a GGUF 3 file, or end early.
    """

    def __init__(self, buffer: bytes | bytearray) -> None:
        self._buffer = buffer
        self._at = 0
        try:
            self.metadata, self.entries = self._header()
        except (struct.error, ValueError, KeyError, UnicodeDecodeError) as error:
            raise WeightsError(f"not a readable GGUF file ({error}); reinstall the package it came from") from error

    def tensors(self) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """Yield every tensor's name and float32 values, in file order."""
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
        from gguf.quants import dequantize

        for entry in self.entries:
            kind = GGMLQuantizationType(entry.kind)
            block, size = GGML_QUANT_SIZES[kind]
            *rows, columns = entry.shape
            n_bytes = int(np.prod(entry.shape)) // block * size
            if entry.offset + n_bytes > len(self._buffer):
                raise WeightsError(f"the GGUF file ends inside tensor {entry.name}; reinstall the package it came from")
            raw = np.frombuffer(self._buffer, dtype=np.uint8, count=n_bytes, offset=entry.offset)
            values = dequantize(raw.reshape(*rows, columns // block * size), kind)
            yield entry.name, values.reshape(entry.shape)

    def _header(self) -> tuple[dict[str, Any], list[TensorEntry]]:
        if self._buffer[:4] != _MAGIC:
            raise ValueError("no GGUF magic")
        self._at = 4
        version, n_tensors, n_metadata = self._scalar("I"), self._scalar("Q"), self._scalar("Q")
        if version != 3:
            raise ValueError(f"version {version}, expected 3")
        metadata = {self._string().decode(): self._value(self._scalar("I")) for _ in range(n_metadata)}
        entries = [self._entry() for _ in range(n_tensors)]
        alignment = metadata.get("general.alignment", 32)
        start = -(-self._at // alignment) * alignment
        return metadata, [entry._replace(offset=start + entry.offset) for entry in entries]

    def _entry(self) -> TensorEntry:
        name = self._string().decode()
        dims = [self._scalar("Q") for _ in range(self._scalar("I"))]
        return TensorEntry(name, tuple(reversed(dims)), self._scalar("I"), self._scalar("Q"))

    def _scalar(self, code: str) -> Any:
        (value,) = struct.unpack_from("<" + code, self._buffer, self._at)
        self._at += struct.calcsize("<" + code)
        return value

    def _string(self) -> bytes:
        size = self._scalar("Q")
        value = bytes(self._buffer[self._at : self._at + size])
        if len(value) != size:
            raise ValueError("ends inside a string")
        self._at += size
        return value

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            item, count = self._scalar("I"), self._scalar("Q")
            if item == _STRING:
                return [self._string() for _ in range(count)]
            values = struct.unpack_from(f"<{count}{_SCALARS[item]}", self._buffer, self._at)
            self._at += struct.calcsize(f"<{count}{_SCALARS[item]}")
            return values
        return self._scalar(_SCALARS[kind])
