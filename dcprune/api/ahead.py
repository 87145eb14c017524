"""Work that goes on in a thread of its own while its results are used."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import AbstractContextManager, nullcontext
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import TypeVar

import torch

Item = TypeVar("Item")

_POLL_SECONDS = 0.1


def ahead(items: Iterable[Item], device: torch.device, *, depth: int = 2) -> Generator[Item, None, None]:
    """The same items, of which up to `depth` are made before they are asked for.

    On a CUDA device they are made on a stream of their own, so that the work of the caller overlaps with it. Closing
    the generator ends the thread after the item that it is at.

    Args:
        items: iterated in the thread; what it raises is raised here, in its turn.
        device: where the items are made.
        depth: items that may wait.
    """
    waiting: Queue[tuple[Item | None, BaseException | None]] = Queue(depth)
    stopped = Event()

    def put(entry: tuple[Item | None, BaseException | None]) -> None:
        while not stopped.is_set():
            try:
                return waiting.put(entry, timeout=_POLL_SECONDS)
            except Full:
                continue
        return None

    def produce() -> None:
        try:
            with _own_stream(device):
                for item in items:
                    put((item, None))
                    if stopped.is_set():
                        return
            put((None, StopIteration()))
        except BaseException as error:  # noqa: BLE001 - it is raised where the items are used
            put((None, error))

    thread = Thread(target=produce, name="dcprune-ahead", daemon=True)
    thread.start()
    try:
        while True:
            item, error = waiting.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item  # type: ignore[misc]
    finally:
        stopped.set()
        _drain(waiting)
        thread.join()


def _own_stream(device: torch.device) -> AbstractContextManager[object]:
    if device.type != "cuda":
        return nullcontext()
    torch.cuda.set_device(device)  # the current device is a thread's own
    return torch.cuda.stream(torch.cuda.Stream(device))  # type: ignore[no-untyped-call]


def _drain(waiting: Queue[tuple[Item | None, BaseException | None]]) -> None:
    while True:
        try:
            waiting.get_nowait()
        except Empty:
            return
