"""What ``collect_features`` made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["Collected"]


@dataclass(frozen=True, slots=True)
class Collected:
    """Evidence on disk, for each dictionary in a folder of its own."""

    folder: Path
    dictionaries: tuple[str, ...]
    """Paths inside the folder."""
    tokens: int
    """Read, BOS not counted."""
    sequences: int
    """Rows of text that examples refer to, and so were kept."""
    size: int
    """Bytes of all files."""
    notes: tuple[str, ...]
    """What was left out, and why."""
