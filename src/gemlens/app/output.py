"""The folder of the reports: proved writable before the work, gone again if the work fails."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from gemlens.errors import OutputError

__all__ = ["prepared"]


@contextmanager
def prepared(option: str, folder: Path, names: Iterable[str]) -> Iterator[None]:
    """Create ``folder`` for files called ``names``; if the block fails, what was created and is empty goes again.

    Raises:
        OutputError: it cannot be written, it is a file, or one of the names is taken by a folder.
    """
    from gemlens.files import check_folder

    missing = _missing(option, folder, names)
    try:
        check_folder(folder)
        yield
    except BaseException:
        for path in missing:  # the deepest first
            with contextlib.suppress(OSError):
                path.rmdir()
        raise


def _missing(option: str, folder: Path, names: Iterable[str]) -> list[Path]:
    """The folders that have to be created, the deepest first."""
    try:
        if folder.exists() and not folder.is_dir():
            raise OutputError(f"{option} {folder} is not a folder; name one, it is created if need be")
        if taken := [folder / name for name in names if (folder / name).is_dir()]:
            raise OutputError(f"{taken[0]} is a folder, where a report has to go; move it, or change {option}")
        return [path for path in (folder, *folder.parents) if not path.exists()]
    except OutputError:
        raise
    except (OSError, ValueError) as error:  # too long, not allowed, a NUL
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"{option} {str(folder)!r} cannot be used ({reason}); choose another folder") from error
