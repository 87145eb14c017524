from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dcprune.api.coresets import select, select_each
from dcprune.artifacts import Embeddings, Rows
from dcprune.metrics.frechet import frechet_distance, moments
from dcprune.scorers import moment
from dcprune.scorers.moment import Moment
from dcprune.testing import gaussian_embeddings, scoring_context


def skewed(num_samples: int, dim: int, num_classes: int = 1, seed: int = 0) -> Embeddings:
    """Rectified mixtures, as networks make them: correlated, skewed, with variances that fall off."""
    rng = np.random.default_rng(seed)
    labels = np.arange(num_samples, dtype=np.int64) % num_classes
    hidden = (
        rng.normal(size=(num_samples, dim)) * np.geomspace(2, 0.1, dim) + rng.normal(size=(num_classes, dim))[labels]
    )
    values = np.maximum(hidden @ rng.normal(size=(dim, dim)), 0).astype(np.float32)
    embeddings = gaussian_embeddings(num_samples, num_classes=num_classes, dim=dim, labels=labels)
    return replace(embeddings, embeddings=Rows([values]))


def mismatch(values: NDArray[np.float64], rows: NDArray[np.int64], emphasis: float) -> float:
    """J of the docstring, from its definition."""
    centred = values - values.mean(axis=0)
    variances, vectors = np.linalg.eigh(centred.T @ centred / len(values))
    kept = variances > 1e-9 * variances[-1]
    turned = (centred @ vectors[:, kept])[:, ::-1]
    variances = variances[kept][::-1]
    mean = turned[rows].mean(axis=0)
    deviation = turned[rows].T @ turned[rows] / len(rows) - np.diag(variances)
    bands = moment._bands(variances, emphasis) > 0
    totals = [deviation.diagonal()[band].sum() ** 2 / variances[band].sum() for band in bands]
    bures = 0.5 * (deviation**2 / (variances[:, None] + variances)).sum()
    return float(emphasis * mean @ mean + bures + emphasis / 4 * sum(totals))


def distance(embeddings: Embeddings, rows: NDArray[np.int64]) -> float:
    values = embeddings.embeddings[:]
    mean, covariance, _ = moments(values)
    return frechet_distance(*moments(values[rows])[:2], mean, covariance)


@pytest.fixture
def everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves nothing out and stops nowhere, so that small classes end in a true optimum."""
    monkeypatch.setattr(moment, "_LEFT_OUT", 1e-12)
    monkeypatch.setattr(moment, "_FACTORS", 40)
    monkeypatch.setattr(moment, "_LEAST_GAIN", 0.0)
    monkeypatch.setattr(moment, "_ROUNDS", 1000)


@pytest.mark.parametrize("seed", range(3))
def test_no_exchange_of_two_rows_is_left_that_helps(everything: None, seed: int) -> None:
    values = skewed(60, 6, seed=seed).embeddings[:].astype(np.float64)
    chosen = Moment(5.0)._order(values, 15, torch.device("cpu"))[:15]
    reached = mismatch(values, chosen, 5.0)
    others = np.setdiff1d(np.arange(60), chosen)
    exchanged = [
        mismatch(values, np.concatenate([np.delete(chosen, place), [row]]), 5.0)
        for place, row in product(range(15), others)
    ]
    assert reached <= min(exchanged) * (1 + 1e-4)


def test_the_parts_are_those_of_the_definition(everything: None) -> None:
    values = skewed(80, 7).embeddings[:].astype(np.float64)
    space = moment._Space.of(values, 5.0, torch.device("cpu"))
    assert space is not None
    choice = moment._Choice(space)
    choice.grow(20)
    rows = np.array(choice.picks)
    scale = np.abs(values - values.mean(axis=0)).max() ** 2
    value = space.squared_mismatch(*choice.mismatch())
    assert value * scale == pytest.approx(mismatch(values, rows, 5.0), rel=1e-9)
    kernel = space.kernel(np.arange(80))
    np.testing.assert_allclose(kernel.diagonal(), space.own(), rtol=1e-6)
    pulls = space.pulls(*choice.mismatch())
    expected = kernel[:, rows].mean(axis=1) - kernel.mean(axis=1)
    np.testing.assert_allclose(pulls - pulls.mean(), expected - expected.mean(), atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("ratio", [0.02, 0.1, 0.4])
@pytest.mark.parametrize("num_samples", [600, 2000])
def test_closer_to_all_the_data_than_random_of_ten_seeds(ratio: float, num_samples: int) -> None:
    embeddings = skewed(num_samples, 24, num_classes=4)
    chosen = distance(embeddings, np.array(select(embeddings, "moment", ratio=ratio).indices))
    random = [
        distance(embeddings, np.array(select(embeddings, "random", ratio=ratio, seed=seed).indices))
        for seed in range(10)
    ]
    others = [
        distance(embeddings, np.array(select(embeddings, name, ratio=ratio).indices))
        for name in ("gaussian", "moderate", "herding", "k-center")
    ]
    assert chosen < 0.8 * min(random)
    assert chosen < min(others)


def test_exchange_improves_on_the_greedy_choice() -> None:
    values = skewed(500, 20).embeddings[:].astype(np.float64)
    space = moment._Space.of(values, 5.0, torch.device("cpu"))
    assert space is not None
    choice = moment._Choice(space)
    choice.grow(50)
    before = space.squared_mismatch(*choice.mismatch())
    choice.exchange()
    assert space.squared_mismatch(*choice.mismatch()) < 0.9 * before
    np.testing.assert_allclose(choice.total, space.rows[choice.picks].sum(axis=0), atol=1e-9)
    np.testing.assert_array_equal(np.flatnonzero(choice.taken), np.sort(choice.picks))
    assert len(set(choice.picks)) == 50


def test_every_ratio_gets_its_own_choice() -> None:
    embeddings = skewed(400, 10, num_classes=2)
    together = select_each(embeddings, "moment", ratios=[0.3, 0.1])
    apart = [select(embeddings, "moment", ratio=ratio) for ratio in (0.3, 0.1)]
    assert [each.indices for each in together] == [each.indices for each in apart]
    assert not set(together[1].indices) <= set(together[0].indices)


@pytest.mark.parametrize("scale", [1e-20, 1e20])
def test_magnitude_does_not_matter(scale: float) -> None:
    embeddings = skewed(200, 8)
    scaled = replace(embeddings, embeddings=Rows([(embeddings.embeddings[:] * np.float32(scale))]))
    one, other = (Moment().score(each, scoring_context(ratio=0.2)) for each in (embeddings, scaled))
    assert len(set(np.argsort(one)[:40]) & set(np.argsort(other)[:40])) > 30


def test_fewer_samples_than_dimensions_constant_columns_and_equal_rows() -> None:
    few = skewed(20, 40)
    values = few.embeddings[:].copy()
    values[:, 3] = 1.0
    for rows in (values, values[:1], np.repeat(values[:2], 5, axis=0), np.full((9, 40), 0.3, dtype=np.float32)):
        one = replace(gaussian_embeddings(len(rows), num_classes=0, dim=40), embeddings=Rows([rows]))
        for ratio in (0.1, 0.5, 1.0):
            scores = Moment().score(one, scoring_context(ratio=ratio))
            np.testing.assert_array_equal(np.sort(scores), np.arange(len(rows)) / len(rows))
