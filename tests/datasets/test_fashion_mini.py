"""The embedded dataset, against the original where DCPRUNE_DATA_DIR has it."""

from pathlib import Path

import numpy as np
import pytest

from dcprune.datasets import fashion_mini
from dcprune.datasets.fashion_mini import FILE, FashionMini, build
from dcprune.datasets.idx import fashion_folders, find_split, read_split
from dcprune.errors import DatasetError
from dcprune.interfaces import DatasetRequest
from dcprune.sources import default_data_dir
from dcprune.testing import check_dataset


def opened(split: str = "train") -> FashionMini:
    return FashionMini(DatasetRequest("fashion-mini", split=split))


@pytest.fixture(scope="session")
def original() -> Path:
    folder = default_data_dir()
    if find_split(fashion_folders(folder), "train") is None:
        pytest.skip("DCPRUNE_DATA_DIR does not hold Fashion-MNIST")
    return folder


@pytest.mark.parametrize(("split", "per_class"), [("train", 400), ("test", 100)])
def test_contents(split: str, per_class: int) -> None:
    source = opened(split)
    check_dataset(source)
    assert source.labels is not None
    assert np.bincount(source.labels).tolist() == [per_class] * 10
    assert source.class_names[0] == "T-shirt/top"
    assert source.image(0).shape == (28, 28, 1)
    assert (np.diff(source.rows) > 0).all()
    assert source.ids is not None
    assert source.ids[0] == f"{split}-{source.rows[0]:05d}"
    assert set(source.sizes.tolist()) == {784}


def test_images_are_of_their_class() -> None:
    """Nearest class mean, trained on one split and tried on the other, as published for raw pixels: about 68 %."""
    train, test = opened("train"), opened("test")
    assert train.labels is not None
    assert test.labels is not None
    pixels = np.stack([train.image(row).ravel() for row in range(len(train))]).astype(np.float32)
    means = np.stack([pixels[train.labels == label].mean(0) for label in range(10)])
    unseen = np.stack([test.image(row).ravel() for row in range(len(test))]).astype(np.float32)
    nearest = np.linalg.norm(unseen[:, None] - means, axis=2).argmin(1)
    assert 0.62 < (nearest == test.labels).mean() < 0.75


def test_unknown_split() -> None:
    with pytest.raises(DatasetError, match=r"'val'\. Splits: train, test"):
        opened("val")


def test_package_carries_the_licence() -> None:
    text = FILE.with_name("fashion_mini.LICENSE").read_text()
    assert "MIT License" in text
    assert "Copyright (c) 2017 Zalando SE" in text
    assert FILE.stat().st_size < 2_000_000


@pytest.mark.parametrize("split", ["train", "test"])
def test_rows_are_those_of_the_original(original: Path, split: str) -> None:
    paths = find_split(fashion_folders(original), split)
    assert paths is not None
    images, labels = read_split(paths)
    source = opened(split)
    assert source.labels is not None
    assert np.array_equal(np.stack([source.image(row)[:, :, 0] for row in range(len(source))]), images[source.rows])
    assert np.array_equal(source.labels, labels[source.rows])


def test_build_repeats_the_file(original: Path, tmp_path: Path) -> None:
    build(original, tmp_path / "again.npz")
    assert (tmp_path / "again.npz").read_bytes() == FILE.read_bytes()


def test_another_seed_draws_other_images(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fashion_mini, "SEED", fashion_mini.SEED + 1)
    monkeypatch.setattr(fashion_mini, "PER_CLASS", {"test": 5})
    build(original, tmp_path / "other.npz")
    with np.load(tmp_path / "other.npz", allow_pickle=False) as stored:
        assert np.bincount(stored["test_labels"]).tolist() == [5] * 10
        assert not set(stored["test_rows"].tolist()) <= set(opened("test").rows.tolist())


def test_build_without_the_original(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="No IDX files"):
        build(tmp_path, tmp_path / "out.npz")
    assert not (tmp_path / "out.npz").exists()
