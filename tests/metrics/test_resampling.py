"""Intervals, sweeps and their limit against brute force and against data whose truth is known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from dcprune.artifacts import MetricValue
from dcprune.evaluation import NamedMetric, Plan, Reference, measure
from dcprune.interfaces import EncoderChoice, Features, Metric
from dcprune.metrics import balls, cmmd, frechet, polynomial
from dcprune.metrics.authpct import AuthPct
from dcprune.metrics.cmmd import Cmmd
from dcprune.metrics.fd import FrechetDistance
from dcprune.metrics.frechet import frechet_distance
from dcprune.metrics.isc import InceptionScore
from dcprune.metrics.kid import Kid
from dcprune.metrics.prdc import Coverage, Density, Precision, Recall
from dcprune.progress import SILENT
from dcprune.testing import gaussian_embeddings

Matrix = NDArray[np.float32]

METRICS: dict[str, Callable[[], Any]] = {
    "frechet": lambda: FrechetDistance("pixels"),
    "cmmd": Cmmd,
    "kid": lambda: Kid(num_subsets=0),
    "isc": lambda: InceptionScore(num_splits=1),
    "precision": lambda: Precision("pixels"),
    "recall": lambda: Recall("pixels"),
    "density": lambda: Density("pixels"),
    "coverage": lambda: Coverage("pixels"),
    "authpct": lambda: AuthPct("pixels"),
}
EXACTLY_LINEAR = ("precision", "recall", "density", "coverage", "authpct")


class Resampled:
    """A metric that knows no influences: the root of the mean square, which no order changes."""

    encoder = EncoderChoice("pixels")
    needs_reference = False

    def value(self, generated: Features, reference: object) -> float:
        return float(np.sqrt(np.square(generated.features.astype(np.float64)).mean()))

    def min_samples(self, dim: int) -> int:
        return 2

    def protocol(self) -> dict[str, Any]:
        return {}


def features(rows: NDArray[np.float64]) -> Features:
    return Features(rows.astype(np.float32), None, gaussian_embeddings().encoder)


def draw(seed: int, count: int, dim: int, *, shift: float = 0.0, scale: float = 1.0) -> Features:
    """Gaussian rows whose variances fall off."""
    generator = np.random.default_rng(seed)
    return features(generator.normal(size=(count, dim)) * np.geomspace(1, 0.3, dim) * scale + shift)


def measured(metric: Metric, sets: list[Features], reference: Features | None, **plan: Any) -> MetricValue:
    named = NamedMetric("under test", metric, metric.encoder)
    side = None if reference is None else Reference(reference)
    return measure(named, sets, side, plan=Plan(**plan), protocol={}, progress=SILENT)


@pytest.mark.parametrize("name", METRICS)
def test_the_influence_is_what_leaving_an_image_out_does(name: str) -> None:
    metric = METRICS[name]()
    count = 60
    generated, reference = draw(0, count, 4, shift=0.4, scale=1.2), draw(1, 80, 4)
    found = metric.influence(generated, reference)
    assert found.shape == (count,)
    assert found.mean() == pytest.approx(0, abs=1e-9)
    whole = metric.value(generated, reference)
    left_out = np.array(
        [
            metric.value(features(np.delete(generated.features, row, axis=0).astype(np.float64)), reference)
            for row in range(count)
        ]
    )
    jackknife = count * (whole - left_out)
    jackknife -= jackknife.mean()
    assert np.abs(jackknife).max() > 0
    if name in EXACTLY_LINEAR:
        # Leaving an image out also changes what the mean is divided by, for means over the generated images.
        factor = (count - 1) / count if name in ("precision", "density", "authpct") else 1
        np.testing.assert_allclose(found, jackknife * factor, atol=1e-9)
    else:
        assert np.corrcoef(found, jackknife)[0, 1] > 0.995
        assert found.std() == pytest.approx(jackknife.std(), rel=0.08)


def test_blocks_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    generated, reference = draw(0, 60, 4, shift=0.4), draw(1, 80, 4)
    whole = {name: METRICS[name]().influence(generated, reference) for name in METRICS}
    for module, constant in ((balls, "_BLOCK_ROWS"), (frechet, "_BLOCK_ROWS"), (cmmd, "_TILE"), (polynomial, "_TILE")):
        monkeypatch.setattr(module, constant, 7)
    for name, expected in whole.items():
        np.testing.assert_allclose(METRICS[name]().influence(generated, reference), expected, atol=1e-6, err_msg=name)


def test_kid_influences_come_from_some_of_many_images(monkeypatch: pytest.MonkeyPatch) -> None:
    generated, reference = draw(0, 600, 4, shift=0.4), draw(1, 500, 4)
    whole = Kid().influence(generated, reference)
    monkeypatch.setattr(polynomial, "_MOST_PARTNERS", 200)
    found = Kid().influence(generated, reference)
    assert np.corrcoef(found, whole)[0, 1] > 0.95
    assert found.std() == pytest.approx(whole.std(), rel=0.2)


def test_the_influence_of_copies_and_of_identical_images_is_finite() -> None:
    reference = draw(1, 40, 3)
    for rows in (np.ones((12, 3)), np.repeat(np.eye(3), 5, axis=0)):
        for name in METRICS:
            assert np.isfinite(METRICS[name]().influence(features(rows), reference)).all(), name


def test_frechet_influence_with_fewer_images_than_dimensions_stays_within_their_span() -> None:
    generated, reference = draw(0, 12, 30, shift=0.3), draw(1, 200, 30)
    metric = FrechetDistance("pixels")
    found = metric.influence(generated, reference)
    weights = np.ones(12)
    step = 1e-5
    weights[3] += step
    weights *= 12 / weights.sum()
    rows = generated.features.astype(np.float64)
    mean = np.average(rows, axis=0, weights=weights)
    covariance = (rows - mean).T @ np.diag(weights) @ (rows - mean) / 11
    real = Reference(reference).gaussian
    moved = frechet_distance(mean, covariance, real.mean, real.covariance)
    slope = (moved - metric.value(generated, reference)) / step * 12
    assert found[3] == pytest.approx(slope, rel=0.02)


@pytest.mark.parametrize(
    ("name", "count", "dim", "shift"),
    [
        ("frechet", 100, 8, 0.4),
        ("frechet", 60, 24, 0.0),
        ("frechet", 30, 48, 0.2),
        ("cmmd", 100, 8, 0.4),
        ("isc", 200, 8, 0.0),
        ("density", 80, 4, 0.2),
        ("coverage", 80, 4, 0.2),
        ("recall", 80, 4, 0.2),
    ],
)
def test_a_bootstrap_interval_covers_the_mean_as_often_as_it_says(
    name: str, count: int, dim: int, shift: float
) -> None:
    """The truth is the mean of many values at this number of images, which are drawn from the same distribution."""
    metric = METRICS[name]()
    reference = draw(10_000, 150, dim)
    repeats = 60
    found = [
        measured(metric, [draw(seed, count, dim, shift=shift, scale=1.1)], reference, num_resamples=200)
        for seed in range(repeats)
    ]
    more = [metric.value(draw(seed, count, dim, shift=shift, scale=1.1), reference) for seed in range(1000, 1150)]
    truth = float(np.mean([each.value for each in found] + more))
    covered = sum(each.interval.low <= truth <= each.interval.high for each in found if each.interval is not None)
    assert covered >= stats.binom(repeats, 0.95).ppf(0.002) - 2
    widths = [each.interval.high - each.interval.low for each in found if each.interval is not None]
    spread = float(np.std(more))
    assert 3.3 * spread < np.mean(widths) < 7 * spread  # 3.92 standard deviations; up to 1.5 times where it is cautious


def test_kid_intervals_count_the_choice_of_the_subsets() -> None:
    generated, reference = draw(0, 400, 6, shift=0.2), draw(1, 400, 6)
    few = measured(Kid(num_subsets=4, subset_size=40), [generated], reference, num_resamples=400)
    many = measured(Kid(num_subsets=400, subset_size=40), [generated], reference, num_resamples=400)
    assert few.interval is not None
    assert many.interval is not None
    assert few.interval.high - few.interval.low > 1.5 * (many.interval.high - many.interval.low)
    assert many.std == pytest.approx(Kid(num_subsets=400, subset_size=40).splits(generated, reference).std())


def test_a_metric_without_influences_is_measured_on_every_resample() -> None:
    generated = draw(0, 200, 3)
    found = measured(Resampled(), [generated], None, num_resamples=500, level=0.9)
    assert found.interval is not None
    squares = np.square(generated.features.astype(np.float64)).mean(axis=1)
    error = squares.std() / np.sqrt(200) / (2 * found.value)  # by the delta method
    assert found.interval.high - found.interval.low == pytest.approx(2 * 1.645 * error, rel=0.15)
    assert found.interval.low < found.value < found.interval.high
    assert (found.interval.level, found.interval.method, found.interval.num_resamples) == (0.9, "bootstrap", 500)
    assert found.num_reference == 0
    assert found.reference_sha256 is None


def test_resamples_depend_on_their_seed_alone() -> None:
    generated, reference = draw(0, 100, 3), draw(1, 100, 3)
    first, second, other = (
        measured(FrechetDistance("pixels"), [generated], reference, num_resamples=50, bootstrap_seed=seed).interval
        for seed in (0, 0, 1)
    )
    assert first == second != other


def test_intervals_over_seeds_are_students() -> None:
    reference = draw(9, 100, 3)
    sets = [draw(seed, 100, 3) for seed in range(4)]
    metric = FrechetDistance("pixels")
    found = measured(metric, sets, reference, seeds=(5, 6, 7, 8), level=0.8)
    values = [metric.value(each, reference) for each in sets]
    low, high = stats.t.interval(0.8, 3, loc=np.mean(values), scale=stats.sem(values))
    assert found.value == pytest.approx(np.mean(values))
    assert found.seed_values == pytest.approx(values)
    assert found.interval is not None
    assert (found.interval.low, found.interval.high) == pytest.approx((low, high))
    assert (found.interval.method, found.interval.seeds) == ("seeds", (5, 6, 7, 8))


def test_a_sweep_is_the_value_of_the_first_images() -> None:
    generated, reference = draw(0, 300, 4), draw(1, 200, 4)
    metric = FrechetDistance("pixels")
    found = measured(metric, [generated], reference, numbers=(50, 120, 300), num_resamples=100)
    for number, each in zip((50, 120, 300), found.sweep, strict=True):
        first = features(generated.features[:number].astype(np.float64))
        assert each.value == metric.value(first, reference)
        assert each.num_generated == number
        assert each.interval is not None
    assert (found.value, found.interval) == (found.sweep[-1].value, found.sweep[-1].interval)
    slope, intercept = np.polyfit([1 / each.num_generated for each in found.sweep], [e.value for e in found.sweep], 1)
    assert found.extrapolated is not None
    assert (found.extrapolated.value, found.extrapolated.slope) == pytest.approx((intercept, slope))
    assert found.extrapolated.interval is not None
    assert found.extrapolated.interval.low < found.extrapolated.value < found.extrapolated.interval.high


def test_metrics_without_a_limit_have_a_sweep_alone() -> None:
    generated, reference = draw(0, 100, 4), draw(1, 100, 4)
    for metric in (Precision("pixels"), Kid()):
        found = measured(metric, [generated], reference, numbers=(50, 100))
        assert len(found.sweep) == 2
        assert found.extrapolated is None


def test_the_limit_is_the_distance_that_is_known() -> None:
    """Frechet distances of few images lie far above the truth; the limit of a sweep does not (Chong and Forsyth)."""
    dim, count = 16, 800
    scales = np.geomspace(1, 0.3, dim)
    truth = frechet_distance(np.full(dim, 0.1), np.diag(np.square(1.1 * scales)), np.zeros(dim), np.diag(scales**2))
    reference = draw(77, 60_000, dim)
    biased, limits, covered = [], [], 0
    for seed in range(30):
        generated = draw(seed, count, dim, shift=0.1, scale=1.1)
        found = measured(
            FrechetDistance("pixels"), [generated], reference, numbers=(100, 150, 250, 400, 800), num_resamples=200
        )
        assert found.extrapolated is not None
        assert found.extrapolated.interval is not None
        biased.append(found.sweep[0].value)
        limits.append(found.extrapolated.value)
        covered += found.extrapolated.interval.low <= truth <= found.extrapolated.interval.high
    assert np.mean(biased) > truth + 0.2
    assert np.mean(limits) == pytest.approx(truth, abs=3 * np.std(limits) / np.sqrt(30) + 0.02)
    assert covered >= 24
