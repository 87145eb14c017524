from __future__ import annotations

import math
from contextlib import AbstractContextManager

import numpy as np
import pytest

from dcprune.api.coresets import score, select, select_each
from dcprune.errors import ArtifactError, OptionError, UnknownName
from dcprune.interfaces import Task
from dcprune.plugins import registry
from dcprune.progress import SILENT
from dcprune.selection import KEEP_POLICIES, Scope, class_budgets, select_rows, total_budget
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
    assert kept("order", 3) == [1, 3, 6]
    assert kept("interval", 3) == [3, 5, 6]  # ranks 0, 2 and 4
    assert len(set(kept("random", 4))) == 4


def test_the_interval_takes_every_kth_rank() -> None:
    """D2C: ascending order of difficulty, then ranks 0, k, 2k, ... with k = floor(n / budget)."""
    scores = np.random.default_rng(0).normal(size=103)
    order = np.argsort(scores)
    for budget, step in ((10, 10), (25, 4), (34, 3), (60, 1), (103, 1), (1, 103)):
        rows = select_rows(scores, None, np.arange(103), keep="interval", scope="class", total=budget, seed=0)
        assert set(rows.tolist()) == set(order[np.arange(budget) * step].tolist())


def strata(scores: np.ndarray) -> np.ndarray:
    """Numbers 0 to 49 of the stratum of every score."""
    numbers: np.ndarray = np.clip(np.digitize(scores, np.linspace(scores.min(), scores.max(), 51)) - 1, 0, 49)
    return numbers


@pytest.mark.parametrize("total", [1, 37, 100, 350, 999, 1000])
def test_strata_share_the_budget_evenly(total: int) -> None:
    """Zheng et al. 2023, algorithm 1: no stratum that still has samples gets less than a larger one, but for one."""
    scores = np.random.default_rng(0).gamma(2.0, size=1000)
    rows = select_rows(scores, None, np.arange(1000), keep="stratified", scope="class", total=total, seed=0)
    assert len(rows) == total
    sizes = np.bincount(strata(scores), minlength=50)
    kept = np.bincount(strata(scores)[rows], minlength=50)
    open_ended = kept[kept < sizes]
    if len(open_ended):
        assert open_ended.max() - open_ended.min() <= 1
        assert kept.max() <= open_ended.min() + 1


def test_strata_are_drawn_by_the_seed() -> None:
    scores = np.random.default_rng(0).normal(size=400)
    one, same, other = (
        select_rows(scores, None, np.arange(400), keep="stratified", scope="class", total=80, seed=seed)
        for seed in (1, 1, 2)
    )
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
    equal = select_rows(np.zeros(9), None, np.arange(9), keep="stratified", scope="class", total=4, seed=0)
    assert len(equal) == 4
    extreme = np.array([-1.7e308, 0.0, 1.7e308])
    assert len(select_rows(extreme, None, np.arange(3), keep="stratified", scope="class", total=2, seed=0)) == 2


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


@pytest.mark.parametrize("scorer", ["gaussian", "k-center", "moment", "random"])
@pytest.mark.parametrize("scope", ["class", "global"])
def test_several_budgets_are_what_each_would_be_alone(scorer: str, scope: Scope) -> None:
    embeddings = gaussian_embeddings(200)
    together = select_each(embeddings, scorer, ratios=[0.4, 0.1, 0.25], scope=scope)
    apart = [select(embeddings, scorer, ratio=ratio, scope=scope) for ratio in (0.4, 0.1, 0.25)]
    assert together == apart
    numbers = select_each(embeddings, scorer, nums=[20, 80], scope=scope)
    assert [each.indices for each in numbers] == [apart[1].indices, apart[0].indices]
    assert [each.selection.budget for each in numbers] == [20, 80]


def test_scores_of_an_order_remember_how_far_it_goes() -> None:
    embeddings = gaussian_embeddings(200)
    scores = score(embeddings, "herding", ratio=0.2)
    assert select(scores, ratio=0.2).indices == select(embeddings, "herding", ratio=0.2).indices
    assert select(scores, num=40).num_selected == 40
    with pytest.raises(OptionError, match=r"order of the first 0\.2 .* 0\.3 are asked for.*--ratio 0\.3"):
        select(scores, ratio=0.3)
    assert select(scores, ratio=0.3, keep="random").num_selected == 60
    assert select(score(embeddings, "gaussian", ratio=0.2), ratio=0.3).num_selected == 60


def test_a_greedy_order_over_everything_keeps_the_fraction_of_every_class() -> None:
    labels = np.repeat([0, 1, 2], [100, 50, 10]).astype(np.int64)
    coreset = select(gaussian_embeddings(160, labels=labels), "herding", ratio=0.2, scope="global")
    assert list(coreset.class_counts.values()) == [20, 10, 2]


class Listening:
    """Silent progress that remembers warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def task(self, description: str, total: int | None, unit: str = "it") -> AbstractContextManager[Task]:
        return SILENT.task(description, total, unit)

    def note(self, message: str) -> None:
        raise AssertionError(message)

    def warn(self, message: str) -> None:
        self.warnings.append(message)


def test_less_than_one_of_a_class_is_said() -> None:
    progress = Listening()
    coreset = select(gaussian_embeddings(), "random", ratio=0.01, progress=progress)
    assert (coreset.selection.budget, coreset.num_selected) == (1, 3)
    assert len(progress.warnings) == 1
    assert "every class keeps one, 3 samples instead of 1" in progress.warnings[0]
    assert select(gaussian_embeddings(), "random", ratio=0.01, scope="global").num_selected == 1


@pytest.mark.parametrize("scorer", registry().names("scorer"))
def test_gaps_in_the_labels_and_classes_of_one(scorer: str) -> None:
    if scorer == "difficulty":
        pytest.skip("needs a trained run; see tests/scorers/test_difficulty.py")
    labels = np.array([0] * 30 + [2] + [4] * 9, dtype=np.int64)
    embeddings = gaussian_embeddings(40, num_classes=6, labels=labels)
    coreset = select(embeddings, scorer, ratio=0.2)
    assert list(coreset.class_counts.values()) == [6, 0, 1, 0, 1, 0]


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
