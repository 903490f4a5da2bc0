"""What the ways of ``gemlens fidelity`` share: reading texts, one bar, and what to say of what failed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import TYPE_CHECKING

from gemlens.errors import GemlensError

if TYPE_CHECKING:
    from rich.console import Console

    from gemlens.data.corpus import Text
    from gemlens.scope.listing import Listed

__all__ = ["by_groups", "progress", "reader", "refuse_failed"]

Show = Callable[[str, int, int], None]
"""What is going on, steps done and steps to do."""


def reader(files: list[Text]) -> Callable[[], Iterable[str]]:
    """Documents of ``files``, from the first each time it is called."""
    from gemlens.data.corpus import read_documents

    return lambda: chain.from_iterable(map(read_documents, files))


@contextmanager
def progress(console: Console) -> Iterator[Show]:
    """One bar for the time of the ``with``; nothing where nothing can move: rich would leave an empty line."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    if not console.is_terminal:
        yield lambda _said, _done, _total: None
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("Loading", total=None)
        yield lambda said, done, total: bar.update(task, description=said, completed=done, total=total)


def by_groups(found: Sequence[Listed], show: Show) -> Callable[[Sequence[Listed], int, int], None]:
    """What a study of ``found`` reports of those it measures together, as one bar over all of them."""

    def report(which: Sequence[Listed], done: int, total: int) -> None:
        before = found.index(which[0])
        said = f"{before + 1} of {len(found)}: {which[0].path}"
        if len(which) > 1:
            said = f"{before + 1} to {before + len(which)} of {len(found)} together"
        show(said, before * total + done * len(which), len(found) * total)

    return report


def refuse_failed(failed: Sequence[tuple[str, str]], measured: int) -> None:
    """Raise GemlensError for the first of those that could not be measured, if any."""
    if failed:
        path, reason = failed[0]
        raise GemlensError(
            f"{len(failed)} of {measured + len(failed)} dictionaries could not be measured; "
            f"the first is {path}: {reason}"
        )
