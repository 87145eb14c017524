"""An order of images that depends on the images alone, so that random subsets of them do too."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dcprune.artifacts import Rows

_BLOCK_ROWS = 2048


def order_of(rows: Rows, direction: NDArray[np.float64]) -> NDArray[np.int64]:
    """Row numbers int64 [N], ascending along a `direction` [D]: the same images come in the same order."""
    keys = np.concatenate(
        [rows[start : start + _BLOCK_ROWS].astype(np.float64) @ direction for start in range(0, len(rows), _BLOCK_ROWS)]
    )
    return np.argsort(keys, kind="stable")
