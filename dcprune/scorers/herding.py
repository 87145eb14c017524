"""Greedy choice whose mean follows the mean of the class."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from dcprune.artifacts import ClassRows, Embeddings
from dcprune.class_scores import Centred, centred, score_classes, threads_that_fit
from dcprune.interfaces import ScoringContext

# Products of so many rows stay in the nearest cache while a vector is multiplied.
_PART_ROWS = 4096

Products = Callable[[NDArray[np.float32]], NDArray[np.float32]]


class Herding:
    """Herding of the class mean (Welling, ICML 2009; with exemplars Rebuffi et al., iCaRL, CVPR 2017).

    With z the rows centred at the class mean and Z the sum of those chosen so far, the next one is
    argmin |Z + z|^2 = argmin |z|^2 + 2 Z'z: the mean of the choice comes as close to the class mean as one more sample
    can bring it. Equals go by their index. (Some published code takes the argmax, which leads away from the mean.)

    Scores are the place in this order divided by the size of the class, in [0, 1): the order ends one sample after the
    ratio that is asked for, the others follow by the same criterion at its end. A smaller choice is the start of a
    larger one.

    The picks are those of the plain loop in float64: a step is one float32 product with Z, and where float32 cannot
    tell the best rows apart, float64 decides.

    Cost of a class: n k D multiplications for k picks, one after the other; memory: its n x D float32 matrix, twice.
    """

    keep: ClassVar[str] = "order"
    per_class: ClassVar[bool] = True

    def score(self, embeddings: Embeddings, context: ScoringContext) -> NDArray[np.float64]:
        """Scores float64 [N]: see above; lower is earlier."""
        sizes = [len(rows) for _, rows in embeddings.classes()]
        held = 3 * 4 * max(sizes) * embeddings.embeddings.shape[1]
        on_cpu = context.device.type == "cpu"
        threads = min(threads_that_fit(held), len(sizes)) if on_cpu else 1
        sharing = torch.get_num_threads() // threads if on_cpu else 1

        # BLAS's threads would spin between products that take less than a millisecond, and wait for one another.
        with threadpool_limits(1, "blas"), ThreadPoolExecutor(threads * sharing) as pool:

            def places(part: ClassRows) -> NDArray[np.float64]:
                picks = min(len(part), int(context.ratio * len(part)) + 1)
                rows = part.matrix()
                moved = centred(rows)
                products = _Products(moved.rows, pool, sharing) if on_cpu else _on_device(moved.rows, context.device)
                order = _order(rows, moved, picks, products)
                found = np.empty(len(part))
                found[order] = np.arange(len(part)) / len(part)
                return found

            return score_classes(embeddings, places, context, "score herding", threads=threads)


def _order(rows: NDArray[np.float32], moved: Centred, count: int, products: Products) -> NDArray[np.int64]:
    """All rows of a class in order, of which the first `count` are herded.

    Args:
        rows: float32 [n, D].
        moved: the same, centred.
        count: how many.
        products: of a vector float32 [D] with the centred rows, float32 [n].
    """
    dim = rows.shape[1]
    mean, scale = moved.mean, moved.scale
    longest = float(np.sqrt(moved.norms.max()))
    # Far above the rounding of a product of D terms and of the centring.
    rounding = 2.0**-23 * (np.sqrt(dim) + 8) * (longest + float(np.abs(mean).max()) / scale)
    left = moved.norms.copy()  # infinite for rows that are taken
    total = np.zeros(dim)
    picks = np.empty(count, dtype=np.int64)
    for number in range(count):
        lengths = left + products((2 * total).astype(np.float32))
        tolerance = rounding * (longest + 2 * float(np.linalg.norm(total)))
        close = np.flatnonzero(lengths <= lengths.min() + 2 * tolerance)
        exact = (rows[close] - mean) / scale
        best = int(np.argmin(np.square(exact).sum(axis=1) + 2 * (exact @ total)))
        picks[number] = close[best]
        left[close[best]] = np.inf
        total += exact[best]
    rest = np.flatnonzero(np.isfinite(left))
    lengths = left[rest] + products((2 * total).astype(np.float32))[rest]
    return np.concatenate([picks, rest[np.argsort(lengths, kind="stable")]])


class _Products:
    """Products of a vector [D] with rows [n, D], on threads that share the rows.

    The rows lie transposed, which takes half the time.
    """

    def __init__(self, rows: NDArray[np.float32], pool: Executor, threads: int) -> None:
        count = max(threads, -(-len(rows) // _PART_ROWS))
        columns = [torch.from_numpy(part).T.contiguous().numpy() for part in np.array_split(rows, count)]
        self.found = np.empty(len(rows), dtype=np.float32)
        work = list(zip(columns, np.array_split(self.found, count), strict=True))
        shares = [round(number * count / threads) for number in range(threads + 1)]
        self.shares = [work[start:stop] for start, stop in itertools.pairwise(shares)]
        self.pool = pool

    def __call__(self, vector: NDArray[np.float32]) -> NDArray[np.float32]:
        """The products, in an array that the next call overwrites."""

        def multiply(share: list[tuple[NDArray[np.float32], NDArray[np.float32]]]) -> None:
            for part, found in share:
                np.matmul(vector, part, out=found)

        others = [self.pool.submit(multiply, share) for share in self.shares[1:]]
        multiply(self.shares[0])
        for each in others:
            each.result()
        return self.found


def _on_device(rows: NDArray[np.float32], device: torch.device) -> Products:
    on_device = torch.from_numpy(rows).to(device).T.contiguous()

    def products(vector: NDArray[np.float32]) -> NDArray[np.float32]:
        found: NDArray[np.float32] = (torch.from_numpy(vector).to(device) @ on_device).cpu().numpy()
        return found

    return products
