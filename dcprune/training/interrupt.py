"""Stopping early, in order: Ctrl-C, a scheduler's SIGTERM, or the end of the time that a run was given."""

from __future__ import annotations

import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

from dcprune.errors import OptionError
from dcprune.processes import Processes

if TYPE_CHECKING:
    import torch

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# torchrun passes on to its workers a Ctrl-C that the terminal has sent to all of them already.
_SAME_WISH_SECONDS: Final = 2.0
_UNIT_SECONDS: Final = (86_400, 3_600, 60, 1)


class Stop(IntEnum):
    """Why a run should stop early; the highest one counts when processes differ."""

    NO = 0
    OUT_OF_TIME = 1
    INTERRUPTED = 2


def seconds_of(duration: float | str) -> float:
    """`3600`, `"90"`, `"55m"`, `"1h30m"` or `"2d"` in seconds.

    Raises:
        OptionError: not a duration, or not above 0.
    """
    seconds = _parsed(duration) if isinstance(duration, str) else float(duration)
    if not 0 < seconds < float("inf"):
        raise OptionError(f"max_time={duration} is not a duration above 0. Write seconds, or 55m, 1h30m, 2d.")
    return seconds


def _parsed(text: str) -> float:
    """The seconds of a text, or 0 when it is no duration."""
    number = r"(\d+(?:\.\d+)?)"
    found = re.fullmatch("".join(f"(?:{number}{unit})?" for unit in "dhm") + f"(?:{number}s?)?", text.strip().lower())
    parts = found.groups(default="0") if found else ()
    return sum(float(part) * seconds for part, seconds in zip(parts, _UNIT_SECONDS, strict=False))


@contextmanager
def deferred_interrupt() -> Iterator[Callable[[], bool]]:
    """Gives a function that says whether a stop was asked for.

    The first signal is only noted; then the handlers that were there before come back, so a later one acts as ever.
    Signals within two seconds of the first are the same wish. Outside the main thread signals never arrive, and nothing
    is installed.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    previous = {number: signal.getsignal(number) for number in _SIGNALS}
    first: list[float] = []

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def note(number: int, _frame: FrameType | None) -> None:
        asked.set()
        first.append(time.monotonic())
        if first[-1] - first[0] > _SAME_WISH_SECONDS:
            restore()
            signal.raise_signal(number)

    for number in _SIGNALS:
        signal.signal(number, note)
    try:
        yield asked.is_set
    finally:
        restore()


class Agreement:
    """Lets all processes stop after the same step: what one of them wishes, all do one step later.

    The vote of a step travels while the step is computed, over gloo on the CPU, so no device waits for it.
    """

    def __init__(self, processes: Processes) -> None:
        self.processes = processes
        self._vote: tuple[torch.Tensor, Any] | None = None

    def __call__(self, wish: Stop) -> Stop:
        """What all processes do now; `wish` is this one's."""
        if self.processes.count == 1:
            return wish
        import torch

        agreed = self._result()
        if agreed is Stop.NO:
            ballot = torch.tensor([int(wish)])
            work = torch.distributed.all_reduce(ballot, torch.distributed.ReduceOp.MAX, async_op=True)
            self._vote = ballot, work
        return agreed

    def close(self) -> None:
        """Wait for the vote that is under way."""
        self._result()

    def _result(self) -> Stop:
        if self._vote is None:
            return Stop.NO
        ballot, work = self._vote
        self._vote = None
        work.wait()
        return Stop(int(ballot))
