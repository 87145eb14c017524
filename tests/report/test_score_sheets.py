from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from dcprune import formats, sources
from dcprune.artifacts import Coreset, Scores
from dcprune.errors import DatasetError
from dcprune.progress import SILENT
from dcprune.report.images import Picture
from dcprune.report.score_sheets import PER_SHEET, PLACES, SHEETS_BYTES, score_sheets
from dcprune.testing import ShapesDataset
from tests.report.conftest import report

if TYPE_CHECKING:
    from pathlib import Path

    from tests.report.conftest import Chain


@pytest.fixture(scope="module")
def coreset(shared_chain: Chain) -> Coreset:
    return formats.read_coreset(shared_chain.folder / "coreset.json")


@pytest.fixture(scope="module")
def scores(shared_chain: Chain) -> Scores:
    return formats.read_scores(shared_chain.folder / "scores.safetensors")


def pixels(picture: Picture | None) -> NDArray[np.uint8]:
    assert picture is not None
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(picture.uri.partition(",")[2]))).convert("RGBA"))


def of(source: ShapesDataset, template: Scores, values: NDArray[np.float64]) -> Scores:
    return Scores(
        scores=values,
        labels=source.labels,
        indices=np.arange(len(source)),
        ids=None,
        scorer=template.scorer,
        keep="highest",
        dataset=sources.identify(source),
        provenance=template.provenance,
    )


def test_sheets_hold_the_images_in_the_order_of_the_scores(scores: Scores, coreset: Coreset) -> None:
    source = sources.open_for(scores.dataset)
    rows, problems = score_sheets(source, scores, coreset, SILENT)
    assert problems == []
    assert [row.name for row in rows] == list(scores.dataset.class_names)
    assert scores.labels is not None
    kept = set(coreset.indices)
    for label, row in enumerate(rows):
        members = np.flatnonzero(scores.labels == label)
        order = members[np.argsort(-scores.scores[members], kind="stable")]
        middle = (len(order) - PER_SHEET) // 2
        expected = (order[:PER_SHEET], order[middle : middle + PER_SHEET], order[-PER_SHEET:])
        for sheet, indices in zip(row.sheets, expected, strict=True):
            shown = pixels(sheet.picture)
            for position, index in enumerate(indices.tolist()):
                left = 29 * position
                assert np.array_equal(shown[:28, left : left + 28, 0], source.image(index)[..., 0])
                assert (shown[30, left, 3] > 0) == (index in kept)
            assert f"{len(kept & set(indices.tolist()))} of 5 kept" in sheet.words
        assert tuple(sheet.place for sheet in row.sheets) == PLACES


def test_small_and_class_less_data_repeats_what_there_is(scores: Scores, coreset: Coreset) -> None:
    source = ShapesDataset(num_samples=3, num_classes=0)
    few = of(source, scores, np.array([0.5, 2.0, 1.0]))
    kept = coreset.model_copy(update={"indices": (1,), "num_selected": 1})
    (row,), _ = score_sheets(source, few, kept, SILENT)
    assert row.name == "all images"
    assert {sheet.words for sheet in row.sheets} == {"2.00 to 0.500, 1 of 3 kept"}
    assert np.array_equal(pixels(row.sheets[0].picture)[:16, :16, :3], source.array[1])


def test_an_unreadable_image_is_left_out_and_said_once(scores: Scores, coreset: Coreset) -> None:
    class Broken(ShapesDataset):
        def image(self, index: int) -> NDArray[np.uint8]:
            if index == 0:
                raise DatasetError("sample 0 cannot be decoded")
            return super().image(index)

    source = Broken(num_samples=9)
    rows, problems = score_sheets(source, of(source, scores, np.arange(9.0)), coreset, SILENT)
    assert problems == ["An image is left out: sample 0 cannot be decoded"]
    lowest = rows[0].sheets[2]
    assert "of 3 kept" in lowest.words
    assert np.array_equal(pixels(lowest.picture)[:16, :16, :3], source.array[6])


@pytest.mark.parametrize("side", [48, 200])
def test_sheets_of_noise_stay_within_their_budget(side: int, scores: Scores, coreset: Coreset) -> None:
    source = ShapesDataset(num_samples=60)
    source.array = np.random.default_rng(0).integers(0, 256, (60, side, side, 3), dtype=np.uint8)
    rows, _ = score_sheets(source, of(source, scores, np.arange(60.0)), coreset, SILENT)
    total = sum(len(sheet.picture.uri) for row in rows for sheet in row.sheets if sheet.picture is not None)
    assert total <= SHEETS_BYTES * 1.4


def test_the_page_shows_them(shared_chain: Chain, tmp_path: Path) -> None:
    page = report(shared_chain.runs, output=tmp_path / "report.html").read_text()
    assert "Highest, middle and lowest scores" in page
    assert page.count('<span class="place">middle: </span>') == 10
    assert len(page) < 5_000_000
