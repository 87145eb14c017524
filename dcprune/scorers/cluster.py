"""Rank within a k-means cluster: the near, the middle or the far part of every cluster is kept."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from dcprune.artifacts import Embeddings, group_by_class
from dcprune.clustering import cluster_samples, default_num_clusters
from dcprune.interfaces import ScoringContext


class Cluster:
    """Pruning by clusters for generative models (Briq, Wang and Kesselheim 2024, arXiv 2411.12523).

    K-means clusters all samples, whatever their class. Each cluster is then ordered by the Euclidean distance to its
    centroid, and the same fraction of every cluster is kept: the nearest, the farthest, or those round the middle. The
    score of the sample in place r of n, r from 0, is (r + 1/2) / n; the lowest scores are kept, at any budget.

    With `balanced` the score is r itself: every cluster gives the same number of samples until it has no more. The
    published code takes as many of each as the smallest cluster has, and its 1,000 clusters for ImageNet are the
    default's one for each class. Exactly the published selection needs `--scope global`; the default scope keeps the
    same fraction of every class, and within a class the same order.

    Costs a k-means of all samples: 2 N K D operations a pass, memory of 16 bytes a sample, 12 K D bytes and blocks.

    Args:
        num_clusters: K; by default the number of classes, and sqrt(N / 2) for class-less data.
        prefer: what is kept of a cluster.
        balanced: the same number of every cluster instead of the same fraction.
    """

    keep: ClassVar[str] = "lowest"
    per_class: ClassVar[bool] = False

    def __init__(
        self,
        num_clusters: Annotated[int, Field(ge=1)] | None = None,
        prefer: Literal["near", "mid", "far"] = "near",
        balanced: bool = False,
    ) -> None:
        self.num_clusters = num_clusters
        self.prefer = prefer
        self.balanced = balanced

    def score(self, embeddings: Embeddings, context: ScoringContext) -> NDArray[np.float64]:
        """Scores float64 [N]: places within the cluster, relative in [0, 1) or counted from 0."""
        found = cluster_samples(embeddings, self.num_clusters or default_num_clusters(embeddings), context)
        scores = np.empty(len(found.labels))
        for _, rows in group_by_class(found.labels, len(found.labels)):
            places = self._places(found.distances[rows], embeddings.indices[rows])
            scores[rows] = places if self.balanced else (places + 0.5) / len(rows)
        return scores

    def _places(self, distances: NDArray[np.float64], indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Places int64 [n] of the samples of one cluster, what is preferred first, equal ones by their index."""
        count = len(distances)
        keys = -distances if self.prefer == "far" else distances
        order = np.lexsort((indices, keys))
        if self.prefer == "mid":
            order = order[np.argsort(np.abs(np.arange(count) - (count - 1) / 2), kind="stable")]
        places = np.empty(count, dtype=np.int64)
        places[order] = np.arange(count)
        return places
