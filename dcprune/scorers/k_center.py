"""Greedy cover of every class: what lies farthest from all that is kept comes next."""

from __future__ import annotations

from typing import Annotated, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from dcprune.artifacts import Embeddings
from dcprune.class_scores import centred
from dcprune.interfaces import ScoringContext

_BLOCK_ROWS = 8192


class KCenter:
    """Farthest-first traversal (Gonzalez 1985; as a coreset Sener and Savarese, ICLR 2018).

    The first sample of a class is the one nearest to the class mean; then always the one whose distance to the nearest
    sample chosen so far is largest, the first of equals. The choice covers the class within twice the smallest
    radius that so many samples can have. It follows outliers: for a generative model that is rarely what helps.

    Scores are the place in this order divided by the size of the class, in [0, 1): the order ends one sample after the
    ratio that is asked for, the others follow by their distance, the farthest first. A smaller choice is the start
    of a larger one.

    The picks are those of the plain loop in float64, found in fewer passes. Distances only shrink, so old ones are
    upper bounds: of the `candidates` farthest rows as many are picked as stay above the bound of all other rows, then
    one float32 product brings all rows up to date. Where float32 cannot tell the farthest rows apart, float64 decides.

    Cost of a class: n k D multiplications for k picks; memory: its n x D float32 matrix, twice.

    Args:
        candidates: rows that picks of one pass are taken from; changes the time, not the result.
    """

    keep: ClassVar[str] = "order"
    per_class: ClassVar[bool] = True

    def __init__(self, candidates: Annotated[int, Field(ge=1)] = 384) -> None:
        self.candidates = candidates

    def score(self, embeddings: Embeddings, context: ScoringContext) -> NDArray[np.float64]:
        """Scores float64 [N]: see above; lower is earlier."""
        scores = np.empty(len(embeddings.embeddings))
        with context.progress.task("score k-center", len(scores), "samples") as task:
            for part in embeddings.by_class():
                picks = min(len(part), int(context.ratio * len(part)) + 1)
                order = _Traversal(part.matrix(), context.device).run(picks, self.candidates)
                scores[part.rows[order]] = np.arange(len(part)) / len(part)
                task.advance(len(part))
        return scores


class _Traversal:
    """State of the traversal of one class.

    Args:
        rows: float32 [n, D], left as they are.
        device: where the products are computed.
    """

    def __init__(self, rows: NDArray[np.float32], device: torch.device) -> None:
        self.rows = rows
        found = centred(rows)
        self.mean, self.norms, self.centred = found.mean, found.norms, found.rows
        # Far above the rounding of a product of D terms and of the centring, in squared units.
        offset = float(np.abs(self.mean).max()) / found.scale
        largest = float(self.norms.max())
        self.tolerance = 2.0**-23 * (np.sqrt(rows.shape[1]) + 8) * (largest + offset * np.sqrt(largest))
        self.device = device if device.type != "cpu" else None
        self.vectors = torch.from_numpy(found.rows).to(device)  # on a CPU the same memory
        self.nearest = np.full(len(rows), np.inf)  # squared distance to the nearest pick, or an upper bound of it
        self.left = np.ones(len(rows), dtype=bool)
        self.picks: list[int] = []

    def run(self, count: int, candidates: int) -> NDArray[np.int64]:
        """All rows in order, of which the first `count` by the traversal."""
        self._bring_up_to_date([self._first()])
        while len(self.picks) < count:
            if self.nearest[self.left].max() <= 2 * self.tolerance:
                self._finish_in_float64(count)
                break
            fresh = self._picks_of_a_pass(min(candidates, int(self.left.sum())), count - len(self.picks))
            self._bring_up_to_date(fresh)
        rest = np.flatnonzero(self.left)
        rest = rest[np.argsort(-self.nearest[rest], kind="stable")]
        return np.concatenate([np.array(self.picks, dtype=np.int64), rest])

    def _first(self) -> int:
        close = np.flatnonzero(self.norms <= self.norms.min() + 2 * self.tolerance)
        exact = np.square(self.rows[close] - self.mean).sum(axis=1)
        return int(close[np.argmin(exact)])

    def _picks_of_a_pass(self, num_candidates: int, most: int) -> list[int]:
        """Picks among the farthest rows, as long as they are certain to beat all others; at least one."""
        order = np.argpartition(-self.nearest, num_candidates - 1)
        mine = np.sort(order[:num_candidates])
        bound = float(self.nearest[order[num_candidates:]].max(initial=-np.inf))
        between = self.norms[mine][:, None] + self.norms[mine] - 2 * self._products(mine, mine)
        distances = self.nearest[mine].copy()
        fresh: list[int] = []
        while len(fresh) < most:
            farthest = float(distances.max())
            if farthest <= bound + 2 * self.tolerance:
                break
            close = np.flatnonzero(distances >= farthest - 2 * self.tolerance)
            place = int(close[0]) if len(close) == 1 else int(close[self._farthest(mine[close], fresh)])
            fresh.append(int(mine[place]))
            np.minimum(distances, between[place], out=distances)
            distances[place] = -np.inf
        if not fresh:
            close = np.flatnonzero(self.nearest >= self.nearest[self.left].max() - 2 * self.tolerance)
            fresh = [int(close[self._farthest(close, [])])]
        return fresh

    def _bring_up_to_date(self, fresh: list[int]) -> None:
        for start in range(0, len(self.rows), _BLOCK_ROWS):
            part = slice(start, start + _BLOCK_ROWS)
            offsets = self._nearest_offsets(fresh, part)
            np.minimum(self.nearest[part], offsets + self.norms[part], out=self.nearest[part])
        self.picks += fresh
        self.left[fresh] = False
        self.nearest[fresh] = -np.inf

    def _nearest_offsets(self, fresh: list[int], part: slice) -> NDArray[np.float32]:
        """Least |c|^2 - 2 c'x over the fresh picks c, float32 [n], for every row x of a part."""
        norms = self.norms[fresh].astype(np.float32)
        if self.device is not None:
            centres = self.vectors[torch.tensor(fresh, device=self.device)]
            products = torch.addmm(torch.from_numpy(norms).to(self.device), self.vectors[part], centres.T, alpha=-2)
            on_device: NDArray[np.float32] = products.amin(dim=1).cpu().numpy()
            return on_device
        offsets = (np.float32(-2) * self.centred[fresh]) @ self.centred[part].T
        offsets += norms[:, None]
        least: NDArray[np.float32] = offsets.min(axis=0)
        return least

    def _products(self, rows: NDArray[np.int64], others: NDArray[np.int64]) -> NDArray[np.float64]:
        """Products [m, k] of some rows with others: float32, as float64."""
        if self.device is None:
            products: NDArray[np.float64] = (self.centred[rows] @ self.centred[others].T).astype(np.float64)
            return products
        some, more = (self.vectors[torch.from_numpy(each).to(self.device)] for each in (rows, others))
        on_device: NDArray[np.float64] = (some @ more.T).double().cpu().numpy()
        return on_device

    def _farthest(self, rows: NDArray[np.int64], fresh: list[int]) -> int:
        """Place of the row that is farthest from all picks, the first of equals, in float64."""
        return int(np.argmax(self._exact_distances(rows, np.array(self.picks + fresh, dtype=np.int64))))

    def _exact_distances(self, rows: NDArray[np.int64], picks: NDArray[np.int64]) -> NDArray[np.float64]:
        """Squared distances float64 [n] of rows to their nearest pick; float32 says which picks may be the nearest."""
        rough = self.norms[picks] - 2 * self._products(rows, picks)
        row, column = np.nonzero(rough <= rough.min(axis=1, keepdims=True) + 2 * self.tolerance)
        exact = np.full(len(rows), np.inf)
        for start in range(0, len(row), _BLOCK_ROWS):
            some = slice(start, start + _BLOCK_ROWS)
            offsets = self.rows[rows[row[some]]].astype(np.float64) - self.rows[picks[column[some]]]
            np.minimum.at(exact, row[some], np.einsum("ij,ij->i", offsets, offsets))
        return exact

    def _finish_in_float64(self, count: int) -> None:
        """The plain loop over the rows that are left, all so near to a pick that float32 sees no distance."""
        left = np.flatnonzero(self.left)
        exact = self._exact_distances(left, np.array(self.picks, dtype=np.int64))
        rows = self.rows[left].astype(np.float64)
        taken: list[int] = []
        while len(self.picks) + len(taken) < count and exact.max() > 0:
            place = int(np.argmax(exact))
            taken.append(place)
            offsets = rows - rows[place]
            np.minimum(exact, np.einsum("ij,ij->i", offsets, offsets), out=exact)
            exact[place] = -np.inf
        self.nearest[left] = exact
        self.picks += left[taken].tolist()
        self.left[left[taken]] = False
