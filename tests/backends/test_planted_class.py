"""The whole chain on real images, one class of which is made harder: robust reweighting finds it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dcprune.api import runs
from dcprune.api.provenance import provenance
from dcprune.api.runs import reweight, train
from dcprune.artifacts import Coreset, Selection
from dcprune.datasets.fashion_mini import FashionMini
from dcprune.interfaces import DatasetRequest
from dcprune.sources import identify, open_dataset

IMAGES_OF_A_CLASS = 40
NETWORK: dict[str, Any] = {
    "resolution": 8,
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "attention_levels": (),
    "norm_num_groups": 8,
}


def plant(folder: Path, hard: str) -> Path:
    """An image folder in which every second image of the class `hard` is a negative: two things to learn."""
    source = FashionMini(DatasetRequest("fashion-mini"))
    labels = np.asarray(source.labels)
    for label, name in enumerate(source.class_names):
        (folder / name).mkdir(parents=True)
        for number, row in enumerate(np.flatnonzero(labels == label)[:IMAGES_OF_A_CLASS]):
            image = source.image(int(row))[..., 0]
            negative = name == hard and number % 2
            Image.fromarray(255 - image if negative else image).save(folder / name / f"{number:02d}.png")
    return folder


def everything(folder: Path) -> Coreset:
    source = open_dataset(folder)
    assert source.labels is not None
    assert source.ids is not None
    return Coreset(
        dataset=identify(source),
        selection=Selection(
            scorer="random", params={}, keep="random", scope="class", ratio=None, budget=len(source), seed=0
        ),
        num_selected=len(source),
        class_counts=dict.fromkeys(source.class_names, IMAGES_OF_A_CLASS),
        indices=tuple(range(len(source))),
        ids=tuple(source.ids),
        provenance=provenance("select", {}, seed=0),
    )


@pytest.fixture(scope="module")
def patch() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory, patch: pytest.MonkeyPatch) -> dict[str, dict[str, float]]:
    """Class weights by the class that was made hard; the grid of samples at the end of a run is left small."""
    patch.setattr(runs, "_GRID_CLASSES", 1)
    found = {}
    for hard in ("Trouser", "Bag"):
        folder = plant(tmp_path_factory.mktemp(hard) / "images", hard)
        run = folder.parent / "full"
        short: dict[str, Any] = {"batch_size": 50, "dtype": "fp32", "device": "cpu"}
        train(folder, output=run, preset="tiny", settings=NETWORK, steps=100, **short)
        found[hard] = reweight(everything(folder), run, steps=25, eta=10, **short).weights
    return found


@pytest.mark.parametrize("hard", ["Trouser", "Bag"])
def test_a_class_that_is_made_harder_gets_more_weight(hard: str, weights: dict[str, dict[str, float]]) -> None:
    """More than on average, and more than twice what it gets where it is as it was and another class is hard."""
    other = next(each for each in weights if each != hard)
    assert weights[hard][hard] > 1.5
    assert weights[hard][hard] > 2 * weights[other][hard]
