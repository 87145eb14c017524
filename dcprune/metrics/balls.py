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


def nearest_among(centres: Rows, points: Rows, num_neighbours: int = 1) -> Neighbours:
    """The nearest rows of `centres` [n, D], k of them, to each of `points` [q, D]; 2 q n D operations."""
    both = Rows([*centres.parts, *points.parts])
    among, queries = np.split(np.arange(len(both)), [len(centres)])
    return nearest_neighbours(both, num_neighbours, row_index=among, queries=queries)


def radii(rows: Rows, num_neighbours: int) -> NDArray[np.float64]:
    """Distance of every row [N, D] to its k-th nearest other row, float64 [N]; k is below N."""
    return nearest_neighbours(rows, num_neighbours).distances[:, -1]


def balls_around(points: Rows, centres: Rows, num_neighbours: int) -> NDArray[np.int64]:
    """In how many balls of `centres` [n, D] each of `points` [q, D] lies, int64 [q].

    A boundary is outside, and so is what float64 rounding cannot tell from it. 2 n^2 D + 2 q n D operations.
    """
    square_radii = torch.from_numpy(np.square(radii(centres, num_neighbours)))
    counts = np.zeros(len(points), dtype=np.int64)
    for span, centre_span, square_distances in _square_distances(points, centres):
        counts[span] += (square_distances < square_radii[centre_span]).sum(1).numpy()
    return counts


def gained_by_each_centre(points: Rows, centres: Rows, num_neighbours: int) -> NDArray[np.int64]:
    """How many fewer of `points` [q, D] would lie in any ball without each of `centres` [n, D], int64 [n].

    A centre takes its own ball away with it, and the balls of those that had it among their k nearest reach up to the
    next one; where that takes more points in than it loses, the number is negative. n is at least k + 2.
    """
    near = nearest_neighbours(centres, num_neighbours + 1)
    inner, outer = (torch.from_numpy(np.square(near.distances[:, column])) for column in (-2, -1))
    counts = np.zeros(len(points), dtype=np.int64)
    inside: list[NDArray[np.int64]] = []
    shells: list[NDArray[np.int64]] = []
    for span, centre_span, square_distances in _square_distances(points, centres):
        within = square_distances < inner[centre_span]
        counts[span] += within.sum(1).numpy()
        shell = (square_distances < outer[centre_span]) & ~within
        start = np.array([span.start, centre_span.start])
        inside.append(_few(within, counts[span]).nonzero().numpy() + start)
        shells.append(_few(shell, counts[span]).nonzero().numpy() + start)
    members = near.positions[:, :num_neighbours]
    found = np.zeros(len(centres), dtype=np.int64)
    in_shells: dict[int, set[int]] = {}
    for point, centre in np.concatenate(shells):
        if counts[point] <= 1:
            in_shells.setdefault(int(point), set()).update(members[centre].tolist())
    for point, centre in np.concatenate(inside):
        if counts[point] == 1 and int(centre) not in in_shells.get(int(point), set()):
            found[centre] += 1
    for point, neighbours in in_shells.items():
        if counts[point] == 0:
            found[list(neighbours)] -= 1
    return found


def _few(mask: torch.Tensor, counts: NDArray[np.int64]) -> torch.Tensor:
    """A mask [q, n] for the points that lie in at most one ball so far."""
    return mask & torch.from_numpy(counts <= 1)[:, None]


def _square_distances(points: Rows, centres: Rows) -> Iterator[tuple[slice, slice, torch.Tensor]]:
    """Squared distances float64 [q, n] block by block, plus what rounding may have taken from them."""
    for span in _spans(points):
        block = torch.from_numpy(points[span].astype(np.float64))
        norms = block.square().sum(1, keepdim=True)
        for centre_span in _spans(centres):
            other = torch.from_numpy(centres[centre_span].astype(np.float64))
            sizes = other.square().sum(1)
            square_distances = torch.addmm(sizes, block, other.T, alpha=-2).add_(norms)
            rounding = points.shape[1] * _EPS * (norms + sizes)
            yield span, centre_span, square_distances.add_(rounding)


def _spans(rows: Rows) -> Iterator[slice]:
    for start in range(0, len(rows), _BLOCK_ROWS):
        yield slice(start, min(start + _BLOCK_ROWS, len(rows)))
