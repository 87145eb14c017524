from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from dcprune.artifacts import Embeddings, Rows
from dcprune.testing import gaussian_embeddings

Embedded = Callable[..., Embeddings]


@pytest.fixture
def embedded() -> Embedded:
    """Embeddings around given values float32 [N, D]; labels int64 [N], none for class-less data."""

    def make(values: NDArray[np.float32], labels: NDArray[np.int64] | None = None) -> Embeddings:
        classes = 0 if labels is None else int(labels.max()) + 1
        made = gaussian_embeddings(len(values), classes, values.shape[1], labels=labels)
        return replace(made, embeddings=Rows([values]))

    return make
