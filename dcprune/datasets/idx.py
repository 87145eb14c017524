"""The IDX files of the MNIST family, plain or gzipped."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dcprune.errors import DatasetError

SPLITS = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


def read_idx(path: Path) -> NDArray[np.uint8]:
    """One IDX file of unsigned bytes, in its own shape.

    Raises:
        DatasetError: not such a file, truncated or corrupt.
    """
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DatasetError(f"Cannot read {str(path)!r}: {error}.") from error
    if data[:3] != b"\x00\x00\x08" or len(data) < 4:
        raise DatasetError(f"{str(path)!r} is not an IDX file of unsigned bytes.")
    header = 4 + 4 * data[3]
    shape = tuple(int(size) for size in np.frombuffer(data[4:header], dtype=">u4"))
    if len(data) - header != int(np.prod(shape)):
        raise DatasetError(f"{str(path)!r} is truncated: {len(data) - header} bytes for the shape {shape}.")
    return np.frombuffer(data, dtype=np.uint8, offset=header).reshape(shape)


def find_split(folders: Iterable[Path], split: str) -> tuple[Path, Path] | None:
    """Paths of the images and labels of `split`, from the first folder that has both."""
    for folder in folders:
        for suffix in ("", ".gz"):
            images, labels = (folder / (name + suffix) for name in SPLITS[split])
            if images.is_file() and labels.is_file():
                return images, labels
    return None


def fashion_folders(data_dir: Path) -> list[Path]:
    """Where the IDX files of Fashion-MNIST may lie: directly, in `fashion-mnist`, or as torchvision puts them."""
    return [folder / inner for folder in (data_dir, data_dir / "fashion-mnist") for inner in (".", "FashionMNIST/raw")]


def read_split(paths: tuple[Path, Path]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Images uint8 [N, 28, 28] and labels uint8 [N].

    Raises:
        DatasetError: the files are broken or do not belong together.
    """
    images, labels = (read_idx(path) for path in paths)
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        raise DatasetError(
            f"{str(paths[0])!r} and {str(paths[1])!r} do not go together: {images.shape}, {labels.shape}."
        )
    return images, labels
