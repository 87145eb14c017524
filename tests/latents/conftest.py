from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dcprune.testing import random_autoencoder


@pytest.fixture(scope="module", autouse=True)
def _one_thread(one_thread: None) -> None:
    """Networks this small only get slower with more, and the bits of a result depend on how many there are."""


@pytest.fixture(scope="session")
def model() -> Any:
    """An autoencoder with random weights that divides by 4; its deviations are large enough to be seen."""
    return random_autoencoder(scaling_factor=0.5, shift_factor=0.1)


@pytest.fixture(scope="session")
def vae(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("autoencoder")
    model.save_pretrained(folder)
    return folder
