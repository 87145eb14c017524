from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from dcprune.artifacts import Embeddings
from dcprune.scorers.d2 import D2
from dcprune.testing import check_scorer, gaussian_embeddings, scoring_context


@pytest.mark.parametrize("settings", [{}, {"num_neighbours": 1, "gamma_r": 1}, {"difficulty": "uniform"}])
def test_contract(settings: dict[str, object]) -> None:
    check_scorer(D2, settings=settings)


def order_by_the_book(
    values: NDArray[np.float64], num_neighbours: int, gamma_f: float, gamma_r: float, difficulty: str
) -> list[int]:
    """The paper's loop with full matrices."""
    count = len(values)
    distances = np.linalg.norm(values[:, None] - values[None], axis=2)
    nearest = np.argsort(distances + np.diag(np.full(count, np.inf)), axis=1)[:, :num_neighbours]
    edges = np.zeros((count, count), dtype=bool)
    np.put_along_axis(edges, nearest, True, axis=1)
    relative = distances / np.take_along_axis(distances, nearest, axis=1).mean()
    edges |= edges.T
    start = np.linalg.norm(values - values.mean(axis=0), axis=1) if difficulty == "distance" else np.ones(count)
    level = start + (edges * np.exp(-gamma_f * relative**2)) @ start
    back = edges * np.exp(-gamma_r * relative**2)
    chosen: list[int] = []
    while len(chosen) < count:
        level[chosen] = -np.inf
        best = int(level.argmax())
        level = level - back[best] * level[best]
        chosen.append(best)
    return chosen


@pytest.mark.parametrize(("num_neighbours", "gamma_f", "gamma_r"), [(5, 1.0, 0.1), (3, 0.5, 1.0), (10, 2.0, 0.0)])
@pytest.mark.parametrize("difficulty", ["distance", "uniform"])
def test_the_order_is_that_of_the_papers_loop(
    num_neighbours: int, gamma_f: float, gamma_r: float, difficulty: Literal["distance", "uniform"]
) -> None:
    embeddings = gaussian_embeddings(240)
    scores = D2(num_neighbours, gamma_f, gamma_r, difficulty).score(embeddings, scoring_context())
    for _, rows in embeddings.classes():
        values = embeddings.embeddings[rows].astype(np.float64)
        expected = order_by_the_book(values, num_neighbours, gamma_f, gamma_r, difficulty)
        assert np.argsort(scores[rows]).tolist() == expected
        np.testing.assert_array_equal(np.sort(scores[rows]), np.arange(len(rows)) / len(rows))


def test_the_scale_of_the_embeddings_does_not_matter(embedded: Callable[..., Embeddings]) -> None:
    values = gaussian_embeddings(150).embeddings[:]
    one, other = (D2().score(embedded(each), scoring_context()) for each in (values, values * np.float32(64)))
    np.testing.assert_array_equal(one, other)


def test_two_dense_regions_take_turns(embedded: Callable[..., Embeddings]) -> None:
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(0, 1, (40, 4)), rng.normal(30, 1, (40, 4))]).astype(np.float32)
    scores = D2(10, difficulty="uniform").score(embedded(values), scoring_context())
    first = np.argsort(scores)[:10]
    assert 3 <= (first < 40).sum() <= 7
