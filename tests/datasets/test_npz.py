"""Batches of images in NumPy archives, and archives that are none."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dcprune.datasets.fashion_mini import FashionMini
from dcprune.datasets.npz import read_arrays
from dcprune.errors import DatasetError, MissingInput
from dcprune.sources import identify, open_dataset, open_for
from dcprune.testing import check_dataset, request

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 10, 8, 3), dtype=np.uint8)
LABELS = np.array([2, 0, 1] * 4)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_adm_batches_are_datasets(save: Callable[..., None], tmp_path: Path) -> None:
    save(tmp_path / "samples.npz", IMAGES, LABELS)
    source = open_dataset(tmp_path / "samples.npz")
    check_dataset(source)
    assert source.uri == str(tmp_path / "samples.npz")
    assert source.class_names == ("0", "1", "2")
    assert source.labels is not None
    assert source.labels.tolist() == LABELS.tolist()
    np.testing.assert_array_equal(np.stack([source.image(row) for row in range(12)]), IMAGES)
    assert open_for(identify(source)).uri == source.uri


def test_only_a_compressed_archive_is_read_into_memory(tmp_path: Path) -> None:
    np.savez(tmp_path / "plain.npz", IMAGES, LABELS)
    np.savez_compressed(tmp_path / "small.npz", IMAGES)
    mapped, labels = read_arrays(tmp_path / "plain.npz", "arr_0", "arr_1")
    (read,) = read_arrays(tmp_path / "small.npz", "arr_0")
    assert isinstance(mapped, np.memmap)
    assert not isinstance(read, np.memmap)
    assert labels is not None
    np.testing.assert_array_equal(mapped, IMAGES)
    np.testing.assert_array_equal(labels, LABELS)


def test_fortran_order_and_long_headers_survive_the_mapping(tmp_path: Path) -> None:
    np.savez(tmp_path / "order.npz", np.asfortranarray(IMAGES))
    np.testing.assert_array_equal(open_dataset(tmp_path / "order.npz").image(3), IMAGES[3])


def test_grey_batches_without_labels_are_class_less(tmp_path: Path) -> None:
    source = FashionMini(request())
    grey = np.stack([source.image(row)[..., 0] for row in range(5)])
    np.savez(tmp_path / "grey.npz", grey)
    found = open_dataset(f"npz:{tmp_path / 'grey.npz'}")
    check_dataset(found)
    assert (found.labels, found.class_names, found.image(0).shape) == (None, (), (28, 28, 1))


def write(path: Path, *arrays: Any, **named: Any) -> Path:
    np.savez(path, *arrays, allow_pickle=True, **named)
    return path


@pytest.mark.parametrize(
    ("arrays", "named", "complaint"),
    [
        ([IMAGES.astype(np.float32) / 255], {}, "of float32, not uint8"),
        ([IMAGES.transpose(0, 3, 1, 2)[:, :, :, :2]], {}, "not uint8 .N, H, W, 1 or 3."),
        ([IMAGES[0, 0]], {}, "not uint8"),
        ([IMAGES[:0]], {}, "not uint8"),
        ([IMAGES, LABELS[:5]], {}, "labels do not fit 12 images"),
        ([IMAGES, LABELS - 1], {}, "labels do not fit"),
        ([IMAGES, LABELS.astype(float)], {}, "not integers"),
        ([], {"images": IMAGES}, "holds no images .arr_0"),
        ([], {"mu": np.zeros(3), "sigma": np.eye(3)}, "can be the --reference of eval"),
        ([np.array([{"a": 1}, None])], {}, "Python objects|allow_pickle"),
    ],
)
def test_other_archives_are_refused(arrays: list[Any], named: dict[str, Any], complaint: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=complaint):
        open_dataset(write(tmp_path / "samples.npz", *arrays, **named))


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "samples.npz", IMAGES)
    with pytest.raises(DatasetError, match="no split 'test'"):
        open_dataset(path, split="test")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DatasetError, match="Cannot read"):
        open_dataset(path)
    path.write_bytes(b"no archive")
    with pytest.raises(DatasetError, match="Cannot read"):
        open_dataset(path)
    np.save(tmp_path / "one.npy", IMAGES)
    (tmp_path / "one.npy").rename(path)
    with pytest.raises(DatasetError, match="Cannot read"):
        open_dataset(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("arr_0.npy", b"\x93NUMPY\x09\x00")
    with pytest.raises(DatasetError, match="Cannot read"):
        open_dataset(path)
    with pytest.raises(MissingInput, match=r"absent\.npz"):
        open_dataset(tmp_path / "absent.npz")
