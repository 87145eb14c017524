from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from dcprune import formats, sources
from dcprune.artifacts import Coreset
from dcprune.errors import DatasetError
from dcprune.progress import SILENT
from dcprune.report import images

if TYPE_CHECKING:
    from pathlib import Path

    from dcprune.interfaces import DatasetSource
    from tests.report.conftest import Chain


class Noise:
    """A dataset of noise, the hardest thing to compress, in which one image may be broken."""

    uri, split, ids = "noise", "train", None
    captions = array = None
    encoded = streaming = False

    def __init__(self, side: int, channels: int, classes: int, broken: int = -1) -> None:
        self.class_names = tuple(f"c{label}" for label in range(classes))
        self.labels = np.repeat(np.arange(classes), 20)
        self.sizes = np.ones_like(self.labels)
        self.shape = (side, side + 7, channels)
        self.broken = broken

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> NDArray[np.uint8]:
        if index == self.broken:
            raise DatasetError(f"sample {index} cannot be decoded")
        return np.random.default_rng(index).integers(0, 256, self.shape, dtype=np.uint8)

    def content(self, index: int) -> bytes:
        return self.image(index).tobytes()


def noise(side: int, channels: int, classes: int, broken: int = -1) -> DatasetSource:
    source: DatasetSource = Noise(side, channels, classes, broken)
    return source


@pytest.fixture(scope="module")
def coreset(shared_chain: Chain) -> Coreset:
    return formats.read_coreset(shared_chain.folder / "coreset.json")


def coreset_of(source: DatasetSource, template: Coreset) -> Coreset:
    """Every second sample of `source`."""
    kept = tuple(range(0, len(source), 2))
    counts = dict.fromkeys(source.class_names, 10)
    return template.model_copy(
        update={"dataset": sources.identify(source), "indices": kept, "num_selected": len(kept), "class_counts": counts}
    )


def decode(picture: images.Picture) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(picture.uri.partition(",")[2])))


def test_sheet_holds_the_images_pixel_by_pixel() -> None:
    pictures = [np.random.default_rng(seed).integers(0, 256, (28, 28, 1), dtype=np.uint8) for seed in range(3)]
    picture = images.contact_sheet(pictures, "three", 100_000, 8)
    pixels = np.asarray(decode(picture))
    assert picture.uri.startswith("data:image/png;base64,")
    assert picture.pixelated
    assert picture.width == 2 * pixels.shape[1]
    for position, original in enumerate(pictures):
        tile = pixels[:, position * 29 : position * 29 + 28]
        np.testing.assert_array_equal(tile[..., 0], original[..., 0])
        assert (tile[..., 3] == 255).all()
    assert (pixels[:, 28, 3] == 0).all()


@pytest.mark.parametrize("side", [16, 28, 32])
def test_small_images_are_shown_at_whole_multiples(side: int) -> None:
    columns = images.images_per_side(side)
    assert columns in (7, 8)
    assert 2 * images.row_width(side, columns) <= images.SHEET_WIDTH


def test_rows_show_what_the_coreset_says(shared_chain: Chain, coreset: Coreset) -> None:
    source = sources.open_for(coreset.dataset)
    rows, problems = images.class_sheets(source, coreset, SILENT)
    assert problems == []
    assert [row.name for row in rows] == list(coreset.dataset.class_names)
    assert [(row.num_kept, row.num_dropped) for row in rows] == [(80, 320)] * 10
    kept = {source.image(index).tobytes() for index in coreset.indices}
    assert source.labels is not None
    for row, word in ((rows[3], "kept"), (rows[3], "dropped")):
        picture = getattr(row, word)
        assert picture.alt == f"8 {word} images of class Dress"
        pixels = np.asarray(decode(picture).convert("L"))
        tiles = [pixels[:, column * 29 : column * 29 + 28].tobytes() for column in range(8)]
        assert [tile in kept for tile in tiles] == [word == "kept"] * 8


@pytest.mark.parametrize(("side", "channels", "classes"), [(48, 3, 30), (200, 3, 30), (41, 1, 40)])
def test_sheets_of_noise_stay_within_the_budget(side: int, channels: int, classes: int, coreset: Coreset) -> None:
    source = noise(side, channels, classes)
    rows, _ = images.class_sheets(source, coreset_of(source, coreset), SILENT)
    assert len(rows) == images.MAX_CLASSES
    size = sum(len(picture.uri) for row in rows for picture in (row.kept, row.dropped) if picture)
    assert size < images.SHEETS_BYTES * 1.4


def test_broken_image_is_left_out_and_said(coreset: Coreset) -> None:
    source = noise(16, 3, 1, broken=0)
    template = coreset_of(source, coreset)
    few = template.model_copy(update={"indices": (0, 1), "num_selected": 2})
    rows, problems = images.class_sheets(source, few, SILENT)
    assert rows[0].kept is not None
    assert rows[0].kept.alt == "1 kept images of class c0"
    assert "sample 0" in problems[0]


def test_sample_grid_is_reduced_until_it_fits(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (900, 900, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "step-00000001.png")
    picture = images.sample_picture(tmp_path / "step-00000001.png", "noise")
    assert len(picture.uri) < images.SAMPLES_BYTES * 1.4
    assert picture.width == images.SAMPLES_WIDTH
