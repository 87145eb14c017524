"""Precision, recall, density, coverage and authenticity against brute force."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from dcprune.errors import InputError
from dcprune.evaluation import create_metrics
from dcprune.interfaces import Features
from dcprune.metrics import balls
from dcprune.metrics.authpct import AuthPct
from dcprune.metrics.prdc import Coverage, Density, Precision, Recall
from dcprune.testing import check_metric, gaussian_embeddings

Matrix = NDArray[np.float32]
PRDC = (Precision, Recall, Density, Coverage)


def rows(seed: int, count: int, dim: int = 6, shift: float = 0.0) -> Matrix:
    return (np.random.default_rng(seed).normal(size=(count, dim)) + shift).astype(np.float32)


def features(matrix: Matrix) -> Features:
    return Features(matrix, None, gaussian_embeddings().encoder)


def value(metric: Any, generated: Matrix, reference: Matrix, **settings: Any) -> float:
    found: float = metric("pixels", **settings).value(features(generated), features(reference))
    return found


def distances(first: Matrix, second: Matrix) -> NDArray[np.float64]:
    found: NDArray[np.float64] = cdist(first.astype(np.float64), second.astype(np.float64))
    return found


def brute_force(generated: Matrix, reference: Matrix, k: int) -> list[float]:
    radii = [np.sort(distances(side, side), axis=1)[:, k] for side in (generated, reference)]
    across = distances(generated, reference)
    in_real, in_made = across < radii[1], across < radii[0][:, None]
    return [in_real.any(1).mean(), in_made.any(0).mean(), in_real.sum(1).mean() / k, in_real.any(0).mean()]


@pytest.mark.parametrize("metric", [*PRDC, AuthPct])
def test_contract(metric: Any) -> None:
    check_metric(metric, argument="pixels")


@pytest.mark.parametrize("k", [1, 5])
@pytest.mark.parametrize(("counts", "shift"), [((70, 120), 0.5), ((130, 40), 1.0), ((50, 50), 4.0)])
def test_prdc_is_brute_force(counts: tuple[int, int], shift: float, k: int) -> None:
    generated, reference = rows(0, counts[0], shift=shift), rows(1, counts[1])
    found = [value(metric, generated, reference, num_neighbours=k) for metric in PRDC]
    assert found == pytest.approx(brute_force(generated, reference, k), rel=1e-12)


def test_blocks_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    generated, reference = rows(2, 45, shift=0.5), rows(3, 61)
    monkeypatch.setattr(balls, "_BLOCK_ROWS", 7)
    assert [value(metric, generated, reference) for metric in PRDC] == brute_force(generated, reference, 5)


def test_a_large_offset_costs_no_digits() -> None:
    generated, reference = rows(4, 80, shift=1000.5), rows(5, 80, shift=1000)
    assert [value(metric, generated, reference) for metric in PRDC] == brute_force(generated, reference, 5)


def test_copies_of_the_reference_have_precision_and_full_coverage() -> None:
    reference = rows(6, 60)
    assert [value(metric, reference, reference) for metric in PRDC] == [1, 1, 1, 1]
    assert value(AuthPct, reference, reference) == 0


def test_density_can_exceed_one_where_coverage_cannot() -> None:
    """Naeem's point: images in the middle of the real ones lie in many balls but reach few of the others."""
    reference = rows(7, 200)
    generated = 0.05 * rows(8, 50)
    precision, recall, density, coverage = (value(metric, generated, reference) for metric in PRDC)
    assert precision == 1
    assert density > 1
    assert recall < coverage < 1


def test_identical_images_have_balls_without_an_inside() -> None:
    same, reference = np.repeat(rows(9, 1), 10, axis=0), rows(10, 30)
    assert value(Recall, same, reference) == 0
    assert [value(metric, rows(11, 10), np.ones((10, 6), dtype=np.float32)) for metric in PRDC[::2]] == [0, 0]
    assert [value(metric, same, reference) for metric in PRDC] == brute_force(same, reference, 5)


def test_one_generated_image() -> None:
    reference = rows(12, 30)
    inside = reference[:1] + np.float32(1e-4)
    assert value(Precision, inside, reference) == 1
    assert value(Coverage, inside, reference) == brute_force(np.repeat(inside, 6, axis=0), reference, 5)[3]
    with pytest.raises(InputError, match="Recall with 5 neighbours needs at least 6 generated images; there is 1"):
        value(Recall, inside, reference)


def test_authenticity_is_brute_force() -> None:
    for shift in (0.0, 0.7):
        generated, reference = rows(13, 90, shift=shift), rows(14, 150)
        across, among = distances(generated, reference), distances(reference, reference)
        np.fill_diagonal(among, np.inf)
        expected = 100 * (across.min(1) > among.min(1)[across.argmin(1)]).mean()
        assert value(AuthPct, generated, reference) == pytest.approx(expected, rel=1e-12)


def test_fresh_draws_on_a_line_are_authentic_in_a_third_of_cases() -> None:
    """On a line two of three points are the nearest of their nearest."""
    found = value(AuthPct, rows(15, 3000, dim=1), rows(16, 3000, dim=1))
    assert found == pytest.approx(100 / 3, abs=4)


def test_copies_count_against_authenticity_one_by_one() -> None:
    reference, far = rows(17, 40), rows(18, 30, shift=50.0)
    assert value(AuthPct, np.concatenate([far, reference[:10]]), reference) == 75
    assert value(AuthPct, np.concatenate([far, reference[:10]]), np.concatenate([reference, reference])) == 75


@pytest.mark.parametrize("metric", [Precision, Density, Coverage])
def test_fewer_images_than_neighbours_are_refused(metric: Any) -> None:
    with pytest.raises(InputError, match="at least 6 reference images; there are 5"):
        value(metric, rows(19, 50), rows(20, 5))


@pytest.mark.parametrize("metric", [*PRDC, AuthPct])
def test_what_has_no_value_is_refused(metric: Any) -> None:
    bad = rows(21, 20)
    bad[4, 1] = np.nan
    with pytest.raises(InputError, match=r"reference features are not finite .* in row 4"):
        value(metric, rows(22, 20), bad)
    with pytest.raises(InputError, match="6 and 5 dimensions"):
        value(metric, rows(22, 20), rows(23, 20, dim=5))
    with pytest.raises(InputError, match="there are 0"):
        value(metric, rows(22, 20)[:0], rows(23, 20))


def test_they_take_the_settings_of_their_encoder() -> None:
    names = ["precision:resnet18", "recall:resnet18", "density:resnet18", "coverage:resnet18", "authpct:resnet18"]
    named = create_metrics(names, {"num-neighbours": "3", "width": "2"}, None)
    assert {each.encoder.name for each in named} == {"resnet18"}
    assert all(each.encoder == named[0].encoder and each.encoder.settings["width"] == 2 for each in named)
    assert [each.metric.protocol()["num_neighbours"] for each in named] == [3, 3, 3, 3, 1]
