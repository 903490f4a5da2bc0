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
    """Create ``folder`` for files called ``names``; what was created is removed again if the block fails, if empty.

    Raises:
        OutputError: it cannot be written, it is a file, or one of the names is taken by a folder.
    """
    from gemlens.report.files import check_folder

    created: list[Path] = []
    try:
        try:
            created = [path for path in (folder, *folder.parents) if not path.exists()]
            if not created and not folder.is_dir():
                raise OutputError(f"{option} {folder} is not a folder; name one, it is created if need be")
            for name in names:
                if (folder / name).is_dir():
                    raise OutputError(
                        f"{folder / name} is a folder, where a report has to go; move it, or change {option}"
                    )
        except ValueError as error:  # a NUL in the name
            raise OutputError(f"{option} {str(folder)!r} is no name for a folder ({error}); choose another") from error
        check_folder(folder)
        yield
    except BaseException:
        for path in created:  # the deepest first
            with contextlib.suppress(OSError):
                path.rmdir()
        raise
