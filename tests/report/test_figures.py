from __future__ import annotations

import numpy as np
import pytest
from sklearn.decomposition import PCA

from dcprune.report.collect import Losses
from dcprune.report.figures import extremes, principal_plane, smoothed


@pytest.mark.parametrize(("rows", "dim"), [(200, 7), (30, 90)])
def test_principal_plane_is_scikit_learns(rows: int, dim: int) -> None:
    generator = np.random.default_rng(rows)
    values = (generator.standard_normal((rows, dim)) * np.geomspace(9, 1, dim) + 5).astype(np.float32)
    plane, shares = principal_plane(values)
    reference = PCA(2, svd_solver="full").fit(values.astype(np.float64))
    expected = reference.transform(values.astype(np.float64))
    expected *= np.sign((expected * plane).sum(axis=0))
    np.testing.assert_allclose(plane, expected, atol=1e-6)
    assert shares == pytest.approx(reference.explained_variance_ratio_)
    assert (plane[np.abs(plane).argmax(axis=0), [0, 1]] > 0).all()


def test_plane_of_too_few_dimensions_or_rows_is_flat() -> None:
    plane, shares = principal_plane(np.arange(5, dtype=np.float32)[:, None])
    np.testing.assert_allclose(np.diff(plane[:, 0]), plane[1, 0] - plane[0, 0])
    assert not plane[:, 1].any()
    assert shares == pytest.approx((1.0, 0.0))
    assert not principal_plane(np.ones((1, 4), dtype=np.float32))[0].any()


def test_extremes_are_the_highest_and_the_lowest() -> None:
    values = np.random.default_rng(0).permutation(100).tolist()
    shown = [values[index] for index in extremes(values, 10)]
    assert shown == [99, 98, 97, 96, 95, 4, 3, 2, 1, 0]
    assert extremes([3.0, 1.0, 2.0], 10) == [0, 1, 2]


def test_smoothing_takes_means_of_equal_stretches() -> None:
    steps = np.arange(1, 101)
    losses = Losses(steps, steps.astype(np.float64))
    assert smoothed(losses, 25)[1] == pytest.approx([13, 38, 63, 88])
    assert smoothed(losses, 25)[0] == smoothed(losses, 25)[1]
    assert smoothed(losses, 0.5)[1] == pytest.approx(steps)
