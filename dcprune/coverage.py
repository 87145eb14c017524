"""How well some samples cover all of them, exactly and in blocks: no N x N matrix is ever held.

Precision, recall, density and coverage count samples in balls that reach up to a k-th nearest neighbour; the coverage
radius is the distance to the nearest chosen sample.

Sources: Kynkaanniemi et al. 2019 (arXiv 1904.06991) for precision and recall, Naeem et al. 2020 (arXiv 2002.09797) for
density and coverage; Sener and Savarese 2018 (arXiv 1708.00489) for the coverage radius, the objective of k-center.

There, generated samples take the place of the chosen ones. Chosen samples are some of the real ones, so each lies in
its own ball: precision is 1 but for samples with k exact duplicates, whose balls are empty.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from dcprune.artifacts import Rows
from dcprune.errors import OptionError
from dcprune.interfaces import Progress
from dcprune.neighbours import nearest_neighbours

_BLOCK_ROWS = 2048
_BLOCK_BYTES = 32 << 20
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Fit:
    """What `Population.fit` finds; the ball of a sample reaches up to its k-th nearest neighbour, which is outside.

    Attributes:
        precision: share of the chosen samples in a ball of any sample, balls among all samples.
        recall: share of all samples in a ball of a chosen sample, balls among the chosen samples.
        density: mean number of such balls of all samples that a chosen sample is in, divided by k.
        coverage: share of all samples with a chosen sample in their ball, balls among all samples.
        mean_radius, max_radius: distance of a sample to the nearest chosen one, over all samples.
    """

    precision: float
    recall: float
    density: float
    coverage: float
    mean_radius: float
    max_radius: float


class Population:
    """All samples, with the neighbours of each, ready to be compared with any choice of them.

    The neighbours cost 2 q N D operations, each `fit` to n chosen samples 2 q n D + 2 n^2 D, all in float64.

    Args:
        rows: the matrix [N, D].
        num_neighbours: k.
        queries: int64 [q], ascending rows that stand for all samples; all of them when None.
        device: where the products are computed.
        progress: counts samples.

    Raises:
        OptionError: k is not in [1, N - 1].
    """

    def __init__(
        self,
        rows: Rows,
        num_neighbours: int,
        *,
        queries: NDArray[np.int64] | None = None,
        device: torch.device = _CPU,
        progress: Progress | None = None,
    ) -> None:
        if not 1 <= num_neighbours < len(rows):
            raise OptionError(f"{num_neighbours} nearest neighbours of {len(rows)} samples: 1 to {len(rows) - 1} work.")
        self.rows = rows
        self.num_neighbours = num_neighbours
        self.queries = np.arange(len(rows)) if queries is None else queries
        self.device = _CPU if device.type == "mps" else device  # MPS has no float64
        found = nearest_neighbours(rows, num_neighbours, queries=queries, device=self.device, progress=progress)
        self._radii = found.distances[:, -1]
        self._inside = np.where(found.distances < self._radii[:, None], found.positions, -1)

    def fit(self, chosen: NDArray[np.int64]) -> Fit:
        """How well the ascending rows `chosen` int64 [n] stand for all samples.

        Raises:
            OptionError: no more than k samples, which have no k-th neighbour among themselves.
        """
        if len(chosen) <= self.num_neighbours:
            raise OptionError(
                f"{len(chosen)} samples have no {self.num_neighbours}-th nearest neighbour among themselves: look at "
                "fewer neighbours, or choose more samples."
            )
        is_chosen = np.zeros(len(self.rows) + 1, dtype=bool)  # the last one is what -1 means
        is_chosen[chosen] = True
        own_ball = is_chosen[self.queries] & (self._radii > 0)
        in_ball = is_chosen[self._inside].sum(axis=1) + own_ball
        distances, recalled = self._nearest_chosen(chosen, is_chosen)
        share_seen = len(self.queries) / len(self.rows)
        return Fit(
            precision=self._precision(is_chosen, own_ball),
            recall=float(recalled.mean()),
            density=float(in_ball.sum() / share_seen / (self.num_neighbours * len(chosen))),
            coverage=float((in_ball > 0).mean()),
            mean_radius=float(distances.mean()),
            max_radius=float(distances.max()),
        )

    def _precision(self, is_chosen: NDArray[np.bool_], own_ball: NDArray[np.bool_]) -> float:
        """Over the chosen samples among the queries; 1 when there are none."""
        in_any = np.zeros(len(is_chosen), dtype=bool)
        in_any[self._inside] = True
        in_any[self.queries[own_ball]] = True
        seen = self.queries[is_chosen[self.queries]]
        return float(in_any[seen].mean()) if len(seen) else 1.0

    def _nearest_chosen(
        self, chosen: NDArray[np.int64], is_chosen: NDArray[np.bool_]
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Distance of every query to the nearest chosen sample, and whether it is in the ball of any, both [q]."""
        among = nearest_neighbours(self.rows, self.num_neighbours, row_index=chosen, device=self.device)
        radii = among.distances[:, -1]
        nearest = np.empty(len(self.queries), dtype=np.int64)
        recalled = np.empty(len(self.queries), dtype=bool)
        for span in self._spans(len(self.queries)):
            nearest[span], recalled[span] = self._cross(self.queries[span], chosen, radii)
        distances = self._distances(nearest)
        mine = is_chosen[self.queries]
        distances[mine] = 0
        recalled[mine] |= radii[np.searchsorted(chosen, self.queries[mine])] > 0
        return distances, recalled

    def _cross(
        self, queries: NDArray[np.int64], chosen: NDArray[np.int64], radii: NDArray[np.float64]
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """The nearest chosen row of each of a block of queries, and whether the query is in any chosen ball.

        What lies on a boundary, as duplicates of a k-th neighbour do, is outside; so is what rounding cannot tell.
        """
        block = self._take(queries)
        norms = block.square().sum(1)
        best = torch.full((len(block),), torch.inf, dtype=torch.float64, device=self.device)
        nearest = torch.zeros(len(block), dtype=torch.int64, device=self.device)
        margin = best.clone()
        for span in self._spans(len(chosen)):
            others = self._take(chosen[span])
            # |x|^2 is the same for all candidates of x.
            sizes = others.square().sum(1)
            relative = torch.addmm(sizes, block, others.T, alpha=-2)
            values, places = relative.min(dim=1)
            nearest = torch.where(values < best, places + span.start, nearest)
            best = torch.minimum(best, values)
            balls = torch.from_numpy(np.where(radii[span] > 0, np.square(radii[span]), -np.inf)).to(self.device)
            rounding = block.shape[1] * torch.finfo(torch.float64).eps * (norms + sizes.max())
            margin = torch.minimum(margin, relative.sub_(balls).amin(dim=1) + norms + rounding)
        return chosen[nearest.cpu().numpy()], (margin < 0).cpu().numpy()

    def _distances(self, nearest: NDArray[np.int64]) -> NDArray[np.float64]:
        """Distances of the queries to one row each, summed directly."""
        distances = np.empty(len(self.queries))
        for span in self._spans(len(nearest)):
            offsets = self._take(self.queries[span]) - self._take(nearest[span])
            distances[span] = torch.linalg.vector_norm(offsets, dim=1).cpu().numpy()
        return distances

    def _spans(self, count: int) -> Iterator[slice]:
        """Blocks of at most `_BLOCK_ROWS` positions and 32 MiB; pages of files that were read are given back."""
        step = max(1, min(_BLOCK_ROWS, _BLOCK_BYTES // (8 * self.rows.shape[1])))
        for start in range(0, count, step):
            yield slice(start, min(start + step, count))
            self.rows.release()

    def _take(self, index: NDArray[np.int64]) -> torch.Tensor:
        """Rows float64 [m, D] on the device."""
        return torch.from_numpy(self.rows[index].astype(np.float64)).to(self.device)
