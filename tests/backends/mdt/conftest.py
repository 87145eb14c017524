from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dcprune.backends.mdt.network import MaskedTransformer, Shape, build
from dcprune.testing import random_autoencoder


def shape_of(version: int = 2, **settings: Any) -> Shape:
    """A network of 9 tokens."""
    small = {
        "hidden_size": 16,
        "depth": 4,
        "num_heads": 2,
        "patch_size": 2,
        "decode_layer": 2,
        "input_size": 6,
        "in_channels": 3,
        "num_classes": 4,
    }
    return Shape(version=version, **{**small, **settings})  # type: ignore[arg-type]


def network_of(version: int = 2, **settings: Any) -> MaskedTransformer:
    """A network whose gates and output are not zero, as they are at the start."""
    network = build(shape_of(version, **settings), seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return network.eval()


@pytest.fixture(params=[1, 2], ids=["v1", "v2"])
def network(request: pytest.FixtureRequest) -> MaskedTransformer:
    return network_of(request.param)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DCPRUNE_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An autoencoder with random weights that divides by 4."""
    folder = tmp_path_factory.mktemp("autoencoder")
    random_autoencoder().save_pretrained(folder)
    return folder
