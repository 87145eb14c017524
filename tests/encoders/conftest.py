from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dcprune.interfaces import DatasetSource, EncoderContext
from dcprune.sources import identify
from dcprune.testing import RecordingProgress


@pytest.fixture(scope="module", autouse=True)
def _one_thread(one_thread: None) -> None:
    """Networks this small lose more to two threads that wait for each other than they gain."""


@pytest.fixture
def recorder() -> RecordingProgress:
    return RecordingProgress()


@pytest.fixture
def context(tmp_path: Path, recorder: RecordingProgress) -> Callable[..., EncoderContext]:
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
