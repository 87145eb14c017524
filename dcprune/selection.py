"""From scores to the samples that are kept: budgets and keep policies, without I/O.

A keep policy chooses samples of one group; the group is a class (scope `class`) or everything (scope `global`). Equal
scores are ordered by the sample's index, and no policy depends on the order of the rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from dcprune.artifacts import group_by_class
from dcprune.errors import OptionError, UnknownName

Scope = Literal["class", "global"]
IntArray = NDArray[np.int64]
KeepPolicy = Callable[[NDArray[np.float64], IntArray, int, np.random.Generator], IntArray]

_NUM_STRATA = 50


def _ascending(keys: NDArray[np.float64], indices: IntArray) -> IntArray:
    return np.lexsort((indices, keys))


def keep_highest(
    scores: NDArray[np.float64], indices: IntArray, budget: int, generator: np.random.Generator
) -> IntArray:
    """The `budget` highest scores."""
    return _ascending(-scores, indices)[:budget]


def keep_lowest(
    scores: NDArray[np.float64], indices: IntArray, budget: int, generator: np.random.Generator
) -> IntArray:
    """The `budget` lowest scores."""
    return _ascending(scores, indices)[:budget]


def keep_nearest(
    scores: NDArray[np.float64], indices: IntArray, budget: int, generator: np.random.Generator
) -> IntArray:
    """The `budget` scores of smallest magnitude: for a distance to a centre, what lies nearest to it."""
    return _ascending(np.abs(scores), indices)[:budget]


def keep_order(scores: NDArray[np.float64], indices: IntArray, budget: int, generator: np.random.Generator) -> IntArray:
    """The first `budget` of a greedy order, which the scores count up."""
    return _ascending(scores, indices)[:budget]


def keep_median_window(
    scores: NDArray[np.float64], indices: IntArray, budget: int, generator: np.random.Generator
) -> IntArray:
    """The window of `budget` ranks round the median rank; of two equal windows the one of lower scores."""
    start = (len(scores) - budget) // 2
    return _ascending(scores, indices)[start : start + budget]


def keep_interval(
    scores: NDArray[np.float64], indices: IntArray, budget: int, generator: np.random.Generator
) -> IntArray:
    """Ranks 0, k, 2k, ... of the ascending scores, with k = floor(n / budget) (D2C, arXiv 2507.05914).

    The ranks from k * budget on, fewer than `budget` of the highest scores, are never reached; where more than half is
    kept, k is 1 and these are the lowest scores.
    """
    step = len(scores) // max(1, budget)
    return _ascending(scores, indices)[: step * budget : step]


def keep_stratified(
    scores: NDArray[np.float64], indices: IntArray, budget: int, generator: np.random.Generator
) -> IntArray:
    """As many of every level of the scores (coverage-centric selection, Zheng et al., ICLR 2023, algorithm 1).

    The range of the scores is cut into 50 strata of equal width. From the smallest stratum to the largest (equals from
    low scores to high), each gives its share of what is still to be kept, or all it has, at random.
    """
    order: IntArray = np.argsort(indices, kind="stable")
    drawn = order[generator.permutation(len(order))]
    halves = scores / 2  # whose range cannot overflow
    width = (halves.max() - halves.min()) or 1.0
    strata = np.minimum(((halves - halves.min()) / width * _NUM_STRATA).astype(np.int64), _NUM_STRATA - 1)
    numbers, sizes = np.unique(strata, return_counts=True)
    kept: list[IntArray] = []
    for place, stratum in enumerate(np.argsort(sizes, kind="stable")):
        share = (budget - sum(map(len, kept))) // (len(numbers) - place)
        kept.append(drawn[strata[drawn] == numbers[stratum]][:share])
    return np.concatenate(kept)


def keep_random(
    scores: NDArray[np.float64], indices: IntArray, budget: int, generator: np.random.Generator
) -> IntArray:
    """`budget` samples uniformly at random, whatever the scores; depends on the seed and the indices alone."""
    order: IntArray = np.argsort(indices, kind="stable")
    return order[generator.permutation(len(indices))[:budget]]


KEEP_POLICIES: Final[Mapping[str, KeepPolicy]] = {
    "highest": keep_highest,
    "interval": keep_interval,
    "lowest": keep_lowest,
    "median-window": keep_median_window,
    "nearest": keep_nearest,
    "order": keep_order,
    "random": keep_random,
    "stratified": keep_stratified,
}


def check_budget(ratio: float | None, num: int | None) -> None:
    """Refuse a budget that no dataset could have.

    Raises:
        OptionError: neither or both given, `ratio` outside (0, 1], or `num` below 1.
    """
    if (ratio is None) == (num is None):
        raise OptionError("Give either --ratio (the kept fraction) or --num (the kept number of samples).")
    if ratio is not None and not (math.isfinite(ratio) and 0 < ratio <= 1):
        raise OptionError(f"--ratio is the kept fraction, above 0 and at most 1; {ratio} is not.")
    if num is not None and num < 1:
        raise OptionError(f"--num is the number of samples to keep, at least 1; {num} is not.")


def total_budget(num_samples: int, ratio: float | None, num: int | None) -> int:
    """How many of `num_samples` to keep: `round(ratio * N)`, halves up and at least 1, or `num`.

    Raises:
        OptionError: see `check_budget`, or `num` above N.
    """
    check_budget(ratio, num)
    if ratio is not None:
        return max(1, math.floor(ratio * num_samples + 0.5))
    if num is None or num > num_samples:
        raise OptionError(f"--num {num} is more than the {num_samples} samples.")
    return num


def class_budgets(counts: IntArray, total: int) -> IntArray:
    """Split `total` over classes of `counts` samples in proportion, at least 1 each.

    Every class gets its share rounded (halves up); then those furthest below their share gain one, or those furthest
    above lose one, until the sum is `total`. Equal remainders go by class order. When `total` is below the number of
    classes, every class keeps 1.

    Args:
        counts: samples of every class, all positive, int64 [K].
        total: samples to keep over all classes, at most `counts.sum()`.

    Returns:
        Kept samples of every class, int64 [K].
    """
    shares = counts * (total / counts.sum())
    budgets = np.clip(np.floor(shares + 0.5), 1, counts).astype(np.int64)
    while (missing := total - int(budgets.sum())) > 0:
        deficit = np.where(budgets < counts, shares - budgets, -np.inf)
        budgets[np.argsort(-deficit, kind="stable")[:missing]] += 1
        budgets = np.minimum(budgets, counts)
    while (surplus := int(budgets.sum()) - total) > 0 and (budgets > 1).any():
        excess = np.where(budgets > 1, budgets - shares, -np.inf)
        budgets[np.argsort(-excess, kind="stable")[:surplus]] -= 1
        budgets = np.maximum(budgets, 1)
    result: IntArray = budgets.astype(np.int64)
    return result


def select_rows(
    scores: NDArray[np.float64],
    labels: IntArray | None,
    indices: IntArray,
    *,
    keep: str,
    scope: Scope,
    total: int,
    seed: int,
) -> IntArray:
    """Rows [n] of the samples that are kept, in ascending order of their dataset index.

    Args:
        scores: float64 [N].
        labels: int64 [N], or None for class-less data, which is one class.
        indices: int64 [N], dataset rows; they break ties.
        keep: a name of `KEEP_POLICIES`.
        scope: `class` keeps the same fraction of every class, `global` ranks everything together.
        total: samples to keep.
        seed: for policies that draw (`random`, `stratified`); every class draws from its own stream.

    Raises:
        UnknownName: no such keep policy.
    """
    if keep not in KEEP_POLICIES:
        raise UnknownName("keep policy", keep, KEEP_POLICIES)
    groups = list(group_by_class(labels if scope == "class" else None, len(scores)))
    budgets = class_budgets(np.array([len(rows) for _, rows in groups], dtype=np.int64), total)
    kept = [
        rows[KEEP_POLICIES[keep](scores[rows], indices[rows], int(budget), np.random.default_rng([seed, label]))]
        for (label, rows), budget in zip(groups, budgets, strict=True)
    ]
    rows = np.concatenate(kept)
    return rows[np.argsort(indices[rows])]
