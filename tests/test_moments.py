from __future__ import annotations

import numpy as np
import pytest

from dcprune.errors import InputError
from dcprune.moments import Moments, moments


def features(rows: int, dim: int, seed: int = 0) -> np.ndarray:
    """Correlated rows far from the origin, whose variances fall off by a factor of a million."""
    rng = np.random.default_rng(seed)
    mixed = (rng.normal(size=(rows, dim)) * np.geomspace(1, 1e-3, dim)) @ rng.normal(size=(dim, dim))
    return (mixed + 30).astype(np.float32)


def test_moments_are_numpys() -> None:
    rows = features(3000, 20)
    mean, covariance, count = moments(rows)
    assert count == 3000
    np.testing.assert_allclose(mean, rows.astype(np.float64).mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(covariance, np.cov(rows.T.astype(np.float64)), rtol=1e-10)


@pytest.mark.parametrize("seed", range(3))
def test_sharding_and_order_do_not_matter(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = features(2500, 16, seed)
    whole = Moments(16)
    whole.update(rows)
    merged = Moments(16)
    for part in np.array_split(rows[rng.permutation(len(rows))], np.sort(rng.integers(0, 2500, 5))):
        shard = Moments(16)
        shard.update(part)
        merged.merge(shard)
    scale = np.sqrt(np.outer(whole.scatter.diagonal(), whole.scatter.diagonal()))
    np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-13)
    assert (np.abs(merged.scatter - whole.scatter) / scale).max() < 1e-10


@pytest.mark.parametrize("scale", [1.0, 1e-20, 1e18, 1e30])
def test_single_products_are_off_by_rounding_only(scale: float) -> None:
    rows = (features(5000, 16) * scale).astype(np.float32)
    exact, quick = Moments(16), Moments(16, single=True)
    exact.update(rows)
    quick.update(rows)
    deviations = np.sqrt(exact.scatter.diagonal())
    np.testing.assert_allclose(quick.mean, exact.mean, rtol=1e-12)
    # The rows themselves are rounded at 30 times the scale when they are centred, which float64 does not do.
    rounding = 30 * scale * np.finfo(np.float32).eps * np.sqrt(len(rows))
    assert (np.abs(quick.scatter - exact.scatter) < 1e-6 * np.outer(deviations, deviations) + rounding**2).all()


def test_what_has_no_moments_is_refused() -> None:
    total = Moments(3)
    total.update(np.empty((0, 3)))
    with pytest.raises(InputError, match="at least 2 rows"):
        total.covariance()
    with pytest.raises(InputError, match="width 3"):
        total.update(np.ones((2, 4)))
    with pytest.raises(InputError, match="not finite"):
        total.update(np.array([[1.0, np.nan, 0.0]]))
    with pytest.raises(InputError, match="do not merge"):
        total.merge(Moments(4))
    total.update(np.ones((1, 3)))
    np.testing.assert_array_equal(total.covariance(unbiased=False), np.zeros((3, 3)))
