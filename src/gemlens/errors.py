"""Every exception that gemlens raises on purpose.

GemlensError            the root: catch this one
├── InputError          an option, prompt or file that cannot be used as given
├── NotFoundError       a release, id, layer, site or file that does not exist (nearest names included)
├── AccessError         a gated or private repository, or a token that was refused
├── NetworkError        a hub, or another process of a run, that cannot be reached or does not answer
├── WeightsError        truncated, corrupt or incomplete tensors
├── MismatchError       a dictionary that does not fit the model
├── MissingPackageError an optional part that is not installed
└── OutputError         a folder that cannot be written, a disk that is full

A message is one line: what was asked, what exists, the next step. The command line prints it and exits with 2.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "AccessError",
    "GemlensError",
    "InputError",
    "MismatchError",
    "MissingPackageError",
    "NetworkError",
    "NotFoundError",
    "OutputError",
    "WeightsError",
    "nearest",
]


class GemlensError(Exception):
    """Root of the tree."""


class InputError(GemlensError, ValueError):
    """An option, prompt or file that cannot be used as given."""


class NotFoundError(GemlensError, LookupError):
    """Something asked for by name does not exist."""


class AccessError(GemlensError, PermissionError):
    """The hub refused: gated, private, or a bad token."""


class NetworkError(GemlensError, ConnectionError):
    """The hub, or another process of a run, cannot be reached or failed to answer."""


class WeightsError(GemlensError, ValueError):
    """Tensors that are truncated, corrupt, missing or not finite."""


class MismatchError(GemlensError, ValueError):
    """A dictionary that does not fit the model it was paired with."""


class MissingPackageError(GemlensError, ImportError):
    """An optional package that the request needs is not installed."""


class OutputError(GemlensError, OSError):
    """Results cannot be written where they were asked for."""


def nearest(name: str, existing: Iterable[str], limit: int = 3) -> str:
    """Return ``"did you mean a, b?"`` for the names closest to ``name``, or what exists when none is close."""
    names = sorted(set(existing))
    close = difflib.get_close_matches(name, names, n=limit, cutoff=0.5)
    if close:
        return f"did you mean {', '.join(close)}?"
    if not names:
        return "there are none here"
    shown = ", ".join(names[:limit])
    return f"there is {shown}" + (f" and {len(names) - limit} more" if len(names) > limit else "")
