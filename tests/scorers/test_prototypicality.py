from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from dcprune.artifacts import Embeddings
from dcprune.scorers.prototypicality import Prototypicality
from dcprune.testing import check_scorer, gaussian_embeddings, scoring_context


@pytest.mark.parametrize("settings", [{}, {"num_clusters": 1}, {"num_clusters": 100}])
def test_contract(settings: dict[str, object]) -> None:
    check_scorer(Prototypicality, settings=settings)


def test_one_prototype_is_the_mean_direction() -> None:
    embeddings = gaussian_embeddings(300)
    units = embeddings.embeddings[:].astype(np.float64)
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    mean = units.mean(axis=0)
    scores = Prototypicality(1).score(embeddings, scoring_context())
    np.testing.assert_allclose(scores, 1 - units @ (mean / np.linalg.norm(mean)), rtol=1e-6)


def test_clear_clusters_have_their_means_as_prototypes(embedded: Callable[..., Embeddings]) -> None:
    rng = np.random.default_rng(0)
    values = (np.repeat(np.eye(5), 20, axis=0) + 0.05 * rng.normal(size=(100, 5))).astype(np.float32)
    units = values / np.linalg.norm(values, axis=1, keepdims=True)
    means = np.repeat(units.reshape(5, 20, 5).mean(axis=1), 20, axis=0)
    expected = 1 - (units * means).sum(axis=1) / np.linalg.norm(means, axis=1)
    scores = Prototypicality(5).score(embedded(values), scoring_context())
    np.testing.assert_allclose(scores, expected, atol=1e-6)


def test_the_length_of_an_embedding_does_not_matter(embedded: Callable[..., Embeddings]) -> None:
    values = gaussian_embeddings(200).embeddings[:]
    lengths = np.random.default_rng(0).uniform(0.1, 9, (200, 1)).astype(np.float32)
    scores = [Prototypicality(7).score(embedded(each), scoring_context()) for each in (values, values * lengths)]
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-6)
