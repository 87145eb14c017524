from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from dcprune.backends.ddpm import Ddpm
from dcprune.backends.pixels import ResidentPixels
from dcprune.datasets.fashion_mini import FashionMini
from dcprune.interfaces import DatasetRequest, DatasetSource
from dcprune.progress import SILENT
from dcprune.training.subset import Subset


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Networks this small only get slower with more, all the more when the machine has other work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def small() -> dict[str, Any]:
    """Settings of the smallest U-Net that still has every kind of layer."""
    return {
        "resolution": 8,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "attention_levels": (1,),
        "norm_num_groups": 4,
        "dropout": 0.0,
    }


@pytest.fixture(scope="session")
def backend(small: dict[str, Any]) -> Ddpm:
    return Ddpm(**small)


@pytest.fixture(scope="session")
def fashion() -> DatasetSource:
    """24 images of fashion-mini."""
    return Subset(FashionMini(DatasetRequest("fashion-mini")), np.arange(24))


@pytest.fixture(scope="session")
def data(backend: Ddpm, fashion: DatasetSource) -> ResidentPixels:
    return backend.prepare(fashion, torch.device("cpu"), SILENT)
