"""`pseudo:FILE`: a dataset whose classes are clusters of its embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dcprune import formats
from dcprune.errors import DatasetError
from dcprune.interfaces import DatasetRequest
from dcprune.sources import open_for


class PseudoClasses:
    """The dataset that was clustered, with the labels of FILE in place of its own; the rest is the dataset's.

    FILE is what `dcprune embed --pseudo-classes K` wrote. Where it is not found, it is looked for in the data
    folder, by its path and by its name.

    Raises:
        MissingInput: no such file, or the dataset is not there.
        ArtifactError: not a file of pseudo-classes.
        DatasetError: another split than the one that was clustered, or FILE stands for itself.
        DatasetMismatch: the dataset is not the one that was clustered.
    """

    def __init__(self, request: DatasetRequest) -> None:
        named = Path(request.location).expanduser()
        places = (named, request.data_dir / named, request.data_dir / named.name)
        path = next((place for place in places if place.exists()), named)
        classes = formats.read_classes(path)
        if request.split != classes.dataset.split:
            raise DatasetError(
                f"{str(path)!r} holds classes of the split {classes.dataset.split!r}; the split {request.split!r} has "
                "none. Embed it with --pseudo-classes of its own."
            )
        self.uri = f"{request.name}:{request.location}"
        if classes.dataset.uri == self.uri:
            raise DatasetError(f"{str(path)!r} was written over the classes that it was made from: make it again.")
        self.base = open_for(classes.dataset, data_dir=request.data_dir, download=request.download)
        self.split = request.split
        self.class_names = classes.class_names
        self.labels = classes.labels
        self.sizes = self.base.sizes
        self.encoded = self.base.encoded
        self.streaming = self.base.streaming

    @property
    def ids(self) -> Sequence[str] | None:
        return self.base.ids

    @property
    def captions(self) -> Sequence[str] | None:
        return self.base.captions

    @property
    def array(self) -> NDArray[np.uint8] | None:
        return self.base.array

    def __len__(self) -> int:
        return len(self.base)

    def image(self, index: int) -> NDArray[np.uint8]:
        """See `dcprune.interfaces.DatasetSource`."""
        return self.base.image(index)

    def content(self, index: int) -> bytes:
        """See `dcprune.interfaces.DatasetSource`."""
        return self.base.content(index)
