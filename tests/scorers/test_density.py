from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from dcprune.artifacts import Embeddings
from dcprune.scorers.density import Density
from dcprune.testing import check_scorer, gaussian_embeddings, scoring_context


@pytest.mark.parametrize("settings", [{}, {"num_neighbours": 1}, {"num_neighbours": 1000}])
def test_contract(settings: dict[str, object]) -> None:
    check_scorer(Density, settings=settings)


@pytest.mark.parametrize("num_neighbours", [1, 5])
def test_scores_are_the_distances_of_scikit_learn(num_neighbours: int) -> None:
    from sklearn.neighbors import NearestNeighbors

    embeddings = gaussian_embeddings(300)
    scores = Density(num_neighbours).score(embeddings, scoring_context())
    for _, rows in embeddings.classes():
        values = embeddings.embeddings[rows].astype(np.float64)
        distances, _ = NearestNeighbors(n_neighbors=num_neighbours).fit(values).kneighbors()
        np.testing.assert_allclose(scores[rows], distances[:, -1], rtol=1e-9)


def test_small_classes_take_what_neighbours_there_are(embedded: Callable[..., Embeddings]) -> None:
    values = np.array([[0, 0], [3, 4], [7, 7], [0, 1], [9, 9]], dtype=np.float32)
    labels = np.array([0, 0, 2, 0, 3], dtype=np.int64)
    scores = Density(5).score(embedded(values, labels), scoring_context())
    np.testing.assert_allclose(scores, [5, 5, 0, np.sqrt(18), 0])


def test_an_outlier_scores_highest(embedded: Callable[..., Embeddings]) -> None:
    values = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    values[17] += 20
    assert int(Density().score(embedded(values), scoring_context()).argmax()) == 17
