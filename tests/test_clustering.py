from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from dcprune import clustering
from dcprune.artifacts import Rows
from dcprune.clustering import KMeans, cluster_samples, kmeans
from dcprune.datasets.fashion_mini import FashionMini
from dcprune.errors import ArtifactError, OptionError
from dcprune.interfaces import DatasetRequest
from dcprune.testing import gaussian_embeddings, scoring_context


@pytest.fixture(scope="module")
def pixels() -> NDArray[np.float32]:
    """Fashion-mini as float32 [4000, 784] in [0, 1]."""
    images = FashionMini(DatasetRequest("fashion-mini")).array
    return (images.reshape(len(images), -1) / 255).astype(np.float32)


def blobs(num: int = 300, dim: int = 6, seed: int = 0) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    values: NDArray[np.float64] = rng.normal(0, 5, (7, dim))[rng.integers(0, 7, num)] + rng.normal(size=(num, dim))
    return values.astype(np.float32)


def clustered(values: NDArray[np.float32], num_clusters: int, seed: int = 0, *, spherical: bool = False) -> KMeans:
    return kmeans(Rows([values]), num_clusters, generator=np.random.default_rng(seed), spherical=spherical)


def assert_same(one: KMeans, other: KMeans) -> None:
    np.testing.assert_array_equal(one.labels, other.labels)
    np.testing.assert_array_equal(one.centroids, other.centroids)
    np.testing.assert_array_equal(one.distances, other.distances)
    assert one.inertia == other.inertia


@pytest.mark.parametrize("num_clusters", [5, 40])
def test_inertia_is_that_of_scikit_learn_on_images(pixels: NDArray[np.float32], num_clusters: int) -> None:
    from sklearn.cluster import KMeans as Reference

    seeds = range(3)
    ours = [clustered(pixels, num_clusters, seed).inertia for seed in seeds]
    theirs = [Reference(num_clusters, n_init=1, random_state=seed).fit(pixels).inertia_ for seed in seeds]
    assert np.mean(ours) < 1.02 * np.mean(theirs)


def test_finds_the_same_partition_as_scikit_learn_where_it_is_clear() -> None:
    from sklearn.cluster import KMeans as Reference
    from sklearn.metrics import adjusted_rand_score

    rng = np.random.default_rng(0)
    values = (np.repeat(100 * np.eye(5), 30, axis=0) + rng.normal(size=(150, 5))).astype(np.float32)
    ours, theirs = clustered(values, 5), Reference(5, n_init=4, random_state=0).fit(values)
    assert adjusted_rand_score(ours.labels, theirs.labels_) == 1
    assert ours.inertia == pytest.approx(theirs.inertia_, rel=1e-6)


@pytest.mark.parametrize("shift", [0, 1000])
def test_labels_and_distances_belong_to_the_centroids(shift: int) -> None:
    values = blobs() + np.float32(shift)
    found = clustered(values, 9)
    table = np.linalg.norm(values[:, None].astype(np.float64) - found.centroids.astype(np.float64), axis=2)
    np.testing.assert_array_equal(found.labels, table.argmin(axis=1))
    np.testing.assert_allclose(found.distances, table.min(axis=1), rtol=1e-12)
    assert found.inertia == pytest.approx(np.square(table.min(axis=1)).sum())
    means = [values[found.labels == label].mean(axis=0, dtype=np.float64) for label in range(9)]
    np.testing.assert_allclose(found.centroids, means, rtol=1e-6, atol=0.05)


def test_spherical_clusters_are_directions() -> None:
    values = blobs()
    found = clustered(values, 6, spherical=True)
    cosines = values @ found.centroids.T / np.linalg.norm(values, axis=1, keepdims=True)
    np.testing.assert_allclose(np.linalg.norm(found.centroids, axis=1), 1, rtol=1e-6)
    np.testing.assert_array_equal(found.labels, cosines.argmax(axis=1))
    np.testing.assert_allclose(found.distances, 1 - cosines.max(axis=1), atol=1e-6)
    lengths = np.random.default_rng(1).uniform(0.1, 10, (len(values), 1)).astype(np.float32)
    np.testing.assert_array_equal(clustered(values * lengths, 6, spherical=True).labels, found.labels)


def test_a_row_of_zeros_has_no_direction() -> None:
    values = blobs()
    values[[3, 8]] = 0
    found = clustered(values, 6, spherical=True)
    assert np.isfinite(found.centroids).all()
    np.testing.assert_array_equal(found.distances[[3, 8]], 1)
    np.testing.assert_array_equal(found.labels[[3, 8]], 0)


@pytest.mark.parametrize("spherical", [False, True])
def test_the_result_does_not_depend_on_the_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, spherical: bool
) -> None:
    monkeypatch.setattr(clustering, "_BLOCK_BYTES", 4 * 6 * 50)
    values = blobs()
    mapped = np.memmap(tmp_path / "rows", dtype=np.float32, mode="w+", shape=values.shape)
    mapped[:] = values
    whole = clustered(values, 8, spherical=spherical)
    for parts in ([values[:1], values[1:120], values[120:]], [mapped[:77], mapped[77:]]):
        sharded = kmeans(Rows(parts), 8, generator=np.random.default_rng(0), spherical=spherical)
        assert_same(whole, sharded)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_rows_are_clustered_as_the_numbers_that_they_hold(dtype: str) -> None:
    values = blobs()
    bits = (values.view(np.uint32) >> 16).astype(np.uint16)
    stored = bits if dtype == "bfloat16" else values.astype(np.float16)
    rows = Rows([stored[:40], stored[40:]], dtype)
    assert_same(kmeans(rows, 8, generator=np.random.default_rng(0)), clustered(rows[:], 8))


def test_row_index_chooses_and_orders_the_rows() -> None:
    values = blobs()
    index = np.random.default_rng(3).permutation(300)[:120].astype(np.int64)
    chosen = kmeans(Rows([values]), 5, generator=np.random.default_rng(0), row_index=index)
    assert_same(chosen, clustered(values[index], 5))


def test_samples_are_clustered_whatever_their_order() -> None:
    embeddings = gaussian_embeddings(300)
    order = np.random.default_rng(4).permutation(300)
    straight = cluster_samples(embeddings, 9, scoring_context(5))
    stored = replace(
        embeddings,
        embeddings=Rows([embeddings.embeddings[order]]),
        labels=None,
        indices=embeddings.indices[order],
        dataset=gaussian_embeddings(300, num_classes=0).dataset,
    )
    shuffled = cluster_samples(stored, 9, scoring_context(5))
    np.testing.assert_array_equal(shuffled.centroids, straight.centroids)
    np.testing.assert_array_equal(shuffled.labels, straight.labels[order])
    np.testing.assert_array_equal(shuffled.distances, straight.distances[order])


def test_the_seed_decides() -> None:
    values = blobs()
    assert_same(clustered(values, 20, seed=1), clustered(values, 20, seed=1))
    assert not np.array_equal(clustered(values, 20, seed=1).centroids, clustered(values, 20, seed=2).centroids)


def test_a_subsample_starts_what_all_rows_finish(monkeypatch: pytest.MonkeyPatch, pixels: NDArray[np.float32]) -> None:
    whole = clustered(pixels, 10)
    monkeypatch.setattr(clustering, "_SUBSAMPLE_BYTES", 4 * pixels.shape[1] * 500)
    started = clustered(pixels, 10)
    table = np.square(pixels[:, None] - started.centroids).sum(axis=2)
    assert np.mean(table.argmin(axis=1) == started.labels) > 0.999
    assert started.inertia < 1.03 * whole.inertia


def test_a_pass_never_raises_the_inertia(pixels: NDArray[np.float32]) -> None:
    inertias = [
        kmeans(Rows([pixels]), 12, generator=np.random.default_rng(0), max_iter=passes).inertia
        for passes in (1, 2, 5, 20)
    ]
    assert inertias == sorted(inertias, reverse=True)


def test_there_are_no_more_clusters_than_distinct_rows() -> None:
    values = np.repeat(blobs(6), 20, axis=0)
    found = clustered(values, 50)
    assert len(found.centroids) == 6
    assert len(np.unique(found.labels)) == 6
    np.testing.assert_allclose(found.distances, 0, atol=1e-5)
    assert len(clustered(np.full((30, 4), 7, dtype=np.float32), 3).centroids) == 1
    assert len(clustered(np.zeros((30, 4), dtype=np.float32), 3, spherical=True).centroids) == 1


def test_as_many_clusters_as_distinct_rows_are_found_beside_a_heap_of_duplicates() -> None:
    values = np.concatenate([np.zeros((500, 6), dtype=np.float32), blobs(12)])
    found = clustered(values, 13)
    assert len(found.centroids) == 13
    np.testing.assert_allclose(found.distances, 0, atol=1e-5)


def test_one_row_is_one_cluster() -> None:
    found = clustered(blobs(1), 4)
    np.testing.assert_array_equal(found.labels, [0])
    np.testing.assert_allclose(found.distances, 0)


def test_an_empty_cluster_moves_to_the_farthest_row() -> None:
    """From centroids at 0 and far outside, where nothing is nearest."""
    values = np.array([[0.0], [1.0], [2.0], [50.0]], dtype=np.float32)
    lloyd = clustering._Lloyd(
        spherical=False, max_iter=20, tol=0, device=clustering._CPU, progress=scoring_context().progress
    )
    points = clustering._Points(Rows([values]))
    centroids = lloyd.run(points, np.array([[0.0], [-1e6], [-2e6]]), "test")
    found = lloyd.finish(points, centroids)
    assert len(found.centroids) == 3
    assert found.inertia == pytest.approx(0.5)


@pytest.mark.parametrize(("num_clusters", "max_iter", "num"), [(0, 5, 9), (-1, 5, 9), (3, 0, 9), (3, 5, 0)])
def test_refuses_what_makes_no_sense(num_clusters: int, max_iter: int, num: int) -> None:
    index = np.arange(num, dtype=np.int64)
    with pytest.raises(OptionError, match="K-means"):
        kmeans(Rows([blobs(9)]), num_clusters, generator=np.random.default_rng(0), row_index=index, max_iter=max_iter)


def test_refuses_values_whose_squares_overflow() -> None:
    with pytest.raises(ArtifactError, match="overflow"):
        clustered(blobs() * np.float32(1e25), 3)
