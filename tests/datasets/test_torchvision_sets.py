"""torchvision's datasets, from small files in the official formats; nothing is fetched."""

import gzip
import hashlib
import pickle
import tarfile
import urllib.error
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision
from PIL import Image

from dcprune.datasets import torchvision_sets
from dcprune.datasets.idx import read_idx
from dcprune.datasets.torchvision_sets import Cifar10, FashionMnist, ImageNet, ImageNette
from dcprune.errors import DatasetError
from dcprune.interfaces import DatasetRequest, Outline
from dcprune.testing import check_dataset

RNG = np.random.default_rng(0)


def idx(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, dtype=">u4").tobytes()
    return header + array.astype(np.uint8).tobytes()


@pytest.fixture
def fashion() -> dict[str, np.ndarray]:
    return {
        "train-images-idx3-ubyte": RNG.integers(0, 256, (12, 28, 28)),
        "train-labels-idx1-ubyte": np.arange(12) % 10,
        "t10k-images-idx3-ubyte": RNG.integers(0, 256, (5, 28, 28)),
        "t10k-labels-idx1-ubyte": np.arange(5),
    }


def request(name: str, folder: Path, split: str = "train", download: bool = False) -> DatasetRequest:
    return DatasetRequest(name, split=split, data_dir=folder, download=download)


@pytest.mark.parametrize("inner", [".", "fashion-mnist", "FashionMNIST/raw", "fashion-mnist/FashionMNIST/raw"])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_fashion_mnist_where_it_may_lie(
    tmp_path: Path, fashion: dict[str, np.ndarray], inner: str, suffix: str
) -> None:
    (tmp_path / inner).mkdir(parents=True, exist_ok=True)
    for name, array in fashion.items():
        data = idx(array)
        (tmp_path / inner / (name + suffix)).write_bytes(gzip.compress(data) if suffix else data)
    source = FashionMnist(request("fashion-mnist", tmp_path, "test"))
    check_dataset(source)
    assert np.array_equal(source.image(3)[:, :, 0], fashion["t10k-images-idx3-ubyte"][3])
    assert source.labels is not None
    assert source.labels.tolist() == [0, 1, 2, 3, 4]
    assert len(FashionMnist(request("fashion-mnist", tmp_path))) == 12


def test_fashion_mnist_is_what_torchvision_reads(tmp_path: Path, fashion: dict[str, np.ndarray]) -> None:
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for name, array in fashion.items():
        (raw / name).write_bytes(idx(array))
    theirs = torchvision.datasets.FashionMNIST(tmp_path, train=True)
    ours = FashionMnist(request("fashion-mnist", tmp_path))
    assert ours.labels is not None
    assert ours.labels.tolist() == theirs.targets.tolist()
    assert np.array_equal(np.stack([ours.image(row)[:, :, 0] for row in range(12)]), theirs.data.numpy())
    assert list(ours.class_names) == theirs.classes


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (gzip.compress(bytes([0, 0, 8, 1, 0, 0, 0, 9, 1, 2])), "truncated"),
        (gzip.compress(bytes(20))[:-9], r"Cannot read .*end-of-stream"),
        (b"not gzip", "Cannot read"),
        (gzip.compress(bytes([0, 0, 13, 1, 0, 0, 0, 1, 0])), "not an IDX file of unsigned bytes"),
        (gzip.compress(b""), "not an IDX file"),
    ],
)
def test_broken_idx_files(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "labels.gz").write_bytes(data)
    with pytest.raises(DatasetError, match=message):
        read_idx(tmp_path / "labels.gz")


@pytest.fixture
def cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A CIFAR-10 of 25 training and 4 test images, packed as the official archive, with its own checksums."""
    pixels = RNG.integers(0, 256, (29, 3072), dtype=np.uint8)
    labels = [int(label) for label in RNG.integers(0, 10, 29)]
    packed = tmp_path / "packed" / "cifar-10-batches-py"
    packed.mkdir(parents=True)

    def dump(name: str, content: object) -> list[str]:
        (packed / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((packed / name).read_bytes()).hexdigest()]  # noqa: S324

    parts = [slice(5 * part, 5 * part + 5) for part in range(5)]
    train = [
        dump(f"data_batch_{number}", {"data": pixels[part], "labels": labels[part]})
        for number, part in enumerate(parts, 1)
    ]
    test = [dump("test_batch", {"data": pixels[25:], "labels": labels[25:]})]
    meta = dump("batches.meta", {"label_names": list("abcdefghij")})
    archive = tmp_path / "packed" / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(packed, "cifar-10-batches-py")
    theirs = torchvision.datasets.CIFAR10
    monkeypatch.setattr(theirs, "train_list", train)
    monkeypatch.setattr(theirs, "test_list", test)
    monkeypatch.setattr(theirs, "meta", {"filename": meta[0], "key": "label_names", "md5": meta[1]})
    monkeypatch.setattr(theirs, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())  # noqa: S324
    images = pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return {"images": images, "labels": labels, "folder": packed, "archive": archive}


@pytest.mark.parametrize("inner", [".", "cifar10"])
@pytest.mark.parametrize("form", ["folder", "archive"])
def test_cifar_where_it_may_lie(tmp_path: Path, cifar: dict[str, Any], inner: str, form: str) -> None:
    """Unpacked, or as the archive that a user has put there by hand: without a download."""
    data_dir = tmp_path / "data"
    (data_dir / inner).mkdir(parents=True)
    cifar[form].rename(data_dir / inner / cifar[form].name)
    source = Cifar10(request("cifar10", data_dir))
    check_dataset(source)
    assert np.array_equal(np.stack([source.image(row) for row in range(25)]), cifar["images"][:25])
    assert source.labels is not None
    assert source.labels.tolist() == cifar["labels"][:25]
    assert source.class_names == tuple("abcdefghij")
    assert len(Cifar10(request("cifar10", data_dir, "test"))) == 4


def test_cifar_that_is_damaged_is_not_opened(cifar: dict[str, Any]) -> None:
    (cifar["folder"] / "data_batch_2").write_bytes(b"something that pickle must not see")
    with pytest.raises(DatasetError, match="cifar10 is not in"):
        Cifar10(request("cifar10", cifar["folder"].parent / "elsewhere"))


@pytest.mark.parametrize(
    ("name", "target", "file"),
    [
        ("cifar10", "Cifar10", "cifar-10-python.tar.gz"),
        ("cifar100", "Cifar100", "cifar-100-python.tar.gz"),
        ("fashion-mnist", "FashionMnist", "train-images-idx3-ubyte.gz"),
        ("imagenette", "ImageNette", "imagenette2-320.tgz"),
    ],
)
@pytest.mark.parametrize("download", [False, True])
def test_what_to_fetch_and_where_to_put_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, target: str, file: str, download: bool
) -> None:
    def offline(*args: object, **kwargs: object) -> None:
        raise urllib.error.URLError("the network is unreachable")

    monkeypatch.setattr("urllib.request.urlopen", offline)
    with pytest.raises(DatasetError) as caught:
        getattr(torchvision_sets, target)(request(name, tmp_path, download=download))
    message = str(caught.value)
    assert file in message
    assert f"into {str(tmp_path)!r}" in message
    assert "DCPRUNE_DATA_DIR" in message
    assert ("the network is unreachable" in message) == download


def photos(folder: Path, wnids: list[str], each: int = 2) -> None:
    for number, wnid in enumerate(wnids):
        (folder / wnid).mkdir(parents=True)
        for photo in range(each):
            Image.new("RGB", (4, 4), (number % 256, photo, 0)).save(folder / wnid / f"{wnid}_{photo}.JPEG")


def test_imagenette(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wnids = sorted(torchvision.datasets.Imagenette._WNID_TO_CLASS)
    photos(tmp_path / "imagenette2-160" / "train", wnids)
    monkeypatch.setattr(ImageNette, "outline", Outline({"train": 20, "val": 10}, 10, (32, 32, 3)))
    source = ImageNette(request("imagenette", tmp_path))
    check_dataset(source)
    assert source.uri == "imagenette"
    assert source.class_names[:3] == ("tench", "English springer", "cassette player")
    photos(tmp_path / "imagenette2" / "train", wnids, each=1)
    with pytest.raises(DatasetError, match=r"imagenette2.train' holds 10 images, not 20"):
        ImageNette(request("imagenette", tmp_path))


def test_imagenet(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"fetch ILSVRC2012_img_val\.tar and ILSVRC2012_devkit_t12\.tar\.gz"):
        ImageNet(request("imagenet", tmp_path, "val", download=True))
    photos(tmp_path / "imagenet" / "val", [f"n{number:08d}" for number in range(1000)], each=1)
    source = ImageNet(request("imagenet", tmp_path, "val"))
    check_dataset(source)
    assert (len(source), source.class_names[0], source.class_names[999]) == (1000, "tench", "toilet tissue")


def test_part_of_imagenet_is_not_imagenet(tmp_path: Path) -> None:
    photos(tmp_path / "imagenet" / "train", ["n01440764", "n01443537"])
    with pytest.raises(DatasetError, match="holds 2 class sub-folders, not the 1000"):
        ImageNet(request("imagenet", tmp_path))
