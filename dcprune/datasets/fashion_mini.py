"""`fashion-mini`: a part of Fashion-MNIST that is embedded in the package.

4,000 training images (400 of every class) and 1,000 test images (100 of every class), 28 x 28 grey, drawn without
replacement by `numpy.random.default_rng(SEED)`, classes in label order, train before test, and kept in the order of
Fashion-MNIST. An id names the original row: `train-00123`. The licence lies beside this file.

`python -m dcprune.datasets.fashion_mini SOURCE OUTPUT` makes the embedded file again, byte for byte, from a folder with
the original IDX files.

Source: Xiao, Rasul and Vollgraf, Fashion-MNIST: a novel image dataset for benchmarking machine learning algorithms,
arXiv 1708.07747.
"""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dcprune.datasets.arrays import ArraySource, check_split
from dcprune.datasets.idx import FASHION_CLASSES, fashion_folders, find_split, read_split
from dcprune.errors import DatasetError
from dcprune.interfaces import DatasetRequest

SEED = 2017
PER_CLASS = {"train": 400, "test": 100}
FILE = Path(__file__).with_name("fashion_mini.npz")


class FashionMini(ArraySource):
    """The embedded part of Fashion-MNIST; splits `train` and `test`.

    Attributes:
        rows: int64 [N], rows of the original Fashion-MNIST split, ascending.
    """

    def __init__(self, request: DatasetRequest) -> None:
        split = check_split(request, tuple(PER_CLASS))
        with np.load(FILE, allow_pickle=False) as stored:
            images, labels, rows = (stored[f"{split}_{name}"] for name in ("images", "labels", "rows"))
        self.rows = rows.astype(np.int64)
        ids = tuple(f"{split}-{row:05d}" for row in self.rows)
        super().__init__(request.name, split, images[..., None], labels, FASHION_CLASSES, ids)


def build(source_dir: Path, output: Path) -> None:
    """Write the embedded file from the original IDX files; the same sources give the same bytes.

    Raises:
        DatasetError: `source_dir` lacks them.
    """
    generator = np.random.default_rng(SEED)
    arrays: dict[str, NDArray[np.generic]] = {}
    for split, count in PER_CLASS.items():
        paths = find_split(fashion_folders(source_dir), split)
        if paths is None:
            raise DatasetError(f"No IDX files of Fashion-MNIST's {split} split in {str(source_dir)!r}.")
        images, labels = read_split(paths)
        classes = range(len(FASHION_CLASSES))
        drawn = [generator.choice(np.flatnonzero(labels == label), count, replace=False) for label in classes]
        rows = np.sort(np.concatenate(drawn))
        arrays |= {
            f"{split}_images": images[rows],
            f"{split}_labels": labels[rows],
            f"{split}_rows": rows.astype(np.uint16),
        }
    _write_npz(output, arrays)


def _write_npz(path: Path, arrays: dict[str, NDArray[np.generic]]) -> None:
    """An .npz that numpy reads, compressed with LZMA: an eighth smaller than numpy's own deflate."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            info = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
            info.compress_type, info.create_system = zipfile.ZIP_LZMA, 3
            with archive.open(info, "w") as member:
                np.lib.format.write_array(member, np.ascontiguousarray(array), allow_pickle=False)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit("usage: python -m dcprune.datasets.fashion_mini SOURCE OUTPUT")
    build(Path(sys.argv[1]), Path(sys.argv[2]))
