"""Distribution matching: a choice whose mean and covariance are those of the class."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from dcprune.artifacts import Embeddings
from dcprune.interfaces import ScoringContext

# Share of the mismatch in the directions that are left out, and factors that stand for the weights of a pair.
_LEFT_OUT = 0.01
_FACTORS = 6
# Bands of directions whose total variance is kept.
_BANDS = 12
_GROWTH_ROUNDS = 16
_ROUNDS = 60
_LEAST_GAIN = 2e-3
# Fewest and most rows of a round that may come in, and that may go out.
_CANDIDATES = (128, 256)
_BLOCK_ROWS = 8192


class Moment:
    """Moment matching by greedy choice and exchange, class by class.

    Why moments: of a subset for training a generative model, matching the first two moments is what counts (arXiv
    2606.05883), and they are all that the Frechet distance sees. With z the rows of a class, centred and turned to the
    eigenvectors of its covariance Lambda = diag(lambda), a choice S of b rows has the mean m and the deviation
    E = sum_S z z' / b - Lambda. It is chosen to make small

        J(S) = emphasis |m|^2 + 1/2 sum_ij E_ij^2 / (lambda_i + lambda_j) + emphasis/4 sum_g (tr E_g)^2 / tr Lambda_g.

    The first two terms with emphasis 1 are the Frechet distance to second order in E (the Bures metric). A choice of
    many small classes adds up: random errors of the classes cancel, a shared one does not, and plain minimisation
    shares one (it shrinks every variance). So the mean and the total variance of a dozen bands g of directions, from
    the leading one to the tail, weigh `emphasis` times as much.

    J is the squared norm of a mean of features, so a row's pull P_i = emphasis m'z_i + z_i' M z_i, with
    M_ij = E_ij / (2 (lambda_i + lambda_j)) + bands, costs one product for all rows, and adding or exchanging rows
    changes J by P and a kernel k of pairs: exchanging s for i by 2 (P_i - P_s) / b + (k_ii + k_ss - 2 k_is) / b^2.

    1. Grow: in at most 16 rounds, rows are added greedily among those that promise most, each knowing the others.
    2. Exchange: in every round the best pairs among the most and the least wanted rows change places while J falls;
       until a round gains less than 0.2 % of J, or 60 rounds. J is computed in float64 after every round, and a round
       that did not lower it is undone. What comes in takes the place of what goes out.
    3. The rows that are left follow by what adding them would do to J.

    Scores are the place in this order divided by the size of the class. The choice is made for the ratio that is asked
    for and not nested: that of a smaller ratio is another one. `select` with several ratios makes each; from a scores
    file a smaller ratio takes the start of the greedy order, which is better than random and worse than its own. At
    ratio 1 the order is the greedy one.

    Cost of a class: n r^2 multiplications a round for the r <= D directions that hold 99 % of the mismatch, and r^3 for
    the eigenvectors (n^3 if n < D); memory: its n x D matrix in float64 and 2 r^2. For 60,000 x 512 in ten classes
    that is less than a minute on two cores. Rounding may break ties, so other hardware can choose other rows.

    Args:
        emphasis: weight of the mean and the bands, at least 1.
    """

    keep: ClassVar[str] = "order"
    per_class: ClassVar[bool] = True
    nested: ClassVar[bool] = False

    def __init__(self, emphasis: Annotated[float, Field(ge=1)] = 5.0) -> None:
        self.emphasis = emphasis

    def score(self, embeddings: Embeddings, context: ScoringContext) -> NDArray[np.float64]:
        """Scores float64 [N]: see above; lower is more wanted."""
        scores = np.empty(len(embeddings.embeddings))
        with context.progress.task("score moment", len(scores), "samples") as task:
            for part in embeddings.by_class():
                budget = max(1, int(context.ratio * len(part) + 0.5))
                order = self._order(part.matrix().astype(np.float64), budget, context.device)
                scores[part.rows[order]] = np.arange(len(part)) / len(part)
                task.advance(len(part))
        return scores

    def _order(self, rows: NDArray[np.float64], budget: int, device: torch.device) -> NDArray[np.int64]:
        """All rows [n, D] of a class, the chosen ones first."""
        space = _Space.of(rows, self.emphasis, device)
        if space is None:
            return np.arange(len(rows))
        choice = _Choice(space)
        choice.grow(budget)
        if budget < len(rows):
            choice.exchange()
        return choice.order()


@dataclass(frozen=True)
class _Space:
    """What J is made of, for one class.

    Attributes:
        rows: float64 [n, r], centred, in the directions of the eigenvectors.
        variances: lambda, float64 [r].
        weights: 1 / (2 (lambda_i + lambda_j)), float64 [r, r].
        factors: float64 [q, r] with sum_q f_qi f_qj close to `weights`.
        bands: float64 [g, r], a row for every band: sqrt(emphasis / (4 tr Lambda_g)) in it, 0 elsewhere.
        emphasis: weight of the mean.
        vectors: the rows as float32, on the device.
    """

    rows: NDArray[np.float64]
    variances: NDArray[np.float64]
    weights: NDArray[np.float64]
    factors: NDArray[np.float64]
    bands: NDArray[np.float64]
    emphasis: float
    vectors: torch.Tensor

    @classmethod
    def of(cls, rows: NDArray[np.float64], emphasis: float, device: torch.device) -> _Space | None:
        """The space of a class [n, D], None when its rows are all the same."""
        rows = rows - rows.mean(axis=0)
        largest = np.abs(rows).max()
        if largest == 0:
            return None
        rows /= largest
        variances, turned = _principal(rows)
        weights = 0.5 / (variances[:, None] + variances)
        mismatch = variances + (variances[:, None] * variances * weights).sum(axis=1)
        count = int(np.searchsorted(np.cumsum(mismatch), (1 - _LEFT_OUT) * mismatch.sum())) + 1
        variances, turned, weights = variances[:count], turned[:, :count], weights[:count, :count]
        return cls(
            rows=turned,
            variances=variances,
            weights=weights,
            factors=_factors(variances, weights),
            bands=_bands(variances, emphasis),
            emphasis=emphasis,
            vectors=torch.from_numpy(turned.astype(np.float32)).to(device),
        )

    def pulls(self, mean: NDArray[np.float64], deviation: NDArray[np.float64]) -> NDArray[np.float64]:
        """<e, phi(z)> of every row, float64 [n], for a mismatch of `mean` [r] and `deviation` [r, r]."""
        matrix = self.weights * deviation
        matrix[np.diag_indices(len(matrix))] += self.bands.T @ (self.bands @ deviation.diagonal())
        on_device = torch.from_numpy(matrix.astype(np.float32)).to(self.vectors.device)
        linear = torch.from_numpy((self.emphasis * mean).astype(np.float32)).to(self.vectors.device)
        pulls = [((part @ on_device + linear) * part).sum(dim=1) for part in torch.split(self.vectors, _BLOCK_ROWS)]
        return torch.cat(pulls).double().cpu().numpy()

    def squared_mismatch(self, mean: NDArray[np.float64], deviation: NDArray[np.float64]) -> float:
        """J."""
        bands = self.bands @ deviation.diagonal()
        return float(self.emphasis * mean @ mean + (self.weights * deviation**2).sum() + bands @ bands)

    def own(self) -> NDArray[np.float64]:
        """The kernel k(z, z) of every row, float64 [n]."""
        squares = np.square(self.rows)
        own: NDArray[np.float64] = np.einsum("ij,ij->i", squares @ self.weights, squares)
        own += self.emphasis * squares.sum(axis=1) + np.square(squares @ self.bands.T).sum(axis=1)
        return own

    def kernel(self, some: NDArray[np.int64]) -> NDArray[np.float64]:
        """The kernel k of all pairs of some rows, float64 [m, m]."""
        rows = self.rows[some]
        bands = np.square(rows) @ self.bands.T
        result = self.emphasis * rows @ rows.T + bands @ bands.T
        for factor in self.factors:
            result += np.square((rows * factor) @ rows.T)
        return result


def _principal(rows: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Variances in descending order, and centred rows [n, D] in the directions that have them [n, min(n, D)]."""
    count, dim = rows.shape
    if count < dim:
        values, vectors = np.linalg.eigh(rows @ rows.T)
        values, vectors = values[::-1], vectors[:, ::-1]
        turned = vectors * np.sqrt(np.maximum(values, 0))
    else:
        values, vectors = np.linalg.eigh(rows.T @ rows)
        values, vectors = values[::-1], vectors[:, ::-1]
        turned = rows @ vectors
    floor = values[0] * len(values) * np.finfo(np.float64).eps
    kept = values > floor
    return values[kept] / count, np.ascontiguousarray(turned[:, kept])


def _factors(variances: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """A few factors of the weights 1 / (2 (a + b)): so smooth a matrix has hardly more, where there is any variance."""
    scale = np.sqrt(variances)
    values, vectors = np.linalg.eigh(weights * np.outer(scale, scale))
    leading = slice(None, -_FACTORS - 1, -1)
    factors: NDArray[np.float64] = vectors[:, leading] * np.sqrt(np.maximum(values[leading], 0)) / scale[:, None]
    return factors.T


def _bands(variances: NDArray[np.float64], emphasis: float) -> NDArray[np.float64]:
    count = len(variances)
    edges = np.unique(np.round(np.geomspace(1, count + 1, _BANDS + 1)).astype(int)) - 1
    bands = np.zeros((len(edges) - 1, count))
    for band, (start, stop) in enumerate(pairwise(edges)):
        bands[band, start:stop] = np.sqrt(emphasis / (4 * variances[start:stop].sum()))
    return bands


class _Choice:
    """Rows of a class that are chosen, in order, and their sums."""

    def __init__(self, space: _Space) -> None:
        self.space = space
        self.own = space.own()
        self.picks: list[int] = []
        self.taken = np.zeros(len(space.rows), dtype=bool)
        self.total = np.zeros(len(space.variances))
        self.squares = np.zeros((len(space.variances), len(space.variances)))

    def mismatch(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean [r] and deviation [r, r] of the choice."""
        count = max(1, len(self.picks))
        return self.total / count, self.squares / count - np.diag(self.space.variances)

    def grow(self, budget: int) -> None:
        """Choose rows greedily until there are `budget`."""
        typical = self.space.pulls(np.zeros(len(self.total)), np.diag(self.space.variances))
        step = -(-budget // _GROWTH_ROUNDS)
        while len(self.picks) < budget:
            add = min(step, budget - len(self.picks))
            sums = len(self.picks) * self.space.pulls(*self.mismatch()) if self.picks else np.zeros(len(self.own))
            candidates = _lowest(np.where(self.taken, np.inf, self._promise(sums, typical)), 2 * add, ~self.taken)
            kernel = self.space.kernel(candidates)
            pulls = sums[candidates]
            free = np.ones(len(candidates), dtype=bool)
            fresh: list[int] = []
            for number in range(add):
                promise = 2 * (pulls - number * typical[candidates]) + self.own[candidates] - 2 * typical[candidates]
                place = int(np.argmin(np.where(free, promise, np.inf)))
                free[place] = False
                pulls = pulls + kernel[place]
                fresh.append(int(candidates[place]))
            self._change(fresh, [])
            self.picks += fresh

    def _promise(self, sums: NDArray[np.float64], typical: NDArray[np.float64]) -> NDArray[np.float64]:
        """What adding each row would do to the squared mismatch of the sum of features, up to a constant."""
        return 2 * sums + self.own - 2 * typical

    def exchange(self) -> None:
        """Exchange rows while that lowers J."""
        space, budget = self.space, len(self.picks)
        value = space.squared_mismatch(*self.mismatch())
        most = int(np.clip(budget // 4, *_CANDIDATES))
        for _ in range(_ROUNDS):
            pulls = space.pulls(*self.mismatch())
            incoming = _lowest(pulls + self.own / (2 * budget), most, ~self.taken)
            outgoing = _lowest(-pulls + self.own / (2 * budget), most, self.taken)
            pairs = self._pairs(incoming, outgoing, pulls)
            if not pairs:
                return
            before = self.total.copy(), self.squares.copy()
            entering, leaving = [i for i, _ in pairs], [s for _, s in pairs]
            self._change(entering, leaving)
            lower = space.squared_mismatch(*self.mismatch())
            if lower >= value:
                self.total, self.squares = before
                self.taken[leaving], self.taken[entering] = True, False
                return
            swap = dict(zip(leaving, entering, strict=True))
            self.picks = [swap.get(pick, pick) for pick in self.picks]
            if value - lower < _LEAST_GAIN * value:
                return
            value = lower

    def _pairs(
        self, incoming: NDArray[np.int64], outgoing: NDArray[np.int64], pulls: NDArray[np.float64]
    ) -> list[tuple[int, int]]:
        """Pairs (in, out) that lower J one after the other, the best first."""
        budget = len(self.picks)
        split = len(incoming)
        kernel = self.space.kernel(np.concatenate([incoming, outgoing])) / budget
        gains = pulls[incoming] + self.own[incoming] / (2 * budget)
        losses = pulls[outgoing] - self.own[outgoing] / (2 * budget)
        across = kernel[:split, split:]
        pairs: list[tuple[int, int]] = []
        while len(pairs) < min(len(incoming), len(outgoing)):
            change = gains[:, None] - losses - across
            i, s = divmod(int(np.argmin(change)), len(outgoing))
            if not change[i, s] < 0:
                break
            pairs.append((int(incoming[i]), int(outgoing[s])))
            moved = kernel[i] - kernel[split + s]
            gains = gains + moved[:split]
            losses = losses + moved[split:]
            gains[i], losses[s] = np.inf, -np.inf
        return pairs

    def _change(self, entering: list[int], leaving: list[int]) -> None:
        self.taken[entering], self.taken[leaving] = True, False
        for rows, sign in ((self.space.rows[entering], 1), (self.space.rows[leaving], -1)):
            self.total += sign * rows.sum(axis=0)
            self.squares += sign * (rows.T @ rows)

    def order(self) -> NDArray[np.int64]:
        """The choice, the row that is missed least last, then the others by what adding them would do."""
        budget = len(self.picks)
        pulls = self.space.pulls(*self.mismatch())
        chosen = np.array(self.picks, dtype=np.int64)
        least = int(np.argmin(-pulls[chosen] + self.own[chosen] / (2 * budget)))
        chosen = np.concatenate([np.delete(chosen, least), chosen[least : least + 1]])
        rest = np.flatnonzero(~self.taken)
        rest = rest[np.argsort(pulls[rest] + self.own[rest] / (2 * budget), kind="stable")]
        return np.concatenate([chosen, rest])


def _lowest(values: NDArray[np.float64], count: int, among: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The `count` lowest of some values in ascending order, fewer when there are fewer; equals by position."""
    rows = np.flatnonzero(among)
    return rows[np.argsort(values[rows], kind="stable")[:count]]
