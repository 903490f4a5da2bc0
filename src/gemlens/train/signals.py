"""Ctrl-C and SIGTERM wait until a step is done: in the middle of one, dictionaries would not match each other."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

__all__ = ["Asked", "held_back", "leave"]


class Asked:
    """Which signal asked to stop, if any did."""

    def __init__(self) -> None:
        self.signal: int | None = None


def leave(number: int) -> NoReturn:
    """End as the signal would have ended the process."""
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)


@contextmanager
def held_back(say: Callable[[str], None]) -> Iterator[Asked]:
    """Hold back the first signal; a second one of its kind works as ever. Outside the main thread, nothing is held."""
    asked = Asked()
    before: dict[int, Any] = {}

    def note(number: int, _frame: FrameType | None) -> None:
        asked.signal = number
        signal.signal(number, before[number])
        say("stopping after this step; once more to stop at once, without a checkpoint")

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.getsignal(number) or signal.SIG_DFL
            signal.signal(number, note)
    try:
        yield asked
    finally:
        for caught, handler in before.items():
            signal.signal(caught, handler)
