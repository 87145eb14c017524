from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from dcprune.interfaces import DatasetSource, EncoderContext, Task
from dcprune.sources import identify


class Recorder:
    """A `Progress` that remembers what was said."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.warnings: list[str] = []
        self.tasks: list[str] = []
        self.done = 0

    def task(self, description: str, total: int | None, unit: str = "it") -> AbstractContextManager[Task]:
        self.tasks.append(description)
        return nullcontext(self)

    def advance(self, amount: int = 1, **values: float | str) -> None:
        self.done += amount

    def note(self, message: str) -> None:
        self.notes.append(message)

    def warn(self, message: str) -> None:
        self.warnings.append(message)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Networks this small lose more to two threads that wait for each other than they gain."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def context(tmp_path: Path, recorder: Recorder) -> Callable[..., EncoderContext]:
    """Builds the context of an encoder on the CPU, with a cache of its own."""

    def build(dataset: DatasetSource, **changes: Any) -> EncoderContext:
        values: dict[str, Any] = {
            "dataset": dataset,
            "fingerprint": identify(dataset).fingerprint,
            "device": torch.device("cpu"),
            "dtype": torch.float32,
            "seed": 0,
            "cache_dir": tmp_path / "cache",
            "progress": recorder,
        }
        return EncoderContext(**{**values, **changes})

    return build
