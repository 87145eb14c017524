from __future__ import annotations

import math

import numpy as np
import pytest

from dcprune.api.coresets import score, select
from dcprune.errors import ArtifactError, OptionError, UnknownName
from dcprune.selection import KEEP_POLICIES, class_budgets, select_rows, total_budget
from dcprune.testing import gaussian_embeddings


@pytest.mark.parametrize("seed", range(20))
def test_budgets_are_exact_proportional_and_at_least_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 300, rng.integers(1, 40))
    ratio = float(rng.uniform(0.02, 1))
    total = total_budget(int(counts.sum()), ratio, None)
    budgets = class_budgets(counts, total)
    assert budgets.sum() == max(total, len(counts))
    assert (budgets >= 1).all()
    assert (budgets <= counts).all()
    if total >= 2 * len(counts):
        assert np.abs(budgets - np.maximum(1, counts * ratio)).max() <= 2


def test_the_total_rounds_halves_up() -> None:
    assert [total_budget(10, ratio, None) for ratio in (0.05, 0.14, 0.15, 0.25, 1.0)] == [1, 1, 2, 3, 10]


@pytest.mark.parametrize("ratio", [0, -0.1, 1.5, math.nan, math.inf])
def test_ratios_outside_the_range_are_refused(ratio: float) -> None:
    with pytest.raises(OptionError, match="--ratio"):
        select(gaussian_embeddings(), "random", ratio=ratio)


def test_ratio_and_num_exclude_each_other() -> None:
    for ratio, num in ((None, None), (0.5, 3)):
        with pytest.raises(OptionError, match="either"):
            total_budget(10, ratio, num)
    for num in (0, -1, 121):
        with pytest.raises(OptionError, match="--num"):
            select(gaussian_embeddings(), "random", num=num)
    with pytest.raises(OptionError, match="fewer than the 3 classes"):
        select(gaussian_embeddings(), "random", num=2)
    assert select(gaussian_embeddings(), "random", num=2, scope="global").num_selected == 2


@pytest.mark.parametrize("policy", sorted(KEEP_POLICIES))
@pytest.mark.parametrize("scope", ["class", "global"])
def test_the_choice_follows_the_samples_not_the_rows(policy: str, scope: str) -> None:
    rng = np.random.default_rng(0)
    scores = rng.integers(-4, 5, 200).astype(np.float64)  # many ties
    labels, indices = rng.integers(0, 4, 200), rng.permutation(1000)[:200]
    options = {"keep": policy, "scope": scope, "total": 51, "seed": 3}
    kept = indices[select_rows(scores, labels, indices, **options)]  # type: ignore[arg-type]
    order = rng.permutation(200)
    again = select_rows(scores[order], labels[order], indices[order], **options)  # type: ignore[arg-type]
    assert np.array_equal(kept, indices[order][again])
    assert np.array_equal(kept, np.unique(kept))
    assert len(kept) == 51


def test_policies_keep_what_they_say() -> None:
    scores = np.array([5.0, -1.0, 3.0, 0.0, 4.0, 3.0, -6.0])
    rows = np.arange(7)

    def kept(policy: str, total: int) -> list[int]:
        chosen = select_rows(scores, None, rows, keep=policy, scope="class", total=total, seed=0)
        return [int(row) for row in chosen]

    assert kept("highest", 3) == [0, 2, 4]  # row 2 goes before row 5, its equal
    assert kept("lowest", 2) == [1, 6]
    assert kept("nearest", 2) == [1, 3]
    assert kept("median-window", 3) == [2, 3, 5]
    assert kept("median-window", 2) == [2, 3]
    assert len(set(kept("random", 4))) == 4


def test_the_median_window_is_the_published_one() -> None:
    """Moderate-DS keeps sorted positions from n (1/2 - r/2) to n (1/2 + r/2)."""
    scores = np.random.default_rng(0).normal(size=100)
    rows = select_rows(scores, None, np.arange(100), keep="median-window", scope="class", total=20, seed=0)
    assert set(rows.tolist()) == set(np.argsort(scores)[round(100 * 0.4) : round(100 * 0.6)].tolist())


def test_scope_class_keeps_the_ratio_of_every_class() -> None:
    labels = np.repeat([0, 1, 2], [100, 50, 10]).astype(np.int64)
    embeddings = gaussian_embeddings(160, labels=labels)
    assert list(select(embeddings, "gaussian", ratio=0.2).class_counts.values()) == [20, 10, 2]
    assert select(embeddings, "gaussian", ratio=0.2, scope="global").num_selected == 32


def test_class_less_data_is_one_class() -> None:
    coreset = select(gaussian_embeddings(num_classes=0), "moderate", ratio=0.1)
    assert (coreset.num_selected, coreset.class_counts) == (12, {})


def test_scores_and_inline_scoring_agree() -> None:
    embeddings = gaussian_embeddings()
    inline = select(embeddings, "gaussian", ratio=0.3)
    through_scores = select(score(embeddings, "gaussian"), ratio=0.3)
    assert inline.indices == through_scores.indices
    assert inline.selection == through_scores.selection


def test_what_does_not_fit_together_is_refused() -> None:
    embeddings = gaussian_embeddings()
    with pytest.raises(ArtifactError, match="scorer"):
        select(embeddings, ratio=0.2)
    with pytest.raises(ArtifactError, match="scores were given"):
        select(score(embeddings, "random"), "moderate", ratio=0.2)
    with pytest.raises(OptionError, match="--scorer"):
        select(score(embeddings, "random"), ratio=0.2, settings={"centre": "mean"})
    with pytest.raises(UnknownName, match="Did you mean 'highest'"):
        select(embeddings, "random", ratio=0.2, keep="higest")
    with pytest.raises(UnknownName, match="Did you mean 'moderate'"):
        select(embeddings, "moderat", ratio=0.2)
