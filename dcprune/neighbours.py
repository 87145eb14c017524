"""Exact nearest neighbours in blocks: no n x n matrix is ever held."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from dcprune.artifacts import Rows
from dcprune.errors import OptionError

_BLOCK_BYTES = 32 << 20
_BLOCK_ROWS = 2048
_CPU = torch.device("cpu")


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The nearest other rows of each of n rows.

    Attributes:
        positions: int64 [n, k], positions among the n rows, nearest first, of equally near ones the first.
        distances: float64 [n, k], Euclidean, exactly 0 for duplicates.
    """

    positions: NDArray[np.int64]
    distances: NDArray[np.float64]


def nearest_neighbours(
    rows: Rows, num_neighbours: int, *, row_index: NDArray[np.int64] | None = None, device: torch.device = _CPU
) -> Neighbours:
    """The nearest other rows by Euclidean distance, by brute force.

    Candidates come from float64 products on `device`; the distances to those that are taken are then summed directly.
    Which of several equally distant rows takes the last place is not defined, but it is the same every time.

    Costs 2 n^2 D operations and n / 2048 reads of the rows. Beside the rows, memory holds 16 bytes for each neighbour
    and a few blocks of 32 MiB.

    Args:
        rows: the matrix [N, D].
        num_neighbours: neighbours k of each row; n - 1 when there are no more.
        row_index: int64 [n], the rows to look at, in this order; all of them when None.
        device: where the products are computed.

    Raises:
        OptionError: fewer than one neighbour.
    """
    if num_neighbours < 1:
        raise OptionError(f"{num_neighbours} nearest neighbours: at least 1 is needed.")
    points = _Points(rows, row_index, _CPU if device.type == "mps" else device)  # MPS has no float64
    count, kept = len(points), min(num_neighbours, len(points) - 1)
    positions = np.empty((count, kept), dtype=np.int64)
    distances = np.empty((count, kept))
    if kept > 0:
        for span in points.spans(_BLOCK_ROWS):
            positions[span] = _candidates(points, span, kept)
        for span in points.spans(max(1, _BLOCK_ROWS // kept)):
            positions[span], distances[span] = _ranked(points, span, positions[span])
    return Neighbours(positions, distances)


class _Points:
    """A sequence of rows as float64 blocks."""

    def __init__(self, rows: Rows, row_index: NDArray[np.int64] | None, device: torch.device) -> None:
        self._rows = rows
        self._row_index = row_index
        self._device = device

    def __len__(self) -> int:
        return len(self._rows) if self._row_index is None else len(self._row_index)

    def spans(self, most: int) -> Iterator[slice]:
        """Blocks of at most `most` positions and 32 MiB."""
        step = max(1, min(most, _BLOCK_BYTES // (8 * self._rows.shape[1])))
        for start in range(0, len(self), step):
            yield slice(start, min(start + step, len(self)))

    def take(self, positions: slice | NDArray[np.int64]) -> torch.Tensor:
        """Rows float64 [m, D] on the device."""
        index = positions if self._row_index is None else self._row_index[positions]
        return torch.from_numpy(self._rows[index].astype(np.float64)).to(self._device)


def _candidates(points: _Points, span: slice, kept: int) -> NDArray[np.int64]:
    """Positions int64 [m, kept] of the nearest others of a block, in any order."""
    block = points.take(span)
    best = torch.empty((len(block), 0), dtype=torch.float64, device=block.device)
    found = torch.empty((len(block), 0), dtype=torch.int64, device=block.device)
    for other_span in points.spans(_BLOCK_ROWS):
        other = points.take(other_span)
        # |x|^2 is the same for all candidates of x.
        relative = torch.addmm(other.square().sum(1), block, other.T, alpha=-2)
        if other_span == span:
            relative.fill_diagonal_(torch.inf)
        nearest = relative.topk(min(kept, len(other)), dim=1, largest=False)
        best = torch.cat([best, nearest.values], dim=1)
        found = torch.cat([found, nearest.indices + other_span.start], dim=1)
        if best.shape[1] > kept:
            best, order = best.topk(kept, dim=1, largest=False)
            found = found.gather(1, order)
    return found.cpu().numpy()


def _ranked(
    points: _Points, span: slice, positions: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Positions [m, k] by distance, then by position, and the distances."""
    positions = np.sort(positions, axis=1)
    count, kept = positions.shape
    others = points.take(positions.ravel()).reshape(count, kept, -1)
    distances = torch.linalg.vector_norm(others - points.take(span)[:, None], dim=2).cpu().numpy()
    order = np.argsort(distances, axis=1, kind="stable")
    return np.take_along_axis(positions, order, axis=1), np.take_along_axis(distances, order, axis=1)
