from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.mixture import GaussianMixture

from dcprune.artifacts import Embeddings, Rows
from dcprune.errors import OptionError
from dcprune.scorers import gaussian
from dcprune.scorers.gaussian import Gaussian
from dcprune.testing import gaussian_embeddings, scoring_context


def scores(embeddings: Embeddings, reg_covar: float = 1e-5) -> NDArray[np.float64]:
    return Gaussian(reg_covar).score(embeddings, scoring_context())


def reference(embeddings: Embeddings, reg_covar: float = 1e-5) -> NDArray[np.float64]:
    expected = np.empty(len(embeddings.embeddings))
    for _, rows in embeddings.classes():
        values = embeddings.embeddings[rows].astype(np.float64)
        expected[rows] = GaussianMixture(1, reg_covar=reg_covar).fit(values).score_samples(values)
    return expected


def of(values: NDArray[np.floating], num_classes: int = 1) -> Embeddings:
    rows = values.astype(np.float32)
    labels = np.arange(len(rows), dtype=np.int64) % num_classes
    embeddings = gaussian_embeddings(len(rows), num_classes=num_classes, dim=rows.shape[1], labels=labels)
    return replace(embeddings, embeddings=Rows([rows]))


def test_more_samples_than_dimensions() -> None:
    embeddings = gaussian_embeddings(900, dim=16)
    np.testing.assert_allclose(scores(embeddings), reference(embeddings), rtol=2e-6)


@pytest.mark.parametrize("count", [2, 30, 40])
def test_at_most_as_many_samples_as_dimensions(count: int) -> None:
    embeddings = gaussian_embeddings(count, num_classes=1, dim=40)
    np.testing.assert_allclose(scores(embeddings), reference(embeddings), rtol=1e-9)


def test_nearly_dependent_columns_are_worked_out_in_float64() -> None:
    rng = np.random.default_rng(0)
    mixed = (rng.normal(size=(600, 40)) * np.geomspace(1, 1e-5, 40)) @ rng.normal(size=(40, 40))
    embeddings = of(mixed, 2)
    np.testing.assert_allclose(scores(embeddings, 1e-9), reference(embeddings, 1e-9), rtol=1e-8)


def test_float32_products_rank_like_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    embeddings = of(rng.normal(size=(2000, 64)) @ (rng.normal(size=(64, 64)) + 10 * np.eye(64)) + 20)
    quick = scores(embeddings)
    monkeypatch.setattr(gaussian, "_LARGEST_INFLATION", 0.0)
    exact = scores(embeddings)
    assert 0 < (quick - exact).std() < 2e-5 * exact.std()
    np.testing.assert_allclose(exact, reference(embeddings), rtol=1e-9)
    assert set(np.argsort(quick)[-400:]) == set(np.argsort(exact)[-400:])


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_extreme_magnitudes(scale: float) -> None:
    embeddings = of(np.random.default_rng(0).normal(size=(300, 8)) * scale)
    reg_covar = 1e-6 * scale**2
    np.testing.assert_allclose(scores(embeddings, reg_covar), reference(embeddings, reg_covar), rtol=2e-6)


def test_a_mean_far_away_costs_no_precision() -> None:
    values = np.random.default_rng(0).normal(size=(300, 8)).astype(np.float32) + np.float32(3000.1)
    embeddings = of(values)
    np.testing.assert_allclose(scores(embeddings), reference(embeddings), rtol=2e-6)


def test_constant_dimensions() -> None:
    values = np.random.default_rng(0).normal(size=(300, 8))
    values[:, [2, 5]] = 0.3
    embeddings = of(values)
    np.testing.assert_allclose(scores(embeddings), reference(embeddings), rtol=2e-6, atol=1e-5)


def test_a_class_of_one_sample_is_at_its_regularised_peak() -> None:
    embeddings = gaussian_embeddings(41, labels=np.array([0] * 40 + [1], dtype=np.int64), num_classes=2, dim=5)
    (peak,) = scores(embeddings, 0.01)[-1:]
    assert peak == pytest.approx(-0.5 * 5 * np.log(2 * np.pi * 0.01))


def test_a_regularisation_that_vanishes_is_refused() -> None:
    values = np.random.default_rng(0).normal(size=(100, 6)) * 1e10
    values[:, 3] = values[:, 2]
    with pytest.raises(OptionError, match=r"class 0 is singular.*reg_covar=1e-05.*--set reg_covar="):
        scores(of(values))
    with pytest.raises(OptionError, match="class 0 is singular"):
        scores(of(np.tile(values[:1], (4, 1)) * np.array([[1.0], [1.0], [2.0], [2.0]])))


def test_scores_do_not_depend_on_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    from dcprune import artifacts, moments

    embeddings = gaussian_embeddings(900, dim=16)
    whole = scores(embeddings)
    monkeypatch.setattr(artifacts, "_BLOCK_BYTES", 64 * 16 * 4)
    monkeypatch.setattr(moments, "_SINGLE_ROWS", 50)
    np.testing.assert_allclose(scores(embeddings), whole, rtol=1e-6)
