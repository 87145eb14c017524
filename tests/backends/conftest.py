from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

from dcprune.backends.ddpm import Ddpm
from dcprune.backends.pixels import ResidentPixels
from dcprune.datasets.fashion_mini import FashionMini
from dcprune.interfaces import Batch, DatasetRequest, DatasetSource
from dcprune.subset import Subset
from dcprune.testing import preparation_context

Drawn = tuple[Batch, torch.Tensor, torch.Tensor]


class Notes:
    """A `Progress` that remembers what was said."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    @contextmanager
    def task(self, description: str, total: int | None, unit: str = "it") -> Iterator[Notes]:
        yield self

    def advance(self, amount: int = 1, **values: float | str) -> None:
        pass

    def note(self, message: str) -> None:
        self.notes.append(message)

    def warn(self, message: str) -> None:
        raise AssertionError(message)


def _loud(model: torch.nn.Module) -> torch.nn.Module:
    with torch.no_grad():
        model.get_parameter("class_embedding.weight").mul_(5)
        model.get_parameter("conv_out.weight").mul_(3)
    return model


def _batch(data: ResidentPixels, num_train_timesteps: int = 1000) -> Drawn:
    generator = torch.Generator().manual_seed(0)
    rows = torch.arange(8)
    x0 = data.x0(rows, torch.zeros(8, dtype=torch.bool), generator)
    timesteps = torch.randint(0, num_train_timesteps, (8,), generator=generator)
    return Batch(x0, data.labels[rows], rows % 3 == 0), timesteps, torch.randn(x0.shape, generator=generator)


@pytest.fixture(scope="session")
def loud() -> Callable[[torch.nn.Module], torch.nn.Module]:
    """Gives a network louder conditions than a random start has, so that a wrong one would show in uint8."""
    return _loud


@pytest.fixture(scope="session")
def batch_of() -> Callable[..., Drawn]:
    """Gives 8 samples, of which every third label is dropped, with timesteps and noise."""
    return _batch


@pytest.fixture
def notes() -> Callable[[], Notes]:
    return Notes


@pytest.fixture(scope="module", autouse=True)
def _one_thread(one_thread: None) -> None:
    """Networks this small only get slower with more, all the more when the machine has other work."""


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
    return backend.prepare(fashion, preparation_context())
