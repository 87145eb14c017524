"""Distance to the k-th nearest sample of the class."""

from __future__ import annotations

from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from dcprune.artifacts import Embeddings
from dcprune.interfaces import ScoringContext
from dcprune.neighbours import nearest_neighbours


class Density:
    """K-nearest-neighbour distance, a scoring function of instance selection (DeVries et al., NeurIPS 2020).

    score = ||z - z_(k)||, z_(k) the k-th nearest other sample of the same class; low is dense. The lowest scores are
    kept: outliers go first. A class of n <= k samples takes its farthest one, a class of one sample scores 0.

    Exact, class by class: 2 n^2 D operations for a class of n samples, in blocks; no n x n matrix is held.

    Args:
        num_neighbours: k.
    """

    keep: ClassVar[str] = "lowest"
    per_class: ClassVar[bool] = True

    def __init__(self, num_neighbours: Annotated[int, Field(ge=1)] = 5) -> None:
        self.num_neighbours = num_neighbours

    def score(self, embeddings: Embeddings, context: ScoringContext) -> NDArray[np.float64]:
        """Scores float64 [N]: Euclidean distances; see `dcprune.interfaces.Scorer`."""
        scores = np.zeros(len(embeddings.embeddings))
        with context.progress.task("nearest neighbours", len(scores), "samples") as task:
            for _, rows in embeddings.classes():
                found = nearest_neighbours(embeddings.embeddings.take(rows), self.num_neighbours, device=context.device)
                if len(rows) > 1:
                    scores[rows] = found.distances[:, -1]
                task.advance(len(rows))
        return scores
