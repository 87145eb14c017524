"""`embed --dry-run`: what an embedding takes, also of encoders whose weights are not there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dcprune.api.embedding_estimate import estimate_embedding
from dcprune.api.embeddings import EmbedOptions
from dcprune.datasets.arrays import ArraySource
from dcprune.encoders.surrogate import recipe_for, timed_rows
from dcprune.interfaces import DatasetSource
from dcprune.sources import open_dataset


@pytest.fixture
def few() -> DatasetSource:
    rng = np.random.default_rng(0)
    labels = np.arange(6) % 2
    return ArraySource("few", "train", rng.integers(0, 256, (6, 32, 32, 3), dtype=np.uint8), labels, ("a", "b"))


@pytest.mark.parametrize(
    ("encoder", "settings", "dim"),
    [
        ("inceptionv3", {}, 2048),
        ("inceptionv3-fid", {}, 2048),
        ("inceptionv3-fid", {"layer": "logits"}, 1008),
        ("clip-rn50", {}, 1024),
        ("dinov2", {"size": "s", "image_size": 28}, 384),
        ("timm:resnet10t.c3_in1k", {"image_size": 64}, 512),
    ],
)
def test_an_encoder_is_timed_before_its_weights_are_there(
    encoder: str, settings: dict[str, object], dim: int, few: DatasetSource, caches: Path
) -> None:
    plan = estimate_embedding(few, encoder, EmbedOptions(settings=settings, batch_size=2))
    assert len(plan["missing"]) == 1
    assert plan["dim"] == dim
    assert plan["images_per_second"] > 0
    assert "training_seconds" not in plan
    assert not list(caches.rglob("*.safetensors"))


def test_imagenet_weights_of_a_resnet_are_not_taken_for_a_surrogate(few: DatasetSource, caches: Path) -> None:
    plan = estimate_embedding(few, "resnet18", EmbedOptions(weights="imagenet", batch_size=2))
    assert plan["missing"][0].startswith("https://download.pytorch.org/models/resnet18")
    assert (plan["dim"], "training_seconds" in plan) == (512, False)


def test_a_surrogate_is_timed_and_not_trained(caches: Path) -> None:
    dataset = open_dataset("fashion-mini")
    plans = [
        estimate_embedding(dataset, "resnet18", EmbedOptions(settings={"width": 4, "epochs": epochs}))
        for epochs in (1, 1000)
    ]
    assert [plan["dim"] for plan in plans] == [32, 32]
    assert plans[0]["missing"][0].startswith("No surrogate of this dataset is cached")
    # a thousand times as many epochs; steps of milliseconds are not timed better than this
    assert plans[1]["training_seconds"] > 50 * plans[0]["training_seconds"] > 0
    assert not list(caches.rglob("*.safetensors"))


def test_a_file_that_was_named_and_is_not_there_is_not_replaced(few: DatasetSource, tmp_path: Path) -> None:
    plan = estimate_embedding(few, "resnet18", EmbedOptions(weights=str(tmp_path / "none.safetensors")))
    assert plan.keys() == {"num_samples", "num_classes", "missing"}


def test_the_rows_that_are_timed_are_spread_over_the_dataset() -> None:
    recipe = recipe_for({"batch_size": 8, "held_out": 0.5}, torch.device("cpu"), 1000, 32)
    rows = timed_rows(recipe, 1000)
    assert (len(rows), rows[0], rows[-1]) == (64, 0, 999)
    assert timed_rows(recipe, 10).tolist() == list(range(10))
