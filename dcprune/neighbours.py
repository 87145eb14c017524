"""Exact nearest neighbours in blocks: no n x n matrix is ever held."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from dcprune.artifacts import Rows
from dcprune.errors import OptionError
from dcprune.interfaces import Progress
from dcprune.progress import SILENT

_BLOCK_BYTES = 32 << 20
_BLOCK_ROWS = 2048
_CPU = torch.device("cpu")


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The nearest of n rows, for each of q rows.

    Attributes:
        positions: int64 [q, k], positions among the n rows, nearest first, of equally near ones the first.
        distances: float64 [q, k], Euclidean, exactly 0 for duplicates.
    """

    positions: NDArray[np.int64]
    distances: NDArray[np.float64]


def nearest_neighbours(
    rows: Rows,
    num_neighbours: int,
    *,
    row_index: NDArray[np.int64] | None = None,
    queries: NDArray[np.int64] | None = None,
    device: torch.device = _CPU,
    progress: Progress | None = None,
) -> Neighbours:
    """The nearest other rows by Euclidean distance, by brute force.

    Candidates come from float64 products on `device`; the distances to those that are taken are then summed directly.
    Which of several equally distant rows takes the last place is not defined, but it is the same every time.

    Costs 2 q n D operations and q / 2048 reads of the rows. Beside the rows, memory holds 16 bytes for each neighbour
    and a few blocks of 32 MiB.

    Args:
        rows: the matrix [N, D].
        num_neighbours: neighbours k of each row; fewer when there are no more.
        row_index: int64 [n], the distinct rows to look among, in this order; all of them when None.
        queries: int64 [q], the rows whose neighbours are wanted; those of `row_index` when None. None of them is its
            own neighbour.
        device: where the products are computed.
        progress: counts queries.

    Raises:
        OptionError: fewer than one neighbour.
    """
    if num_neighbours < 1:
        raise OptionError(f"{num_neighbours} nearest neighbours: at least 1 is needed.")
    device = _CPU if device.type == "mps" else device  # MPS has no float64
    points = _Points(rows, row_index, device)
    wanted = points if queries is None else _Points(rows, queries, device)
    own = np.arange(len(points)) if queries is None else _places(points.index(slice(None)), queries)
    kept = min(num_neighbours, len(points) - bool((own >= 0).any()))
    positions = np.empty((len(wanted), kept), dtype=np.int64)
    distances = np.empty((len(wanted), kept))
    with (progress or SILENT).task("nearest neighbours", len(wanted), "samples") as task:
        for span in wanted.spans(_BLOCK_ROWS) if kept else ():
            positions[span] = _candidates(points, wanted.take(span), own[span], kept)
            task.advance(span.stop - span.start)
    for span in wanted.spans(max(1, _BLOCK_ROWS // kept)) if kept else ():
        positions[span], distances[span] = _ranked(points, wanted.take(span), positions[span])
    return Neighbours(positions, distances)


def _places(among: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Position of every row of `rows` in `among`; -1 where it is not there."""
    order = np.argsort(among)
    found = order[np.minimum(np.searchsorted(among, rows, sorter=order), len(among) - 1)]
    return np.where(among[found] == rows, found, -1)


class _Points:
    """A sequence of rows as float64 blocks."""

    def __init__(self, rows: Rows, row_index: NDArray[np.int64] | None, device: torch.device) -> None:
        self._rows = rows
        self._row_index = row_index
        self._device = device

    def __len__(self) -> int:
        return len(self._rows) if self._row_index is None else len(self._row_index)

    def spans(self, most: int) -> Iterator[slice]:
        """Blocks of at most `most` positions and 32 MiB; pages of files that were read are given back after each."""
        step = max(1, min(most, _BLOCK_BYTES // (8 * self._rows.shape[1])))
        for start in range(0, len(self), step):
            yield slice(start, min(start + step, len(self)))
            self._rows.release()

    def index(self, positions: slice) -> NDArray[np.int64]:
        """Numbers of rows int64 [m]."""
        return np.arange(len(self))[positions] if self._row_index is None else self._row_index[positions]

    def take(self, positions: slice | NDArray[np.int64]) -> torch.Tensor:
        """Rows float64 [m, D] on the device."""
        index = positions if self._row_index is None else self._row_index[positions]
        return torch.from_numpy(self._rows[index].astype(np.float64)).to(self._device)


def _candidates(points: _Points, block: torch.Tensor, own: NDArray[np.int64], kept: int) -> NDArray[np.int64]:
    """Positions int64 [m, kept] of the nearest of `points` to each row of a block, in any order.

    `own` int64 [m] are the positions of the block's rows themselves, which are left out.
    """
    best = torch.empty((len(block), 0), dtype=torch.float64, device=block.device)
    found = torch.empty((len(block), 0), dtype=torch.int64, device=block.device)
    for other_span in points.spans(_BLOCK_ROWS):
        other = points.take(other_span)
        # |x|^2 is the same for all candidates of x.
        relative = torch.addmm(other.square().sum(1), block, other.T, alpha=-2)
        here = np.flatnonzero((own >= other_span.start) & (own < other_span.stop))
        relative[torch.from_numpy(here), torch.from_numpy(own[here] - other_span.start)] = torch.inf
        nearest = relative.topk(min(kept, len(other)), dim=1, largest=False)
        best = torch.cat([best, nearest.values], dim=1)
        found = torch.cat([found, nearest.indices + other_span.start], dim=1)
        if best.shape[1] > kept:
            best, order = best.topk(kept, dim=1, largest=False)
            found = found.gather(1, order)
    return found.cpu().numpy()


def _ranked(
    points: _Points, block: torch.Tensor, positions: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Positions [m, k] by distance to the block's rows, then by position, and the distances."""
    positions = np.sort(positions, axis=1)
    count, kept = positions.shape
    others = points.take(positions.ravel()).reshape(count, kept, -1)
    distances = torch.linalg.vector_norm(others - block[:, None], dim=2).cpu().numpy()
    order = np.argsort(distances, axis=1, kind="stable")
    return np.take_along_axis(positions, order, axis=1), np.take_along_axis(distances, order, axis=1)
