"""Intervals: over resamples of the generated images, or over sets of images that were drawn with different seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from dcprune.artifacts import Interval
from dcprune.errors import DcpruneError
from dcprune.evaluation.choosing import NamedMetric
from dcprune.evaluation.sides import first_rows, select_rows
from dcprune.interfaces import Features, Gaussian, HasInfluence, HasSplits


@dataclass(frozen=True)
class Plan:
    """What is asked for beside the value.

    Attributes:
        numbers: numbers of generated images to measure at, ascending, the last being all of them; empty for all alone.
        seeds: what the sets of images were drawn with; fewer than two give no interval.
        num_resamples: of the bootstrap of one set; 0 for none.
        level: confidence of the intervals.
        bootstrap_seed: of the resamples.
    """

    numbers: tuple[int, ...] = ()
    seeds: tuple[int, ...] = ()
    num_resamples: int = 0
    level: float = 0.95
    bootstrap_seed: int = 0


# The value alone.
ALONE = Plan()


@dataclass(frozen=True)
class Point:
    """A value at one number of images, or the limit of several.

    Attributes:
        std: standard deviation over the metric's own splits.
        slope: of a limit, see `dcprune.artifacts.Extrapolation`.
    """

    value: float
    interval: Interval | None = None
    std: float | None = None
    slope: float = 0.0


def points_at(
    named: NamedMetric, generated: Features, real: Features | Gaussian | None, numbers: Sequence[int], plan: Plan
) -> list[Point]:
    """The value of the first images at each of `numbers`; behind them the limit, for a metric that has one."""
    firsts = [first_rows(generated, number) for number in numbers]
    splits = [_splits(named, each, real) for each in firsts]
    values = np.array([finite(named, each.mean()) for each in splits])
    stds = [float(each.std()) if len(each) > 1 else None for each in splits]
    slopes = [0.0] * len(values)
    replicates = _replicates(named, firsts, real, splits, plan) if plan.num_resamples else None
    if len(numbers) > 1 and getattr(named.metric, "extrapolates", False):
        at_limit, by_slope = _line(np.array(numbers))
        slopes.append(float(by_slope @ values))
        stds.append(None)
        values = np.append(values, at_limit @ values)
        if replicates is not None:
            replicates = np.column_stack([replicates, replicates @ at_limit])
    return [
        Point(float(value), None if replicates is None else _quantiles(replicates[:, column], plan), std, slope)
        for column, (value, std, slope) in enumerate(zip(values, stds, slopes, strict=True))
    ]


def _splits(named: NamedMetric, generated: Features, real: Features | Gaussian | None) -> NDArray[np.float64]:
    """What the metric is a mean over, float64 [S]; its one value where it has no splits."""
    if isinstance(named.metric, HasSplits):
        return named.metric.splits(generated, real)
    return np.array([named.metric.value(generated, real)], dtype=np.float64)


def finite(named: NamedMetric, value: float) -> float:
    """The value of a metric.

    Raises:
        DcpruneError: it is not finite.
    """
    if not math.isfinite(value):
        raise DcpruneError(f"The metric {named.name!r} came out as {value}.")
    return float(value)


def _line(numbers: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The least-squares line through values v at 1 / N is a.v + b.v / N: weights a and b, float64 [K].

    Source: Chong and Forsyth 2020 (arXiv 1911.07023), who call a.v the FID at infinity.
    """
    inverse = 1 / numbers.astype(np.float64)
    offsets = inverse - inverse.mean()
    slope: NDArray[np.float64] = offsets / (offsets @ offsets)
    return 1 / len(numbers) - inverse.mean() * slope, slope


def _replicates(
    named: NamedMetric,
    firsts: Sequence[Features],
    real: Features | Gaussian | None,
    splits: Sequence[NDArray[np.float64]],
    plan: Plan,
) -> NDArray[np.float64]:
    """Values of bootstrap resamples of the generated images, float64 [num_resamples, K].

    They are centred on the values: an interval is for what such a number of images gives on average. (A resample holds
    images more than once, which moves a biased metric, such as the FID, by its bias once more.) Where the metric
    knows the influence of each image, no resample is measured again.
    """
    generator = np.random.default_rng(plan.bootstrap_seed)
    count = len(firsts[-1].features)
    values = np.array([each.mean() for each in splits])
    if isinstance(named.metric, HasInfluence):
        influences = np.zeros((count, len(firsts)))
        for column, each in enumerate(firsts):
            number = len(each.features)
            influences[:number, column] = named.metric.influence(each, real) * (count / number)
        found = np.array(
            [influences[generator.integers(count, size=count)].mean(axis=0) for _ in range(plan.num_resamples)]
        )
        if getattr(named.metric, "random_subsets", False):
            for column, of_subsets in enumerate(splits):
                found[:, column] += _resampled_means(of_subsets, plan.num_resamples, generator)
        return np.asarray(values + found)
    found = np.empty((plan.num_resamples, len(firsts)))
    for resample in range(plan.num_resamples):
        rows = generator.integers(count, size=count)
        for column, each in enumerate(firsts):
            found[resample, column] = named.metric.value(select_rows(each, rows[rows < len(each.features)]), real)
    moved: NDArray[np.float64] = values + found - found.mean(axis=0)
    return moved


def _resampled_means(
    splits: NDArray[np.float64], num_resamples: int, generator: np.random.Generator
) -> NDArray[np.float64]:
    """Means of random draws of the splits, less their mean: what the choice of the subsets adds."""
    drawn = generator.integers(len(splits), size=(num_resamples, len(splits)))
    means: NDArray[np.float64] = splits[drawn].mean(axis=1) - splits.mean()
    return means


def _quantiles(replicates: NDArray[np.float64], plan: Plan) -> Interval:
    low, high = np.quantile(replicates, [(1 - plan.level) / 2, (1 + plan.level) / 2]).tolist()
    return Interval(low=low, high=high, level=plan.level, method="bootstrap", num_resamples=plan.num_resamples)


def over_sets(points: Sequence[Point], plan: Plan) -> Point:
    """The mean over several sets of images with Student's interval; the one point of one set."""
    if len(points) == 1:
        return points[0]
    values = np.array([each.value for each in points])
    mean, error = float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values)))
    reach = float(stdtrit(len(values) - 1, (1 + plan.level) / 2)) * error
    interval = Interval(low=mean - reach, high=mean + reach, level=plan.level, method="seeds", seeds=plan.seeds)
    return Point(mean, interval, float(np.mean([each.slope for each in points])))
