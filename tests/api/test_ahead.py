"""Items that are made ahead: in order, no further ahead than said, and without a thread that stays behind."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from dcprune.api.ahead import ahead

CPU = torch.device("cpu")


def counted(made: list[int], stop: int) -> Iterator[int]:
    for number in range(stop):
        made.append(number)
        yield number


def threads() -> int:
    return sum(thread.name == "dcprune-ahead" for thread in threading.enumerate())


def test_items_come_in_order_from_one_other_thread() -> None:
    def makers() -> Iterator[int]:
        for _ in range(5):
            yield threading.get_ident()

    assert list(ahead(range(50), CPU)) == list(range(50))
    (maker,) = set(ahead(makers(), CPU))
    assert maker != threading.get_ident()
    assert threads() == 0


def test_an_item_is_made_while_the_one_before_is_in_use() -> None:
    """Each side waits for the other: without a thread of its own this would never end."""
    in_use = [threading.Event() for _ in range(5)]

    def items() -> Iterator[int]:
        for number in range(5):
            if number:
                assert in_use[number - 1].wait(timeout=60)
            yield number

    for number in ahead(items(), CPU, depth=1):
        in_use[number].set()


def test_it_runs_no_further_ahead_than_it_may() -> None:
    made: list[int] = []
    items = ahead(counted(made, 100), CPU, depth=2)
    assert next(items) == 0
    items.close()
    assert len(made) <= 5
    assert threads() == 0


def test_an_error_is_raised_in_its_turn() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise KeyError("broken")

    made = ahead(items(), CPU)
    assert next(made) == 1
    with pytest.raises(KeyError, match="broken"):
        next(made)
    assert threads() == 0


def test_leaving_early_closes_the_items() -> None:
    closed = threading.Event()

    def items() -> Iterator[int]:
        try:
            yield from range(100)
        finally:
            closed.set()

    found = ahead(items(), CPU)
    next(found)
    found.close()
    del found
    assert closed.wait(timeout=60)


@pytest.mark.gpu
def test_work_on_a_gpu_has_a_stream_of_its_own() -> None:
    device = torch.device("cuda")

    def streams() -> Iterator[torch.cuda.Stream]:
        yield torch.cuda.current_stream(device)

    assert list(ahead(streams(), device)) != [torch.cuda.current_stream(device)]
