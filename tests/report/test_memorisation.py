"""Generated images beside the training images that they are nearest to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from scipy.spatial.distance import cdist
from scipy.stats import binomtest

from dcprune import formats, sources
from dcprune.errors import DatasetError, WeightsError
from dcprune.progress import SILENT
from dcprune.report import memorisation
from dcprune.report.collect import Overrides, RunData, collect
from dcprune.report.images import squared
from dcprune.report.memorisation import NearestTraining, sample_tiles, wilson_interval
from dcprune.sources import sample_id
from dcprune.training.run_folder import GRID_COLUMNS
from tests.report.conftest import report
from tests.report.test_page import Tree, Warnings, edit

if TYPE_CHECKING:
    from dcprune.artifacts import Embeddings
    from tests.report.conftest import Chain


@pytest.fixture(scope="module")
def embeddings(shared_chain: Chain) -> Embeddings:
    return formats.read_embeddings(shared_chain.folder / "embeddings.safetensors")


@pytest.fixture(scope="module")
def search(embeddings: Embeddings) -> NearestTraining:
    return NearestTraining(embeddings, sources.open_for(embeddings.dataset), SILENT)


def run_of(folder: Path) -> RunData:
    return collect([folder], overrides=Overrides(), data_dir=None, progress=SILENT).headline


def write_grid(path: Path, tiles: NDArray[np.uint8], columns: int) -> Path:
    """Grey tiles uint8 [n, S, S] as a run writes its samples."""
    rows = [np.hstack(list(tiles[start : start + columns])) for start in range(0, len(tiles), columns)]
    info = PngInfo()
    info.add_text(GRID_COLUMNS, str(columns))
    Image.fromarray(np.vstack(rows)).save(path, pnginfo=info)
    return path


def test_nearest_images_and_authenticity_are_those_of_brute_force(
    search: NearestTraining, embeddings: Embeddings, shared_chain: Chain, tmp_path: Path
) -> None:
    """Copies of training images, fresh images of the dataset, and noise."""
    source, run = search.source, run_of(shared_chain.core)
    assert run.coreset is not None
    kept = np.asarray(run.coreset.indices)
    dropped = np.setdiff1d(np.arange(len(source)), kept)
    noise = np.random.default_rng(0).integers(0, 256, (8, 28, 28), dtype=np.uint8)
    tiles = np.stack([source.image(int(index))[..., 0] for index in (*kept[:8], *dropped[:8])])
    found = search.check(run, write_grid(tmp_path / "grid.png", np.concatenate([tiles, noise]), 8))
    assert found is not None
    assert {row[1] for row in found.table.rows} == {sample_id(source, int(index)) for index in kept[:8]}
    assert {row[2] for row in found.table.rows} == {"0"}
    assert {row[4] for row in found.table.rows} == {"no"}
    real = embeddings.embeddings[kept].astype(np.float64)
    fresh = embeddings.embeddings[dropped[:8]].astype(np.float64)
    to_fresh, own = cdist(fresh, real), cdist(real, real)
    np.fill_diagonal(own, np.inf)
    authentic = int((to_fresh.min(axis=1) > own.min(axis=1)[to_fresh.argmin(axis=1)]).sum())
    noisy = 8  # far from everything
    assert f"{authentic + noisy} of the 24 images" in found.words
    assert "px" not in found.words


def test_a_full_run_is_compared_with_everything(search: NearestTraining, shared_chain: Chain, tmp_path: Path) -> None:
    tiles = np.stack([search.source.image(index)[..., 0] for index in range(16)])
    found = search.check(run_of(shared_chain.full), write_grid(tmp_path / "grid.png", tiles, 8))
    assert found is not None
    assert "0 of the 16 images" in found.words


def test_smaller_samples_are_compared_at_their_own_size(
    search: NearestTraining, shared_chain: Chain, tmp_path: Path
) -> None:
    run = run_of(shared_chain.core)
    assert run.coreset is not None
    kept = run.coreset.indices
    tiles = np.stack([squared(search.source.image(kept[position]), 16)[..., 0] for position in range(8)])
    grid = write_grid(tmp_path / "grid.png", tiles, 4)
    found = search.check(run, grid)
    assert found is not None
    assert "all images at 16 px" in found.words
    assert "0 of the 8 images" in found.words
    assert {row[1] for row in found.table.rows} == {sample_id(search.source, index) for index in kept[:8]}


def test_mirrored_copies_are_found_where_training_mirrored(
    search: NearestTraining, shared_chain: Chain, tmp_path: Path
) -> None:
    run = run_of(shared_chain.full)
    tiles = np.stack([search.source.image(index)[..., ::-1, 0] for index in range(8)])
    grid = write_grid(tmp_path / "grid.png", tiles, 4)
    plain = search.check(run, grid)
    mirroring = run.record.model_copy(update={"training": {**run.record.training, "horizontal_flip": True}})
    found = search.check(replace(run, record=mirroring), grid)
    assert found is not None
    assert plain is not None
    assert {row[2] for row in found.table.rows} == {"0"}
    assert "0" not in {row[2] for row in plain.table.rows}


def test_too_many_training_images_are_not_encoded_again(
    search: NearestTraining, shared_chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memorisation, "MAX_ENCODED", 10)
    tiles = np.stack([squared(search.source.image(index), 16)[..., 0] for index in range(8)])
    found = search.check(run_of(shared_chain.core), write_grid(tmp_path / "grid.png", tiles, 4))
    assert found is not None
    assert "generated ones at 16, which adds to distances" in found.words


def test_tiles_are_cut_as_they_were_laid_out(tmp_path: Path) -> None:
    tiles = np.random.default_rng(0).integers(1, 256, (6, 5, 5), dtype=np.uint8)
    padded = np.concatenate([tiles, np.zeros((2, 5, 5), dtype=np.uint8)])
    found = sample_tiles(write_grid(tmp_path / "grid.png", padded, 4))
    assert np.array_equal(np.stack(found)[..., 0], tiles)
    Image.fromarray(tiles[0]).save(tmp_path / "silent.png")
    assert sample_tiles(tmp_path / "silent.png") == []
    assert sample_tiles(write_grid(tmp_path / "odd.png", tiles[:, :4], 2)) == []


@pytest.mark.parametrize(("count", "total"), [(0, 10), (7, 10), (64, 64), (31, 80)])
def test_the_interval_is_scipys(count: int, total: int) -> None:
    expected = binomtest(count, total).proportion_ci(method="wilson")
    assert wilson_interval(count, total) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_an_encoder_that_differs_is_refused(embeddings: Embeddings) -> None:
    info = embeddings.encoder.model_copy(update={"preprocessing": {"resize": 9}})
    other = type(embeddings)(**{**vars(embeddings), "encoder": info})
    with pytest.raises(WeightsError, match="pixels has another preprocessing here"):
        NearestTraining(other, sources.open_for(embeddings.dataset), SILENT)


def test_nothing_is_trained_for_a_page(embeddings: Embeddings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DCPRUNE_CACHE_DIR", str(tmp_path))
    info = embeddings.encoder.model_copy(update={"name": "resnet18", "settings": {"width": 8, "image_size": 28}})
    other = type(embeddings)(**{**vars(embeddings), "encoder": info})
    with pytest.raises(WeightsError, match="No surrogate"):
        NearestTraining(other, sources.open_for(embeddings.dataset), SILENT)


def test_the_page_shows_pairs_for_every_run(shared_chain: Chain, tmp_path: Path) -> None:
    tree = Tree(report(shared_chain.runs, output=tmp_path / "report.html").read_text())
    alts = [str(each["alt"]) for each in tree.all("img")]
    assert sum("below each, its nearest training image" in alt for alt in alts) == 3
    assert "are authentic" in tree.text


def test_a_page_without_the_encoder_says_so(chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise WeightsError("no weights here")

    monkeypatch.setattr(memorisation, "_same_encoder", refuse)
    progress = Warnings()
    tree = Tree(report([chain.core], output=tmp_path / "report.html", progress=progress).read_text())
    assert any("copies of: no weights here" in warning for warning in progress.warnings)
    assert "are authentic" not in tree.text
    assert "Generated by core" in tree.text


def test_a_broken_training_image_leaves_the_samples_out(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise DatasetError("sample 7 cannot be decoded")

    monkeypatch.setattr(NearestTraining, "check", refuse)
    edit(chain.core / "run.json")
    tree = Tree(report([chain.core], output=tmp_path / "report.html").read_text())
    assert "cannot be read: sample 7 cannot be decoded" in tree.text
