"""Some rows of a dataset, as a dataset: what is not trained on need not be decoded."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dcprune.interfaces import DatasetSource


class Subset:
    """The rows `indices` of `source`, renumbered from 0; looks like a `DatasetSource`.

    Args:
        source: the whole dataset.
        indices: int64 [n], rows of `source`.
    """

    def __init__(self, source: DatasetSource, indices: NDArray[np.int64]) -> None:
        self.source = source
        self.indices = indices
        self.uri = source.uri
        self.split = source.split
        self.class_names = source.class_names
        self.labels = None if source.labels is None else source.labels[indices]
        self.ids: Sequence[str] | None = None if source.ids is None else [source.ids[row] for row in indices]
        self.num_captioned = getattr(source, "num_captioned", 0)
        self.captions: Sequence[str] | None = None
        if source.captions is not None:
            self.captions = [source.captions[row] for row in indices]
        self.sizes = source.sizes[indices]
        self.encoded = source.encoded
        self.streaming = source.streaming

    @property
    def array(self) -> NDArray[np.uint8] | None:
        return None if self.source.array is None else self.source.array[self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def image(self, index: int) -> NDArray[np.uint8]:
        return self.source.image(int(self.indices[index]))

    def content(self, index: int) -> bytes:
        return self.source.content(int(self.indices[index]))
