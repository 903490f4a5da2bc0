"""Files are written whole or not at all, and folders are tried before the work rather than after it."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from gemlens.errors import GemlensError, OutputError

__all__ = ["check_folder", "told", "whole", "write"]


def write(text: str, path: str | os.PathLike[str]) -> None:
    """Write ``text`` as UTF-8 to ``path``, whole or not at all: a reader sees the old file or the new one."""
    path = Path(path)
    with whole(path) as file, told(path):
        file.write(text.encode("utf-8", "backslashreplace"))


@contextmanager
def whole(path: Path) -> Iterator[BinaryIO]:
    """Yield a file that gets the name ``path`` when the block ends well, and is gone if it does not."""
    # Not tempfile: its files are readable by their owner only, and keep that mode under the final name.
    temporary = path.with_name(f".gemlens-{secrets.token_hex(6)}.tmp")
    try:
        with told(path):
            file = temporary.open("xb")
        with file:
            yield file
            with told(path):
                file.flush()
                os.fsync(file.fileno())
        with told(path):
            temporary.replace(path)
    except BaseException:
        # Also on Ctrl-C. What the clean-up runs into is not the error to report.
        _remove(temporary)
        raise


@contextmanager
def told(path: Path) -> Iterator[None]:
    """Turn what goes wrong while ``path`` is written into an ``OutputError`` that names it."""
    try:
        yield
    except GemlensError:
        raise
    except (OSError, ValueError) as error:
        raise OutputError(_why(path, error)) from error


def check_folder(out_dir: str | os.PathLike[str]) -> Path:
    """Create ``out_dir`` and prove that it takes a file; call it before the expensive part."""
    folder = Path(out_dir)
    probe = folder / f".gemlens-{secrets.token_hex(6)}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"\0")
        probe.unlink()
    except (OSError, ValueError) as error:
        _remove(probe)
        raise OutputError(_why(folder, error)) from error
    return folder


def _why(path: Path, error: OSError | ValueError) -> str:
    reason = getattr(error, "strerror", None) or str(error)
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    step = "free some space or write elsewhere" if full else "choose a folder that can be written"
    return f"cannot write {str(path)!r}: {reason}; {step}"


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError, ValueError):
        path.unlink(missing_ok=True)
