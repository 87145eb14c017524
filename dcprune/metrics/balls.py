"""Nearest neighbours between two sets of features, and the balls that they span; exactly and in blocks."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from dcprune.artifacts import Rows
from dcprune.neighbours import Neighbours, nearest_neighbours

_BLOCK_ROWS = 2048
_EPS = torch.finfo(torch.float64).eps


def nearest_among(centres: Rows, points: Rows) -> Neighbours:
    """The nearest row of `centres` [n, D] to each of `points` [q, D]; 2 q n D operations."""
    both = Rows([*centres.parts, *points.parts])
    among, queries = np.split(np.arange(len(both)), [len(centres)])
    return nearest_neighbours(both, 1, row_index=among, queries=queries)


def radii(rows: Rows, num_neighbours: int) -> NDArray[np.float64]:
    """Distance of every row [N, D] to its k-th nearest other row, float64 [N]; k is below N."""
    return nearest_neighbours(rows, num_neighbours).distances[:, -1]


def balls_around(points: Rows, centres: Rows, num_neighbours: int) -> NDArray[np.int64]:
    """In how many balls of `centres` [n, D] each of `points` [q, D] lies, int64 [q].

    A boundary is outside, and so is what float64 rounding cannot tell from it. 2 n^2 D + 2 q n D operations.
    """
    square_radii = torch.from_numpy(np.square(radii(centres, num_neighbours)))
    counts = np.zeros(len(points), dtype=np.int64)
    for span in _spans(points):
        block = torch.from_numpy(points[span].astype(np.float64))
        norms = block.square().sum(1, keepdim=True)
        for centre_span in _spans(centres):
            other = torch.from_numpy(centres[centre_span].astype(np.float64))
            sizes = other.square().sum(1)
            square_distances = torch.addmm(sizes, block, other.T, alpha=-2).add_(norms)
            rounding = points.shape[1] * _EPS * (norms + sizes)
            inside = square_distances.add_(rounding) < square_radii[centre_span]
            counts[span] += inside.sum(1).numpy()
    return counts


def _spans(rows: Rows) -> Iterator[slice]:
    for start in range(0, len(rows), _BLOCK_ROWS):
        yield slice(start, min(start + _BLOCK_ROWS, len(rows)))
