"""Distance to the centre of the class, the middle of which is kept."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from dcprune.artifacts import Embeddings
from dcprune.interfaces import ScoringContext

_COLUMN_BYTES = 256 << 20


class Moderate:
    """Moderate-DS (Xia et al., ICLR 2023): d_i = ||z_i - m_y||, keep the window of ranks round the median distance.

    The published code takes the coordinate-wise median as the centre m and ranks over all classes together
    (`--scope global`); Li et al. (arXiv 2409.19128) keep the same ratio of every class, the default here.
    `--keep nearest` keeps what lies nearest to the centre instead of the window.

    Args:
        centre: `median` (coordinate-wise) or `mean`.
    """

    keep: ClassVar[str] = "median-window"
    per_class: ClassVar[bool] = True

    def __init__(self, centre: Literal["median", "mean"] = "median") -> None:
        self.centre = centre

    def score(self, embeddings: Embeddings, context: ScoringContext) -> NDArray[np.float64]:
        """Scores float64 [N]: Euclidean distances; see `dcprune.interfaces.Scorer`."""
        scores = np.empty(len(embeddings.embeddings))
        for _, rows in embeddings.classes():
            centre = self._mean(embeddings, rows) if self.centre == "mean" else self._median(embeddings, rows)
            distances = [np.linalg.norm(block - centre, axis=1) for block in embeddings.embeddings.blocks(rows)]
            scores[rows] = np.concatenate(distances)
        return scores

    @staticmethod
    def _mean(embeddings: Embeddings, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        total = np.zeros(embeddings.embeddings.shape[1])
        for block in embeddings.embeddings.blocks(rows):
            total += block.sum(axis=0, dtype=np.float64)
        return total / len(rows)

    @staticmethod
    def _median(embeddings: Embeddings, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Coordinate-wise median [D], some columns at a time so that a huge class need not fit in memory."""
        width = embeddings.embeddings.shape[1]
        step = max(1, _COLUMN_BYTES // (4 * len(rows)))
        medians = []
        for first in range(0, width, step):
            columns = [block[:, first : first + step] for block in embeddings.embeddings.blocks(rows)]
            medians.append(np.median(np.concatenate(columns), axis=0).astype(np.float64))
        return np.concatenate(medians)
