from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from dcprune.artifacts import Embeddings
from dcprune.clustering import KMeans, cluster_samples
from dcprune.scorers.cluster import Cluster
from dcprune.selection import select_rows
from dcprune.testing import check_scorer, gaussian_embeddings, scoring_context

Preference = Literal["near", "mid", "far"]


def scored(embeddings: Embeddings, scorer: Cluster) -> tuple[NDArray[np.float64], KMeans]:
    """The scores, and the clusters that they rank: the same draw."""
    context = scoring_context(3)
    assert scorer.num_clusters is not None
    return scorer.score(embeddings, context), cluster_samples(embeddings, scorer.num_clusters, context)


def kept(embeddings: Embeddings, scores: NDArray[np.float64], total: int) -> set[int]:
    rows = select_rows(
        scores, embeddings.labels, embeddings.indices, keep=Cluster.keep, scope="global", total=total, seed=0
    )
    return set(rows.tolist())


@pytest.mark.parametrize(
    "settings",
    [{}, {"num_clusters": 5}, {"num_clusters": 100, "prefer": "far"}, {"prefer": "mid", "balanced": True}],
)
def test_contract(settings: dict[str, object]) -> None:
    check_scorer(Cluster, settings=settings)


@pytest.mark.parametrize("prefer", ["near", "mid", "far"])
def test_the_same_fraction_of_every_cluster_is_kept(embedded: Callable[..., Embeddings], prefer: Preference) -> None:
    """Against the published rule, cluster by cluster; sizes are chosen so that no count needs rounding."""
    rng = np.random.default_rng(0)
    centres = np.repeat(100 * np.eye(4), [20, 40, 60, 80], axis=0)
    embeddings = embedded((centres + rng.normal(size=centres.shape)).astype(np.float32))
    scores, clusters = scored(embeddings, Cluster(4, prefer))
    expected: set[int] = set()
    for label in range(4):
        rows = np.flatnonzero(clusters.labels == label)
        nearest_first = rows[np.argsort(clusters.distances[rows])]
        count = len(rows) // 5
        start = {"near": 0, "mid": (len(rows) - count) // 2, "far": len(rows) - count}[prefer]
        expected |= set(nearest_first[start : start + count].tolist())
    assert kept(embeddings, scores, 40) == expected


def test_balanced_takes_the_same_number_of_every_cluster_while_it_lasts(embedded: Callable[..., Embeddings]) -> None:
    rng = np.random.default_rng(0)
    centres = np.repeat(100 * np.eye(4), [3, 40, 60, 80], axis=0)
    embeddings = embedded((centres + rng.normal(size=centres.shape)).astype(np.float32))
    scores, clusters = scored(embeddings, Cluster(4, "far", balanced=True))
    chosen = np.array(sorted(kept(embeddings, scores, 33)))
    assert sorted(np.bincount(clusters.labels[chosen]).tolist()) == [3, 10, 10, 10]
    for label in range(4):
        inside = clusters.labels == label
        taken = np.isin(np.arange(len(inside)), chosen) & inside
        assert (
            not (inside & ~taken).any() or clusters.distances[taken].min() > clusters.distances[inside & ~taken].max()
        )


def test_every_sample_may_be_a_cluster_of_its_own() -> None:
    embeddings = gaussian_embeddings(20)
    np.testing.assert_array_equal(Cluster(500).score(embeddings, scoring_context()), 0.5)
