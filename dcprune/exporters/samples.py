"""What an exporter writes: the kept samples with their ids, classes, weights and image files."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PureWindowsPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dcprune.errors import ArtifactError, DatasetError
from dcprune.interfaces import DatasetSource, Relabels

# What image files begin with; a WebP has its size between two parts of its own.
_MAGIC = (
    (b"\x89PNG", ".png"),
    (b"\xff\xd8\xff", ".jpg"),
    (b"GIF8", ".gif"),
    (b"BM", ".bmp"),
    (b"II*\x00", ".tif"),
    (b"MM\x00*", ".tif"),
    *((b"P%d" % kind, suffix) for kind, suffix in zip(range(1, 7), (".pbm", ".pgm", ".ppm") * 2, strict=True)),
)
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class ImageFile:
    """An encoded image: the bytes of a file, and the suffix that goes with them (`".png"`)."""

    content: bytes
    suffix: str


@dataclass(frozen=True)
class Samples:
    """The kept samples of a dataset; iterating gives their rows.

    Attributes:
        source: the whole dataset.
        rows: int64 [n], the rows of it that are kept, ascending.
        weights: float64 [n], what each counts in a loss or a draw; their mean is 1.
    """

    source: DatasetSource
    rows: NDArray[np.int64]
    weights: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[int]:
        return iter(self.rows.tolist())

    def id(self, row: int) -> str:
        """The sample's id; its row, filled with zeros so that names sort by it, where the dataset has no ids."""
        if self.source.ids is not None:
            return self.source.ids[row]
        return f"{row:0{len(str(len(self.source) - 1))}d}"

    def label(self, row: int) -> int | None:
        """The sample's label; None for class-less data."""
        return None if self.source.labels is None else int(self.source.labels[row])

    def image_file(self, row: int) -> ImageFile:
        """The sample's own file where there is one, a PNG of its pixels where there is none.

        Raises:
            DatasetError: the image cannot be read.
        """
        if not self.source.encoded:
            return ImageFile(png(self.source.image(row)), ".png")
        content = self.source.content(row)
        return ImageFile(content, suffix_of(content, self.id(row)))


def unlabelled(source: DatasetSource) -> DatasetSource:
    """The source itself, or the one whose samples it relabels."""
    while isinstance(source, Relabels):
        source = source.base
    return source


def png(image: NDArray[np.uint8]) -> bytes:
    """Pixels uint8 [H, W, C], C = 1 or 3, as the bytes of a PNG file."""
    stream = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(stream, "PNG")
    return stream.getvalue()


def suffix_of(content: bytes, name: str) -> str:
    """The usual suffix of an image file, by its first bytes.

    Raises:
        DatasetError: it is none that is known.
    """
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return ".webp"
    for magic, suffix in _MAGIC:
        if content.startswith(magic):
            return suffix
    raise DatasetError(f"Cannot export {name!r}: its bytes are no image file of a known kind ({', '.join(SUFFIXES)}).")


def without_suffix(name: str) -> str:
    """An id without the suffix of an image file, when it has one."""
    return next((name[: -len(suffix)] for suffix in SUFFIXES if name.lower().endswith(suffix)), name)


def check_ids(ids: Sequence[str]) -> None:
    """Refuse ids that would name a file outside the folder they are joined to.

    Raises:
        ArtifactError: an absolute path, or one with a `..` in it.
    """
    for each in ids:
        path = PureWindowsPath(each)  # takes both kinds of slash
        if path.root or ".." in path.parts or "\0" in each:
            raise ArtifactError(
                f"The id {each!r} leaves the dataset's folder, so it is refused: ids are paths below that folder. "
                "Make the coreset again with `dcprune select`."
            )
