from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from dcprune import coverage, neighbours
from dcprune.artifacts import Rows
from dcprune.coverage import Fit, Population
from dcprune.errors import OptionError


def brute_force(values: NDArray[np.float32], chosen: NDArray[np.int64], k: int) -> Fit:
    """The papers' formulas on the whole distance matrix; index k of a sorted row is the k-th neighbour, 0 is itself."""
    everything = values.astype(np.float64)
    real = cdist(everything, everything)
    radii = np.sort(real, axis=1)[:, k]
    to_chosen = real[:, chosen]
    chosen_radii = np.sort(real[np.ix_(chosen, chosen)], axis=1)[:, k]
    inside = to_chosen < radii[:, None]
    return Fit(
        precision=float(inside.any(axis=0).mean()),
        recall=float((to_chosen < chosen_radii).any(axis=1).mean()),
        density=float(inside.sum(axis=0).mean() / k),
        coverage=float((to_chosen.min(axis=1) < radii).mean()),
        mean_radius=float(to_chosen.min(axis=1).mean()),
        max_radius=float(to_chosen.min(axis=1).max()),
    )


def clumps(seed: int, num: int = 300, dim: int = 5, shift: float = 0) -> NDArray[np.float32]:
    generator = np.random.default_rng(seed)
    centres = generator.normal(0, 3, (4, dim))
    return (centres[generator.integers(0, 4, num)] + generator.normal(size=(num, dim)) + shift).astype(np.float32)


def as_tuple(fit: Fit) -> tuple[float, ...]:
    return (fit.precision, fit.recall, fit.density, fit.coverage, fit.mean_radius, fit.max_radius)


@pytest.mark.parametrize("shift", [0, 500])
@pytest.mark.parametrize(("k", "size"), [(1, 40), (5, 40), (5, 6), (3, 300)])
@pytest.mark.parametrize("block_rows", [2048, 31])
def test_agrees_with_the_whole_matrix(
    monkeypatch: pytest.MonkeyPatch, shift: float, k: int, size: int, block_rows: int
) -> None:
    monkeypatch.setattr(coverage, "_BLOCK_ROWS", block_rows)
    monkeypatch.setattr(neighbours, "_BLOCK_ROWS", block_rows)
    values = clumps(1, shift=shift)
    population = Population(Rows([values[:100], values[100:]]), k)
    for seed in range(3):
        chosen = np.sort(np.random.default_rng(seed).choice(300, size, replace=False))
        assert as_tuple(population.fit(chosen)) == pytest.approx(as_tuple(brute_force(values, chosen, k)), rel=1e-9)


def test_duplicates_have_empty_balls() -> None:
    values = np.concatenate([clumps(2, 60), np.repeat(clumps(3, 5), 4, axis=0)])
    for chosen in (np.arange(0, 80, 2), np.arange(50, 80), np.arange(60, 80)):
        found = Population(Rows([values]), 3).fit(chosen)
        assert as_tuple(found) == pytest.approx(as_tuple(brute_force(values, chosen, 3)), rel=1e-9)
    assert found.precision < 1


def test_everything_covers_itself() -> None:
    found = Population(Rows([clumps(4)]), 5).fit(np.arange(300))
    assert (found.precision, found.recall, found.coverage) == (1, 1, 1)
    assert (found.mean_radius, found.max_radius) == (0, 0)
    assert found.density == pytest.approx(1)  # k - 1 others and itself are in every ball


def test_queries_estimate_what_all_samples_give() -> None:
    values = clumps(5, 2000)
    chosen = np.arange(0, 2000, 5)
    whole = Population(Rows([values]), 5).fit(chosen)
    some = np.sort(np.random.default_rng(0).choice(2000, 1000, replace=False))
    part = Population(Rows([values]), 5, queries=some).fit(chosen)
    for name in ("recall", "coverage"):
        assert getattr(part, name) == pytest.approx(getattr(whole, name), abs=4 * 0.5 / 1000**0.5)
    assert part.density == pytest.approx(whole.density, rel=0.15)
    assert part.mean_radius == pytest.approx(whole.mean_radius, rel=0.1)
    assert part.max_radius <= whole.max_radius
    assert part.precision == 1


def test_refuses_more_neighbours_than_there_are() -> None:
    rows = Rows([clumps(6, 10)])
    with pytest.raises(OptionError, match="1 to 9"):
        Population(rows, 10)
    with pytest.raises(OptionError, match="fewer neighbours"):
        Population(rows, 5).fit(np.arange(5))
