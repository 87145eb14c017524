"""Uniform random scores: the baseline of every table."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from dcprune.artifacts import Embeddings
from dcprune.interfaces import ScoringContext


class Random:
    """Independent uniform scores in [0, 1).

    A sample's score depends on the seed and its index alone, not on the order or the sharding of the embeddings. With
    scope `class` this is the uniform random baseline of Li et al. (arXiv 2409.19128, Table I).
    """

    keep: ClassVar[str] = "highest"
    per_class: ClassVar[bool] = False

    def score(self, embeddings: Embeddings, context: ScoringContext) -> NDArray[np.float64]:
        """Scores float64 [N]; see `dcprune.interfaces.Scorer`."""
        return context.generator().random(embeddings.dataset.num_samples)[embeddings.indices]
