"""k-center and herding pick what their plain loops pick."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dcprune.artifacts import Embeddings, Rows
from dcprune.plugins import registry
from dcprune.scorers.herding import Herding
from dcprune.scorers.k_center import KCenter
from dcprune.testing import gaussian_embeddings, scoring_context


def farthest_first(values: NDArray[np.float64], count: int) -> list[int]:
    picks = [int(np.argmin(((values - values.mean(axis=0)) ** 2).sum(axis=1)))]
    distances = ((values - values[picks[0]]) ** 2).sum(axis=1)
    while len(picks) < count:
        distances[picks] = -1
        picks.append(int(np.argmax(distances)))
        distances = np.minimum(distances, ((values - values[picks[-1]]) ** 2).sum(axis=1))
    return picks


def herded(values: NDArray[np.float64], count: int) -> list[int]:
    picks: list[int] = []
    while len(picks) < count:
        means = (values[picks].sum(axis=0) + values) / (len(picks) + 1)
        residuals = ((means - values.mean(axis=0)) ** 2).sum(axis=1)
        residuals[picks] = np.inf
        picks.append(int(np.argmin(residuals)))
    return picks


def of(values: NDArray[np.floating]) -> Embeddings:
    embeddings = gaussian_embeddings(len(values), num_classes=0, dim=values.shape[1])
    return replace(embeddings, embeddings=Rows([values.astype(np.float32)]))


def order(name: str, embeddings: Embeddings, ratio: float = 1.0, **settings: int) -> list[int]:
    scores = registry().create("scorer", name, settings).score(embeddings, scoring_context(ratio=ratio))
    assert sorted(np.unique(scores)) == sorted(np.arange(len(scores)) / len(scores))
    return [int(row) for row in np.argsort(scores)]


RNG = np.random.default_rng(0)
CASES = {
    "independent": RNG.normal(size=(500, 24)),
    "far from the origin": RNG.normal(size=(300, 12)) + 500,
    "clusters": RNG.normal(size=(400, 8)) * 0.01 + RNG.normal(size=(10, 8))[RNG.integers(0, 10, 400)],
    "tiny": RNG.normal(size=(200, 6)) * 1e-25,
    "huge": RNG.normal(size=(200, 6)) * 1e25,
    "two": RNG.normal(size=(2, 3)),
    "one": RNG.normal(size=(1, 3)),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("candidates", [1, 7, 384])
def test_k_center_is_the_plain_loop(case: str, candidates: int) -> None:
    embeddings = of(CASES[case])
    values = embeddings.embeddings[:].astype(np.float64)
    count = max(1, len(values) // 3)
    assert order("k-center", embeddings, ratio=1 / 3, candidates=candidates)[:count] == farthest_first(values, count)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("threads", [1, 3])
def test_herding_is_the_plain_loop(case: str, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    embeddings = of(CASES[case])
    values = embeddings.embeddings[:].astype(np.float64)
    count = max(1, len(values) // 3)
    assert order("herding", embeddings, ratio=1 / 3)[:count] == herded(values, count)


def test_equals_go_by_their_index() -> None:
    grid = np.random.default_rng(1).integers(0, 3, (300, 4)).astype(np.float64)
    embeddings = of(grid)
    distinct = len(np.unique(grid, axis=0))
    for candidates in (1, 20):
        assert order("k-center", embeddings, candidates=candidates)[:distinct] == farthest_first(grid, distinct)
    balanced = np.concatenate([grid - 1, 1 - grid])  # whose mean is zero, without rounding
    assert order("herding", of(balanced), ratio=0.2)[:120] == herded(balanced, 120)


@pytest.mark.parametrize("name", ["k-center", "herding"])
def test_identical_samples(name: str) -> None:
    assert order(name, of(np.full((50, 3), 0.7))) == list(range(50))
    values = np.random.default_rng(0).normal(size=(60, 3))
    values[20:] = values[20]
    assert sorted(order(name, of(values), ratio=0.5)) == list(range(60))


@pytest.mark.parametrize("name", ["k-center", "herding"])
def test_a_smaller_choice_is_the_start_of_a_larger_one(name: str) -> None:
    embeddings = of(CASES["independent"])
    small, large = order(name, embeddings, ratio=0.1), order(name, embeddings, ratio=0.4)
    assert small[:50] == large[:50]


def test_k_center_covers_within_twice_the_best_radius_of_any_choice() -> None:
    values = CASES["clusters"]
    chosen = order("k-center", of(values), ratio=0.025)[:10]
    radius = np.sqrt(((values[:, None] - values[chosen]) ** 2).sum(-1)).min(1).max()
    assert radius < 0.2  # ten clusters, one pick in each


def test_herding_keeps_the_mean() -> None:
    embeddings = of(CASES["independent"])
    values = embeddings.embeddings[:].astype(np.float64)
    kept = order("herding", embeddings, ratio=0.1)[:50]
    random = [np.random.default_rng(seed).permutation(500)[:50] for seed in range(20)]
    error = np.linalg.norm(values[kept].mean(0) - values.mean(0))
    assert error < 0.2 * min(np.linalg.norm(values[rows].mean(0) - values.mean(0)) for rows in random)


def test_both_are_greedy_orders_of_a_class() -> None:
    assert (KCenter.keep, KCenter.per_class, Herding.keep, Herding.per_class) == ("order", True, "order", True)
