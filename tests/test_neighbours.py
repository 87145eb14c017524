from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from dcprune import neighbours
from dcprune.artifacts import Rows
from dcprune.errors import OptionError
from dcprune.neighbours import nearest_neighbours


def points(num: int = 200, dim: int = 6, shift: float = 0) -> NDArray[np.float32]:
    values: NDArray[np.float64] = np.random.default_rng(0).normal(shift, 1, (num, dim))
    return values.astype(np.float32)


@pytest.mark.parametrize("shift", [0, 1000])
@pytest.mark.parametrize("block_rows", [2048, 17])
def test_neighbours_are_those_of_scikit_learn(monkeypatch: pytest.MonkeyPatch, shift: int, block_rows: int) -> None:
    from sklearn.neighbors import NearestNeighbors

    monkeypatch.setattr(neighbours, "_BLOCK_ROWS", block_rows)
    values = points(shift=shift)
    found = nearest_neighbours(Rows([values[:70], values[70:]]), 7)
    distances, positions = (
        NearestNeighbors(n_neighbors=8, algorithm="brute").fit(values.astype(np.float64)).kneighbors()
    )
    np.testing.assert_array_equal(found.positions, positions[:, :7])
    np.testing.assert_allclose(found.distances, distances[:, :7], rtol=1e-6)


def test_duplicates_are_at_distance_zero_and_none_is_its_own_neighbour() -> None:
    values = np.repeat(points(20), 4, axis=0)
    found = nearest_neighbours(Rows([values]), 3)
    expected = [[row // 4 * 4 + other for other in range(4) if other != row % 4] for row in range(80)]
    np.testing.assert_array_equal(found.positions, expected)
    np.testing.assert_array_equal(found.distances, 0)


def test_a_few_rows_are_all_neighbours_of_each_other() -> None:
    found = nearest_neighbours(Rows([points(4)]), 10)
    assert [sorted(row) for row in found.positions.tolist()] == [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]]
    assert nearest_neighbours(Rows([points(1)]), 10).distances.shape == (1, 0)


def test_row_index_chooses_and_orders_the_rows() -> None:
    values = points()
    index = np.random.default_rng(1).permutation(200)[:60].astype(np.int64)
    some = nearest_neighbours(Rows([values]), 4, row_index=index)
    same = nearest_neighbours(Rows([values[index]]), 4)
    np.testing.assert_array_equal(some.positions, same.positions)
    np.testing.assert_array_equal(some.distances, same.distances)


def test_refuses_no_neighbours() -> None:
    with pytest.raises(OptionError, match="at least 1"):
        nearest_neighbours(Rows([points()]), 0)


@pytest.mark.parametrize("block_rows", [2048, 13])
def test_queries_look_among_other_rows(monkeypatch: pytest.MonkeyPatch, block_rows: int) -> None:
    from scipy.spatial.distance import cdist

    monkeypatch.setattr(neighbours, "_BLOCK_ROWS", block_rows)
    values = points()
    among = np.random.default_rng(2).permutation(200)[:50].astype(np.int64)
    queries = np.arange(0, 200, 3, dtype=np.int64)  # some of them are among the rows, most are not
    found = nearest_neighbours(Rows([values[:90], values[90:]]), 4, row_index=among, queries=queries)
    table = cdist(values[queries].astype(np.float64), values[among].astype(np.float64))
    table[queries[:, None] == among] = np.inf
    np.testing.assert_array_equal(found.positions, np.argsort(table, axis=1, kind="stable")[:, :4])
    np.testing.assert_allclose(found.distances, np.sort(table, axis=1)[:, :4], rtol=1e-12)


def test_a_query_outside_has_every_row_as_a_neighbour() -> None:
    values = Rows([points(5)])
    outside = nearest_neighbours(values, 9, row_index=np.array([1, 2]), queries=np.array([0, 4]))
    assert outside.distances.shape == (2, 2)
    inside = nearest_neighbours(values, 9, row_index=np.array([1, 2]), queries=np.array([0, 2]))
    assert inside.distances.shape == (2, 1)
