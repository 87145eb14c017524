"""Datasets whose decoded images fit into memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dcprune.errors import DatasetError
from dcprune.interfaces import DatasetRequest


class ArraySource:
    """A `DatasetSource` around one array of images of one size.

    Args:
        uri: what a user types to get this dataset again.
        split: the split.
        images: uint8 [N, H, W, C], C = 1 or 3.
        labels: integers [N] in [0, K), or None for class-less data.
        class_names: K distinct names in label order.
        ids: N distinct strings, or None when the id is the index.

    Raises:
        DatasetError: images and labels do not go together.
    """

    captions = None
    encoded = False
    streaming = False

    def __init__(
        self,
        uri: str,
        split: str,
        images: NDArray[np.uint8],
        labels: NDArray[np.integer] | None,
        class_names: Sequence[str],
        ids: Sequence[str] | None = None,
    ) -> None:
        if images.ndim != 4 or images.dtype != np.uint8 or images.shape[3] not in (1, 3) or len(images) == 0:
            raise DatasetError(f"{uri}: images {images.shape} of {images.dtype}, not uint8 [N, H, W, 1 or 3].")
        if labels is not None and (len(labels) != len(images) or labels.min() < 0 or labels.max() >= len(class_names)):
            raise DatasetError(f"{uri}: the labels do not fit {len(images)} images of {len(class_names)} classes.")
        self.uri = uri
        self.split = split
        self.class_names = tuple(class_names)
        self.labels = None if labels is None else labels.astype(np.int64)
        self.ids = ids
        self.sizes = np.full(len(images), images[0].size, dtype=np.int64)
        self.array = images

    def __len__(self) -> int:
        return len(self.array)

    def image(self, index: int) -> NDArray[np.uint8]:
        """One image, uint8 [H, W, C]."""
        image: NDArray[np.uint8] = self.array[index]
        return image

    def content(self, index: int) -> bytes:
        """The pixels of one image, row by row."""
        return self.image(index).tobytes()


def check_split(request: DatasetRequest, splits: Sequence[str]) -> str:
    """The split that was asked for.

    Raises:
        DatasetError: the dataset does not have it.
    """
    if request.split not in splits:
        raise DatasetError(f"{request.name} has no split {request.split!r}. Splits: {', '.join(splits)}.")
    return request.split
