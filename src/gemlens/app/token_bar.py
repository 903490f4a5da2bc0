"""How far the reading of a lot of text is: tokens done, tokens a second and time left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["token_bar"]


@contextmanager
def token_bar(console: Console) -> Iterator[Callable[[int, int | None], None]]:
    """Yield a function of tokens done and to do, the latter None where nobody knows; nothing where nothing can move."""
    from rich.progress import BarColumn, Progress, Task, TextColumn, TimeRemainingColumn
    from rich.text import Text

    if not console.is_terminal:
        yield lambda _done, _total: None
        return

    class Speed(TextColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.completed:,.0f} tokens, {task.speed or 0:,.0f} a second")

    with Progress(Speed(""), BarColumn(), TimeRemainingColumn(), console=console, transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
