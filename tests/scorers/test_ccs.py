from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from dcprune.artifacts import Embeddings
from dcprune.scorers.ccs import Ccs
from dcprune.selection import select_rows
from dcprune.testing import check_scorer, gaussian_embeddings, scoring_context


@pytest.mark.parametrize("settings", [{}, {"beta": 0.5, "num_strata": 3}, {"beta": 0}])
def test_contract(settings: dict[str, object]) -> None:
    check_scorer(Ccs, settings=settings)


def margins(embeddings: Embeddings) -> NDArray[np.float64]:
    """Difficulty with the whole table of distances."""
    values = embeddings.embeddings[:].astype(np.float64)
    labels = np.zeros(len(values), dtype=np.int64) if embeddings.labels is None else embeddings.labels
    present = np.unique(labels)
    means = np.stack([values[labels == label].mean(axis=0) for label in present])
    halves = np.square(values[:, None] - means).sum(axis=2) / 2
    own = np.searchsorted(present, labels)
    others = halves.copy()
    others[np.arange(len(values)), own] = np.inf
    difficulty: NDArray[np.float64] = halves[np.arange(len(values)), own]
    return difficulty - others.min(axis=1) if len(present) > 1 else difficulty


def budgets_by_the_book(sizes: NDArray[np.int64], total: int) -> NDArray[np.int64]:
    """The paper's budget of every stratum: the smallest first, an even share of what is left."""
    budgets = np.zeros_like(sizes)
    order = np.argsort(sizes, kind="stable")
    for position, stratum in enumerate(order):
        budgets[stratum] = min(int(sizes[stratum]), total // (len(order) - position))
        total -= int(budgets[stratum])
    return budgets


@pytest.mark.parametrize("beta", [0.0, 0.2])
@pytest.mark.parametrize("total", [11, 60, 120, 320])
def test_every_stratum_gets_the_papers_budget(beta: float, total: int) -> None:
    embeddings = gaussian_embeddings(400, num_classes=0)
    difficulty = margins(embeddings)
    scores = Ccs(beta, 20).score(embeddings, scoring_context())
    kept = select_rows(scores, None, embeddings.indices, keep=Ccs.keep, scope="class", total=total, seed=0)
    rest = np.sort(difficulty)[: round(400 * (1 - beta))]
    edges = np.linspace(rest[0], rest[-1], 21)
    sizes, _ = np.histogram(rest, edges)
    counts, _ = np.histogram(difficulty[kept], edges)
    assert counts.sum() == total
    np.testing.assert_array_equal(counts, budgets_by_the_book(sizes, total))


def test_without_the_cut_the_strata_give_what_the_policy_gives() -> None:
    embeddings = gaussian_embeddings(400, num_classes=0)
    difficulty = margins(embeddings)
    scores = Ccs(beta=0).score(embeddings, scoring_context())
    edges = np.linspace(difficulty.min(), difficulty.max(), 51)
    for total in (40, 170):
        kept, stratified = (
            select_rows(values, None, embeddings.indices, keep=keep, scope="class", total=total, seed=0)
            for values, keep in ((scores, Ccs.keep), (difficulty, "stratified"))
        )
        counts, expected = (np.histogram(difficulty[rows], edges)[0] for rows in (kept, stratified))
        np.testing.assert_array_equal(counts, expected)


def test_difficulty_is_the_margin_between_class_means(embedded: Callable[..., Embeddings]) -> None:
    """With as many strata as it takes to tell all samples apart and without draws, the order shows the margins."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), [40, 30, 20, 10])
    values = rng.normal(0, 2, (4, 6))[labels] + rng.normal(size=(100, 6))
    embeddings = embedded(values.astype(np.float32), labels)
    scores = Ccs(beta=0.999).score(embeddings, scoring_context())
    difficulty = margins(embeddings)
    for label in range(4):
        rows = np.flatnonzero(labels == label)
        np.testing.assert_array_equal(np.argsort(scores[rows]), np.argsort(difficulty[rows]))


def test_mislabelled_samples_go_last(embedded: Callable[..., Embeddings]) -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 60)
    values = (10 * np.eye(3)[labels] + rng.normal(size=(180, 3))).astype(np.float32)
    wrong = np.array([5, 17, 70, 133])
    labels[wrong] = (labels[wrong] + 1) % 3
    scores = Ccs(beta=0.05).score(embedded(values, labels), scoring_context())
    assert (scores[wrong] > 0.95).all()


def test_draws_depend_on_the_seed_alone() -> None:
    embeddings = gaussian_embeddings(300)
    one, same, other = (Ccs().score(embeddings, scoring_context(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


@pytest.mark.parametrize("scope", ["class", "global"])
def test_a_class_keeps_its_share(scope: str) -> None:
    labels = np.repeat(np.arange(3), [200, 100, 60]).astype(np.int64)
    embeddings = gaussian_embeddings(360, labels=labels)
    scores = Ccs().score(embeddings, scoring_context())
    kept = select_rows(
        scores,
        labels,
        embeddings.indices,
        keep=Ccs.keep,
        scope=scope,  # type: ignore[arg-type]
        total=90,
        seed=0,
    )
    np.testing.assert_array_equal(np.bincount(labels[kept]), [50, 25, 15])
