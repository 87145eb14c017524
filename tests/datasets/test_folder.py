"""Image folders: classes, splits, and what can be wrong with them."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dcprune.datasets.folder import ImageFolder
from dcprune.errors import DatasetError, MissingInput
from dcprune.interfaces import DatasetRequest
from dcprune.testing import check_dataset


def put(path: Path, value: int = 0, size: tuple[int, int] = (4, 3)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, value).save(path)
    return path


def opened(folder: Path, split: str = "train") -> ImageFolder:
    return ImageFolder(DatasetRequest("folder", str(folder), split))


def test_class_sub_folders(tmp_path: Path) -> None:
    put(tmp_path / "dog" / "b.png", 10)
    put(tmp_path / "dog" / "a.JPG", 20)
    put(tmp_path / "cat" / "deep" / "er" / "z.bmp", 30)
    put(tmp_path / "cat" / "y.png", 40)
    (tmp_path / "dog" / "notes.txt").write_text("no image")
    (tmp_path / "empty").mkdir()
    source = opened(tmp_path)
    check_dataset(source)
    assert source.uri == str(tmp_path)
    assert source.class_names == ("cat", "dog")
    assert source.ids == ("cat/deep/er/z.bmp", "cat/y.png", "dog/a.JPG", "dog/b.png")
    assert source.labels is not None
    assert source.labels.tolist() == [0, 0, 1, 1]
    assert [int(source.image(row)[0, 0, 0]) for row in range(4)] == [30, 40, 20, 10]
    assert source.sizes.tolist() == [(tmp_path / name).stat().st_size for name in source.ids]
    assert source.content(3) == (tmp_path / "dog" / "b.png").read_bytes()


def test_flat_folder_is_class_less(tmp_path: Path) -> None:
    for name in ("2.png", "10.png", "1.png"):
        put(tmp_path / name)
    source = opened(tmp_path)
    check_dataset(source)
    assert source.class_names == ()
    assert source.labels is None
    assert source.ids == ("1.png", "10.png", "2.png")


def test_one_class_of_one_image(tmp_path: Path) -> None:
    put(tmp_path / "only" / "one.png")
    source = opened(tmp_path)
    check_dataset(source)
    assert (source.class_names, len(source)) == (("only",), 1)


def test_hidden_files_and_folders_are_skipped(tmp_path: Path) -> None:
    put(tmp_path / "cat" / "a.png")
    put(tmp_path / "cat" / "._a.png")
    put(tmp_path / "cat" / ".thumbnails" / "a.png")
    put(tmp_path / ".cache" / "a.png")
    put(tmp_path / ".preview.png")
    assert opened(tmp_path).ids == ("cat/a.png",)


def test_images_of_unlike_sizes(tmp_path: Path) -> None:
    put(tmp_path / "a.png", size=(5, 7))
    put(tmp_path / "b.png", size=(2, 1))
    source = opened(tmp_path)
    assert [source.image(row).shape for row in range(2)] == [(7, 5, 3), (1, 2, 3)]


def test_links_are_followed_and_loops_are_not(tmp_path: Path) -> None:
    outside = put(tmp_path / "outside" / "images" / "a.png", 7)
    root = tmp_path / "root"
    put(root / "cat" / "b.png")
    (root / "dog").symlink_to(outside.parent, target_is_directory=True)
    (root / "cat" / "linked.png").symlink_to(outside)
    (root / "cat" / "loop").symlink_to(root / "cat", target_is_directory=True)
    source = opened(root)
    assert source.ids == ("cat/b.png", "cat/linked.png", "dog/a.png")
    assert source.image(2)[0, 0, 0] == 7


@pytest.mark.parametrize(
    ("folder", "split"), [("train", "train"), ("training", "train"), ("validation", "val"), ("extra", "extra")]
)
def test_split_sub_folder(tmp_path: Path, folder: str, split: str) -> None:
    put(tmp_path / folder / "cat" / "a.png")
    put(tmp_path / "test" / "cat" / "b.png")
    source = opened(tmp_path, split)
    assert (source.split, source.ids, source.root) == (split, ("cat/a.png",), tmp_path / folder)


@pytest.mark.parametrize("split", ["val", "../train", "", "."])
def test_absent_split(tmp_path: Path, split: str) -> None:
    put(tmp_path / "train" / "cat" / "a.png")
    with pytest.raises(DatasetError, match=r"no split .*its sub-folders are train"):
        opened(tmp_path, split)


def test_train_is_not_another_split(tmp_path: Path) -> None:
    put(tmp_path / "test" / "cat" / "a.png")
    put(tmp_path / "val" / "cat" / "a.png")
    with pytest.raises(DatasetError, match="no split 'train': its sub-folders are test, val"):
        opened(tmp_path)


def test_class_that_is_called_like_a_split(tmp_path: Path) -> None:
    put(tmp_path / "test" / "a.png")
    put(tmp_path / "control" / "b.png")
    assert opened(tmp_path).class_names == ("control", "test")


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(MissingInput, match="nowhere"):
        opened(tmp_path / "nowhere")


def test_file_instead_of_folder(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="is a file"):
        opened(put(tmp_path / "a.png"))


def test_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="holds no images"):
        opened(tmp_path)


def test_folder_without_images(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "readme.txt").write_text("no image")
    with pytest.raises(DatasetError, match=r"holds no images \(.*\.png"):
        opened(tmp_path)


def test_images_beside_classes(tmp_path: Path) -> None:
    put(tmp_path / "cat" / "a.png")
    put(tmp_path / "preview.png")
    with pytest.raises(DatasetError, match=r"'preview\.png'.*cat"):
        opened(tmp_path)


def test_empty_file_is_refused_when_it_is_read(tmp_path: Path) -> None:
    put(tmp_path / "cat" / "a.png")
    (tmp_path / "cat" / "b.png").touch()
    source = opened(tmp_path)
    assert source.sizes[1] == 0
    assert source.content(1) == b""
    with pytest.raises(DatasetError, match=r"b\.png'.*empty \(0 bytes\)"):
        source.image(1)


def test_broken_link(tmp_path: Path) -> None:
    put(tmp_path / "cat" / "a.png")
    (tmp_path / "cat" / "b.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(DatasetError, match=r"b\.png"):
        opened(tmp_path)


@pytest.mark.skipif(os.name != "posix", reason="file names are bytes on POSIX only")
def test_name_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    put(tmp_path / "a.png").rename(os.fsdecode(bytes(tmp_path / "cat") + b"/\xff.png"))
    with pytest.raises(DatasetError, match="not UTF-8"):
        opened(tmp_path)


def test_corrupt_image_is_named_when_it_is_read(tmp_path: Path) -> None:
    put(tmp_path / "cat" / "a.png")
    (tmp_path / "cat" / "b.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut")
    source = opened(tmp_path)
    assert source.image(0).dtype == np.uint8
    with pytest.raises(DatasetError, match=r"cat.b\.jpg"):
        source.image(1)
