"""Batches of images in a NumPy archive, as ADM and many samplers after it write them: `npz:PATH`."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from dcprune.datasets.arrays import ArraySource, check_split
from dcprune.errors import DatasetError, MissingInput
from dcprune.interfaces import DatasetRequest

IMAGES, LABELS = "arr_0", "arr_1"
STATISTICS = ("mu", "sigma")
_LOCAL_HEADER = 30  # bytes of a zip entry before its name and extra field, whose lengths are the last four
_HEADERS: dict[tuple[int, int], Callable[..., Any]] = {
    (1, 0): npy.read_array_header_1_0,
    (2, 0): npy.read_array_header_2_0,
}


class NpzBatch(ArraySource):
    """Images of one size in an `.npz`: `arr_0` uint8 [N, H, W, C] and, where there are labels, `arr_1` integers [N].

    - Source of the form: Dhariwal and Nichol 2021 (arXiv 2105.05233), whose evaluator reads it.
    - ids: none; classes: the numbers 0, 1, ... up to the largest label.
    - access: in any order; memory-mapped unless the archive is compressed. Nothing is unpickled.

    Raises:
        MissingInput: no such file.
        DatasetError: no such archive, or no such arrays in it; a split besides `train`.
    """

    def __init__(self, request: DatasetRequest) -> None:
        check_split(request, ["train"])
        path = Path(request.location).expanduser()
        images, labels = read_arrays(path, IMAGES, LABELS)
        if images is None:
            only_statistics = read_arrays(path, *STATISTICS)[0] is not None
            hint = " It holds statistics (mu, sigma), which can be the --reference of eval." if only_statistics else ""
            raise DatasetError(f"{str(path)!r} holds no images ({IMAGES}, uint8 [N, H, W, C]).{hint}")
        images = images[..., None] if images.ndim == 3 else images
        if labels is not None and (labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer)):
            raise DatasetError(f"{str(path)!r}: {LABELS} is {labels.dtype} of shape {labels.shape}, not integers [N].")
        classes = 0 if labels is None or not len(labels) else int(labels.max()) + 1
        super().__init__(request.location, request.split, images, labels, [str(k) for k in range(classes)])


def read_arrays(path: Path, *names: str) -> list[NDArray[Any] | None]:
    """Arrays of a NumPy archive, memory-mapped where they are not compressed; None for one that is not there.

    Raises:
        MissingInput: no such file.
        DatasetError: no such archive, a damaged one, or one that holds Python objects.
    """
    if not path.is_file():
        raise MissingInput(f"The file {str(path)!r} does not exist.")
    try:
        with zipfile.ZipFile(path) as archive:
            there = {entry.filename: entry for entry in archive.infolist()}
            return [_read(path, archive, there[f"{name}.npy"]) if f"{name}.npy" in there else None for name in names]
    except (ValueError, EOFError, OSError, zipfile.BadZipFile, struct.error, zlib.error) as error:
        raise DatasetError(f"Cannot read {str(path)!r} as a NumPy archive: {error}.") from error


def _read(path: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> NDArray[Any]:
    """One array of an archive, memory-mapped where it is stored as it is."""
    if entry.compress_type == zipfile.ZIP_STORED:
        return _mapped(path, entry)
    with archive.open(entry) as stream:
        values: NDArray[Any] = npy.read_array(stream, allow_pickle=False)
    return values


def _mapped(path: Path, entry: zipfile.ZipInfo) -> NDArray[Any]:
    name = entry.filename
    with path.open("rb") as stream:
        stream.seek(entry.header_offset)
        header = stream.read(_LOCAL_HEADER)
        stream.seek(entry.header_offset + _LOCAL_HEADER + sum(struct.unpack("<HH", header[-4:])))
        version = npy.read_magic(stream)
        if version not in _HEADERS:
            raise ValueError(f"{name} has version {version} of the .npy format")
        shape, fortran, dtype = _HEADERS[version](stream)
        if dtype.hasobject:
            raise ValueError(f"{name} holds Python objects, which are never read")
        if 0 in shape:
            return np.empty(shape, dtype)
        return np.memmap(path, dtype=dtype, mode="r", offset=stream.tell(), shape=shape, order="F" if fortran else "C")
