"""What a dataset that is not here looks like to whoever asks how long working on it would take."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dcprune.interfaces import Outline


class StandIn:
    """A `DatasetSource` of noise, of the size of a published dataset; its classes are equally large.

    Args:
        uri: of the dataset that it stands for.
        split: the split.
        outline: its size.
    """

    ids = None
    captions = None
    array = None
    encoded = False
    streaming = False

    def __init__(self, uri: str, split: str, outline: Outline) -> None:
        count, self._shape = outline.num_samples[split], outline.image_shape
        self.uri = uri
        self.split = split
        self.class_names = tuple(f"class-{label}" for label in range(outline.num_classes))
        self.labels = np.arange(count, dtype=np.int64) % outline.num_classes
        self.sizes = np.full(count, int(np.prod(self._shape)), dtype=np.int64)

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> NDArray[np.uint8]:
        """Noise, uint8 [H, W, C]; always the same for a sample."""
        return np.random.default_rng(index).integers(0, 256, self._shape, dtype=np.uint8)

    def content(self, index: int) -> bytes:
        """The pixels of one image, row by row."""
        return self.image(index).tobytes()
