"""KID against scikit-learn's polynomial kernel."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics.pairwise import polynomial_kernel

from dcprune.artifacts import Rows
from dcprune.errors import InputError, OptionError
from dcprune.evaluation import create_metrics
from dcprune.interfaces import Features
from dcprune.metrics import polynomial
from dcprune.metrics.kd import KernelDistance
from dcprune.metrics.kid import Kid
from dcprune.metrics.polynomial import discrepancy
from dcprune.plugins import registry
from dcprune.testing import check_metric, gaussian_embeddings

Matrix = NDArray[np.float32]


def by_scikit_learn(first: Matrix, second: Matrix) -> float:
    def kernel(a: Matrix, b: Matrix) -> NDArray[np.float64]:
        found: NDArray[np.float64] = polynomial_kernel(a.astype(np.float64), b.astype(np.float64), degree=3, coef0=1)
        return found

    def among(a: Matrix) -> float:
        found = kernel(a, a)
        return float((found.sum() - np.trace(found)) / (len(a) * (len(a) - 1)))

    return among(first) + among(second) - 2 * float(kernel(first, second).mean())


def rows(seed: int, count: int, dim: int = 12, offset: float = 0.4) -> Matrix:
    """Non-negative rows, as pooled activations are."""
    return np.maximum(0, np.random.default_rng(seed).normal(size=(count, dim)) + offset).astype(np.float32)


def features(matrix: Matrix) -> Features:
    return Features(matrix, None, gaussian_embeddings().encoder)


def kid(first: Matrix, second: Matrix, **settings: Any) -> float:
    return Kid(**settings).value(features(first), features(second))


def test_contract() -> None:
    check_metric(Kid)
    check_metric(Kid, settings={"num_subsets": "5", "subset_size": "20", "mode": "legacy_tensorflow"})
    check_metric(Kid, settings={"num_subsets": "0"})
    check_metric(KernelDistance, settings={"subset_size": "20"}, argument="resnet18")


@pytest.mark.parametrize("counts", [(40, 40), (2, 30), (30, 2)])
def test_all_pairs_are_scikit_learns(counts: tuple[int, int]) -> None:
    first, second = rows(0, counts[0]), rows(1, counts[1], offset=0.6)
    assert kid(first, second, num_subsets=0) == pytest.approx(by_scikit_learn(first, second), rel=1e-10)


def test_one_subset_of_everything_is_all_pairs() -> None:
    first, second = rows(2, 50), rows(3, 50, offset=0.6)
    assert kid(first, second) == kid(first, second, num_subsets=0) == kid(first, second, subset_seed=7)


def test_tiles_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = Rows([rows(4, 33)]), Rows([rows(5, 27)])
    whole = discrepancy(first, second)
    monkeypatch.setattr(polynomial, "_TILE", 8)
    assert discrepancy(first, second) == pytest.approx(whole, rel=1e-10)


def test_subsets_converge_to_all_pairs_and_depend_on_their_seed() -> None:
    first, second = rows(6, 80), rows(7, 60, offset=0.9)
    everything = kid(first, second, num_subsets=0)
    few = [kid(first, second, num_subsets=5, subset_size=20, subset_seed=seed) for seed in (0, 0, 1)]
    assert few[0] == few[1] != few[2]
    many = [kid(first, second, num_subsets=1, subset_size=20, subset_seed=seed) for seed in range(400)]
    error = np.std(many) / len(many) ** 0.5
    assert abs(np.mean(many) - everything) < 4 * error < 0.2 * everything


def test_a_subset_is_a_value_of_rows_of_both_sides() -> None:
    """Of 3 rows against 3, with 2 at a time, there are nine values to be had."""
    first, second = rows(8, 3), rows(9, 3)
    possible = [
        by_scikit_learn(np.delete(first, i, axis=0), np.delete(second, j, axis=0)) for i in range(3) for j in range(3)
    ]
    found = {
        int(np.argmin(np.abs(np.array(possible) - value)))
        for seed in range(60)
        for value in [kid(first, second, num_subsets=1, subset_size=2, subset_seed=seed)]
        if np.min(np.abs(np.array(possible) - value)) < 1e-12
    }
    assert found == set(range(9))


def test_the_order_of_either_side_does_not_count() -> None:
    first, second = rows(10, 70), rows(11, 90)
    settings: dict[str, Any] = {"num_subsets": 3, "subset_size": 25}
    shuffled = first[np.random.default_rng(0).permutation(70)], second[np.random.default_rng(1).permutation(90)]
    assert kid(*shuffled, **settings) == pytest.approx(kid(first, second, **settings), rel=1e-9)


def test_identical_images_and_what_has_no_value() -> None:
    same = np.ones((6, 4), dtype=np.float32)
    assert kid(same, same) == pytest.approx(0, abs=1e-12)
    with pytest.raises(InputError, match="at least 2 generated images; there is 1"):
        kid(same[:1], same)
    with pytest.raises(InputError, match="not finite"):
        kid(same, np.full((6, 4), np.inf, dtype=np.float32))
    with pytest.raises(OptionError, match="subset_size='1'"):
        registry().create("metric", "kid", {"subset_size": "1"})


def test_the_protocol_says_how_it_was_estimated() -> None:
    kid_metric, kd = (each.metric for each in create_metrics(["kid", "kd:pixels"], {"subset-size": "50"}, None))
    assert kid_metric.protocol() == {**kd.protocol(), "mode": "clean"}
    assert kd.protocol()["subset_size"] == 50
    assert "subset_size" not in Kid(num_subsets=0).protocol()
    assert kid_metric.encoder.name == "inceptionv3-fid"
