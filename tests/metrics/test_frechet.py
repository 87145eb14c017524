import numpy as np
import pytest
import scipy.linalg
import scipy.stats
from numpy.typing import NDArray

from dcprune.errors import InputError
from dcprune.metrics.frechet import Moments, frechet_distance, moments

Array = NDArray[np.float64]


def gaussian(generator: np.random.Generator, dim: int, *, condition: float = 10.0) -> tuple[Array, Array]:
    rotation = scipy.stats.ortho_group.rvs(dim, random_state=generator)
    variances = np.geomspace(1, 1 / condition, dim)
    return generator.normal(size=dim), rotation * variances @ rotation.T


def by_sqrtm(mean1: Array, cov1: Array, mean2: Array, cov2: Array) -> float:
    root = scipy.linalg.sqrtm(cov1 @ cov2)
    return float(((mean1 - mean2) ** 2).sum() + np.trace(cov1 + cov2 - 2 * root.real))


@pytest.mark.parametrize("dim", [1, 2, 7, 64])
@pytest.mark.parametrize("condition", [1.0, 1e4])
def test_agrees_with_the_matrix_square_root(dim: int, condition: float) -> None:
    generator = np.random.default_rng(dim)
    first, second = gaussian(generator, dim, condition=condition), gaussian(generator, dim, condition=condition)
    assert frechet_distance(*first, *second) == pytest.approx(by_sqrtm(*first, *second), rel=1e-8)


def test_commuting_covariances_have_a_closed_form() -> None:
    generator = np.random.default_rng(0)
    rotation = scipy.stats.ortho_group.rvs(20, random_state=generator)
    deviations1, deviations2 = generator.uniform(0.1, 3, (2, 20))
    mean1, mean2 = generator.normal(size=(2, 20))
    distance = frechet_distance(
        mean1, rotation * deviations1**2 @ rotation.T, mean2, rotation * deviations2**2 @ rotation.T
    )
    expected = ((mean1 - mean2) ** 2).sum() + ((deviations1 - deviations2) ** 2).sum()
    assert distance == pytest.approx(expected, rel=1e-12)


def test_rank_one_covariances_have_a_closed_form() -> None:
    u, v = np.array([3.0, 0.0, 4.0]), np.array([1.0, 2.0, 2.0])
    distance = frechet_distance(np.zeros(3), np.outer(u, u), np.ones(3), np.outer(v, v))
    assert distance == pytest.approx(3 + 25 + 9 - 2 * abs(u @ v), rel=1e-12)


def test_orthogonal_supports_and_no_variance_at_all() -> None:
    first, second, none = np.diag([4.0, 0, 0]), np.diag([0, 9.0, 1.0]), np.zeros((3, 3))
    zero = np.zeros(3)
    assert frechet_distance(zero, first, zero, second) == pytest.approx(14, rel=1e-12)
    assert frechet_distance(zero, first, zero, none) == pytest.approx(4, rel=1e-12)
    assert frechet_distance(zero, none, np.ones(3), none) == pytest.approx(3, rel=1e-12)


@pytest.mark.parametrize(("rows1", "rows2"), [(30, 12), (12, 30), (12, 200), (200, 12)])
def test_fewer_rows_than_dimensions(rows1: int, rows2: int) -> None:
    """Against the nuclear norm of the product of the centred data, which holds at any rank."""
    generator = np.random.default_rng(1)
    mixing = generator.normal(size=(48, 48))
    rows = [generator.normal(size=(n, 48)) @ mixing + offset for n, offset in ((rows1, 0.0), (rows2, 0.3))]
    centred = [(each - each.mean(0)) / np.sqrt(len(each) - 1) for each in rows]
    traces = sum((each**2).sum() for each in centred)
    offset = rows[0].mean(0) - rows[1].mean(0)
    expected = offset @ offset + traces - 2 * np.linalg.norm(centred[0] @ centred[1].T, "nuc")
    mean1, cov1, _ = moments(rows[0])
    mean2, cov2, _ = moments(rows[1])
    assert frechet_distance(mean1, cov1, mean2, cov2) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("rows", [20, 2000])
def test_a_distribution_is_at_distance_zero_from_itself(rows: int) -> None:
    features = np.random.default_rng(2).normal(size=(rows, 64)) * np.geomspace(10, 1e-4, 64)
    mean, cov, _ = moments(features)
    distance = frechet_distance(mean, cov, mean.copy(), cov.copy())
    assert 0 <= distance < 1e-11 * np.trace(cov)


def test_symmetric_and_invariant_under_rotation_and_translation() -> None:
    generator = np.random.default_rng(3)
    (mean1, cov1), (mean2, cov2) = gaussian(generator, 16), gaussian(generator, 16)
    expected = frechet_distance(mean1, cov1, mean2, cov2)
    assert frechet_distance(mean2, cov2, mean1, cov1) == pytest.approx(expected, rel=1e-12)
    q = scipy.stats.ortho_group.rvs(16, random_state=generator)
    rotated = frechet_distance(q @ mean1 + 5, q @ cov1 @ q.T, q @ mean2 + 5, q @ cov2 @ q.T)
    assert rotated == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(
    ("mean", "cov", "complaint"),
    [
        (np.zeros(3), np.eye(2), "shape"),
        (np.zeros((2, 1)), np.eye(2), "shape"),
        (np.zeros(0), np.zeros((0, 0)), "shape"),
        (np.zeros(3), np.eye(3), "2 and 3 dimensions"),
        (np.array([0, np.nan]), np.eye(2), "not finite"),
        (np.zeros(2), np.array([[1, np.inf], [np.inf, 1]]), "not finite"),
        (np.zeros(2), np.array([[1.0, 0.5], [0.1, 1.0]]), "not symmetric"),
        (np.zeros(2), np.diag([1.0, -1.0]), "eigenvalue -1"),
        (np.zeros(2), np.array([[1.0, 2.0], [2.0, 1.0]]), "eigenvalue -1"),
    ],
)
def test_says_what_is_wrong(mean: Array, cov: Array, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        frechet_distance(np.zeros(2), np.eye(2), mean, cov)


def test_moments_are_numpys() -> None:
    features = np.random.default_rng(4).normal(size=(300, 9)).astype(np.float32)
    mean, cov, count = moments(features)
    assert count == 300
    np.testing.assert_allclose(mean, features.astype(np.float64).mean(0), rtol=0, atol=1e-14)
    np.testing.assert_allclose(cov, np.cov(features.astype(np.float64), rowvar=False), rtol=0, atol=1e-14)


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_moments_do_not_depend_on_the_split(offset: float) -> None:
    """An offset far above the deviation is what a sum of squares would lose its digits on."""
    generator = np.random.default_rng(5)
    features = generator.normal(size=(1000, 12)) @ generator.normal(size=(12, 12)) + offset
    mean, cov, _ = moments(features)
    parts = [Moments(12) for _ in range(3)]
    for index, piece in enumerate(np.split(np.sort(features, axis=0), [1, 1, 40, 41, 700])):
        parts[index % 3].update(piece)
    sorted_mean, sorted_cov, _ = moments(np.sort(features, axis=0))
    merged = Moments(12)
    for part in (*parts, Moments(12)):
        merged.merge(part)
    assert merged.count == 1000
    np.testing.assert_allclose(merged.mean, sorted_mean, rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(merged.covariance(), sorted_cov, rtol=0, atol=1e-9 * np.abs(sorted_cov).max())
    np.testing.assert_allclose(mean, features.mean(0), rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(cov, np.cov(features, rowvar=False), rtol=0, atol=1e-9 * np.abs(cov).max())


def test_blocks_of_a_wide_matrix_are_combined() -> None:
    features = np.random.default_rng(6).normal(size=(5000, 1024)).astype(np.float32)
    mean, cov, _ = moments(features)
    exact = features.astype(np.float64)
    np.testing.assert_allclose(mean, exact.mean(0), rtol=0, atol=1e-13)
    np.testing.assert_allclose(cov[:5], np.cov(exact[:, :5], exact, rowvar=False)[:5, 5:], rtol=0, atol=1e-12)


def test_moments_refuse_what_has_none() -> None:
    with pytest.raises(InputError, match="at least 2 rows"):
        moments(np.ones((1, 3)))
    with pytest.raises(InputError, match="not a matrix"):
        moments(np.ones(3))
    with pytest.raises(InputError, match="not finite"):
        moments(np.array([[0.0, 1.0], [np.nan, 2.0]]))
    with pytest.raises(InputError, match="do not fit"):
        Moments(3).update(np.ones((2, 4)))
    with pytest.raises(InputError, match="do not merge"):
        Moments(3).merge(Moments(4))
