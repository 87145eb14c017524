"""Ctrl-C, or a scheduler's SIGTERM, lets the update that is running finish."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def deferred_interrupt() -> Iterator[Callable[[], bool]]:
    """Gives a function that says whether a stop was asked for.

    The first signal is only noted; the handlers that were there before come back at once, so a second one acts as ever.
    Outside the main thread signals never arrive, and nothing is installed.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    previous = {number: signal.getsignal(number) for number in _SIGNALS}

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def note(_number: int, _frame: FrameType | None) -> None:
        asked.set()
        restore()

    for number in _SIGNALS:
        signal.signal(number, note)
    try:
        yield asked.is_set
    finally:
        restore()
