"""Where words go: results to standard output, everything else to standard error.

Texts from users and models are never rich markup: ``[/red]`` in a folder's name would be an error.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from gemlens.errors import OutputError

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["abandon_stdout", "busy", "notes", "results", "tell"]


@contextmanager
def results() -> Iterator[Console]:
    """A console on standard output; a reader that leaves early (``| head``) ends the printing, not the command.

    Raises:
        OutputError: standard output takes no more, such as a file on a full disk.
    """
    from rich.console import Console

    class Results(Console):
        def on_broken_pipe(self) -> None:  # rich's own ends the process with code 1
            self.quiet = True
            abandon_stdout()

    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal that knows only ASCII gets \\xb1 for ±, not an error
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        yield Results(markup=False, highlight=False)
    except BrokenPipeError:  # from versions of rich without on_broken_pipe
        abandon_stdout()
    except OSError as error:
        abandon_stdout()
        reason = error.strerror or str(error)
        raise OutputError(f"cannot write to standard output: {reason}; free some space or write elsewhere") from error


def notes(*, quiet: bool = False) -> Console:
    """A console on standard error; a quiet one prints nothing."""
    from rich.console import Console

    return Console(stderr=True, markup=False, highlight=False, soft_wrap=True, quiet=quiet)


@contextmanager
def busy(console: Console, what: str) -> Iterator[None]:
    """Show that ``what`` is going on, on a terminal."""
    from rich.text import Text

    with console.status(Text(what)):
        yield


def tell(console: Console, line: str) -> None:
    """Print one line whole, however narrow the terminal: paths are copied from it."""
    console.print(line, soft_wrap=True)


def abandon_stdout() -> None:
    """Let what is still to be printed go nowhere; without this, Python fails once more when it flushes at exit."""
    # In a notebook, or where stdout was closed from the start, there is no file behind it.
    with suppress(AttributeError, io.UnsupportedOperation), Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
