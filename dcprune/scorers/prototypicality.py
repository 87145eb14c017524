"""Cosine distance to the nearest k-means centroid."""

from __future__ import annotations

from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from dcprune.artifacts import Embeddings
from dcprune.clustering import cluster_samples, default_num_clusters
from dcprune.interfaces import ScoringContext


class Prototypicality:
    """Self-supervised prototypes (Sorscher, Geirhos, Shekhar, Ganguli and Morcos, NeurIPS 2022, arXiv 2206.14486).

    score = 1 - cos(z, c), c the nearest centroid of a spherical k-means of all samples, whatever their class: low is
    prototypical, easy. The paper keeps the hard samples where data are plenty and the easy ones where they are few;
    the default keeps the easy ones (`--keep lowest`), which is also what suits generative training. `--keep highest`
    keeps the hard ones. A row of zeros has no direction, and score 1.

    Costs a k-means of all samples: 2 N K D operations a pass, memory of 16 bytes a sample, 12 K D bytes and blocks.

    Args:
        num_clusters: K; by default the number of classes (the paper's 1,000 for ImageNet), and sqrt(N / 2) for
            class-less data.
    """

    keep: ClassVar[str] = "lowest"
    per_class: ClassVar[bool] = False

    def __init__(self, num_clusters: Annotated[int, Field(ge=1)] | None = None) -> None:
        self.num_clusters = num_clusters

    def score(self, embeddings: Embeddings, context: ScoringContext) -> NDArray[np.float64]:
        """Scores float64 [N]: cosine distances in [0, 2]; see `dcprune.interfaces.Scorer`."""
        count = self.num_clusters or default_num_clusters(embeddings)
        return cluster_samples(embeddings, count, context, spherical=True).distances
