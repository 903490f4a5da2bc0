"""What ``gemlens train`` shows while it works: a table that moves on a terminal, lines now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from gemlens.app.console import tell
from gemlens.train.config import FitConfig

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from gemlens.train.learner import Step

__all__ = ["progress"]

_EVERY = 30.0
"""Seconds between lines where nothing can move."""

Report = Callable[[Mapping[str, "Step"]], None]


@contextmanager
def progress(console: Console, configs: Mapping[str, FitConfig]) -> Iterator[Report]:
    """Yield what ``gemlens.train.run.train`` calls after each step."""
    seen = _Seen(configs)
    if not console.is_terminal:
        yield _lines(console, seen)
        return
    from rich.live import Live

    with Live(console=console, transient=True, get_renderable=seen.table, refresh_per_second=4):
        yield seen.add
    if seen.latest:
        console.print(seen.table())


class _Seen:
    def __init__(self, configs: Mapping[str, FitConfig]) -> None:
        self._configs = configs
        self._total = max(config.steps for config in configs.values())
        self._batch = next(iter(configs.values())).batch
        self._started, self._first = time.monotonic(), 0
        self.latest: dict[str, Step] = {}
        self.step = 0

    def add(self, steps: Mapping[str, Step]) -> None:
        self.step = next(iter(steps.values())).step
        self._first = self._first or self.step  # of a run that goes on, what was done before costs no time now
        self.latest |= steps

    @property
    def finished(self) -> bool:
        return self.step == self._total

    @property
    def headline(self) -> str:
        speed = (self.step - self._first + 1) * self._batch / max(time.monotonic() - self._started, 1e-6)
        left = (self._total - self.step) * self._batch / speed
        return (
            f"{self.step * self._batch:,} of {self._total * self._batch:,} tokens, {speed:,.0f} a second, "
            f"{_duration(left)} left"
        )

    def rows(self) -> Iterator[tuple[str, ...]]:
        for path, at in self.latest.items():
            config = self._configs[path]
            dead = at.dead / (config.width * len(config.reads))
            yield path, f"loss {at.loss:.4f}", f"L0 {at.l0:.1f}", f"FVU {at.fvu:.3f}", f"dead {dead:.1%}"

    def table(self) -> Table:
        from rich.table import Table

        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), title_justify="left")
        table.title = self.headline if self.latest else "reading the first texts"
        for row in self.rows():
            table.add_row(*row)
        return table


def _lines(console: Console, seen: _Seen) -> Report:
    told = time.monotonic() - _EVERY

    def report(steps: Mapping[str, Step]) -> None:
        nonlocal told
        seen.add(steps)
        if time.monotonic() - told >= _EVERY or seen.finished:
            told = time.monotonic()
            tell(console, seen.headline)
            for row in seen.rows():
                tell(console, "  " + "  ".join(row))

    return report


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 90 else f"{minutes} min" if minutes < 90 else f"{minutes / 60:.1f} h"
