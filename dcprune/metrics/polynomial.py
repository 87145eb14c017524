"""The unbiased squared maximum mean discrepancy under a polynomial kernel, in float64.

Source: Binkowski et al. 2018 (arXiv 1801.01401, section 4): k(x, y) = (x.y / D + 1)^3, and with n and m rows
sum over i != j of k(x_i, x_j) / (n (n - 1)) + the same of y - 2 mean k(x, y). It may be negative.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dcprune.artifacts import Rows
from dcprune.interfaces import Features
from dcprune.metrics.checks import checked_rows
from dcprune.metrics.influence import centred
from dcprune.metrics.order import order_of

_DEGREE = 3
_TILE = 2048
_MOST_PARTNERS = 4096

PROTOCOL = {"distance": "mmd", "kernel": f"polynomial, degree {_DEGREE}, gamma 1/D, offset 1", "estimator": "unbiased"}


def subset_protocol(num_subsets: int, subset_size: int, subset_seed: int) -> dict[str, Any]:
    """How the kernel distance was estimated; see `distance_of_subsets`."""
    if num_subsets == 0:
        return {**PROTOCOL, "num_subsets": 0}
    return {**PROTOCOL, "num_subsets": num_subsets, "subset_size": subset_size, "subset_seed": subset_seed}


def distances_of_subsets(
    generated: Features, reference: Features, *, num_subsets: int, subset_size: int, subset_seed: int
) -> NDArray[np.float64]:
    """Discrepancies of random subsets of both sides, float64 [num_subsets]; their mean is the kernel distance.

    A subset has `subset_size` rows, or as many as the smaller side; where that is all of both sides, one is evaluated.
    Subsets are drawn from the rows in the order of a random projection, so the order of the images does not count.

    Args:
        generated: at least two images.
        reference: at least two images.
        num_subsets: 0 takes all pairs of all rows, to which the mean over more and more subsets converges.
        subset_size: rows of each side in a subset.
        subset_seed: of the subsets.

    Raises:
        InputError: fewer than two images on one side, features of unlike width or that are not finite.
    """
    rows = _checked(generated, reference)
    size = min(subset_size, *(len(side) for side in rows))
    if num_subsets == 0 or all(len(side) == size for side in rows):
        return np.array([discrepancy(*rows)])
    generator = np.random.default_rng(subset_seed)
    direction = generator.normal(size=rows[0].shape[1])
    orders = [order_of(side, direction) for side in rows]
    found = np.empty(num_subsets)
    for number in range(num_subsets):
        first, second = (
            Rows([side[order[generator.choice(len(order), size, replace=False)]]])
            for side, order in zip(rows, orders, strict=True)
        )
        found[number] = discrepancy(first, second)
    return found


def influence_on_discrepancy(generated: Features, reference: Features, *, subset_seed: int) -> NDArray[np.float64]:
    """What each generated image does to the discrepancy of all pairs: float64 [N], of mean 0.

    That is 2 (mean k(x, x') - mean k(x, y)) over the other images x' and all y, less its mean. Beyond 4,096 images of
    a side, both means are over a random choice of so many; 4 N 4096 D operations.

    Raises:
        InputError: as in `distances_of_subsets`.
    """
    first, second = _checked(generated, reference)
    generator = np.random.default_rng(subset_seed)
    own, others = (_chosen(len(side), generator) for side in (first, second))
    found = _mean_kernel(first, Rows([first[own]])) - _mean_kernel(first, Rows([second[others]]))
    squares = np.square(first[own].astype(np.float64)).sum(axis=1)
    themselves = (squares / first.shape[1] + 1) ** _DEGREE
    across = _mean_kernel(Rows([first[own]]), Rows([second[others]]))
    # The mean over the others of those that are among the chosen ones: without themselves.
    found[own] = ((found[own] + across) * len(own) - themselves) / (len(own) - 1) - across
    return centred(2 * found)


def _checked(generated: Features, reference: Features) -> tuple[Rows, Rows]:
    return checked_rows("A kernel distance", generated, reference, least_generated=2, least_reference=2)


def _chosen(count: int, generator: np.random.Generator) -> NDArray[np.int64]:
    return np.sort(generator.choice(count, min(count, _MOST_PARTNERS), replace=False))


def _mean_kernel(first: Rows, second: Rows) -> NDArray[np.float64]:
    """Mean kernel of every row of the first matrix with all rows of the second, float64 [n]."""
    found = np.zeros(len(first))
    for one in _spans(first):
        found[one] = sum(_kernel(first, one, second, other).sum(1).numpy() for other in _spans(second))
    return found / len(second)


def discrepancy(first: Rows, second: Rows) -> float:
    """Unbiased estimate from all pairs of the rows of two matrices [n, D] and [m, D], in tiles."""
    n, m = len(first), len(second)
    within = _sum_of_others(first) / (n * (n - 1)) + _sum_of_others(second) / (m * (m - 1))
    across = sum(_tile(first, one, second, other) for one in _spans(first) for other in _spans(second))
    return within - 2 * across / (n * m)


def _spans(rows: Rows, start: int = 0) -> list[slice]:
    return [slice(first, first + _TILE) for first in range(start, len(rows), _TILE)]


def _sum_of_others(rows: Rows) -> float:
    """Sum of the kernel over all ordered pairs of two different rows."""
    total = 0.0
    for span in _spans(rows):
        squares = np.square(rows[span].astype(np.float64)).sum(axis=1)
        total += _tile(rows, span, rows, span) - float(np.sum((squares / rows.shape[1] + 1) ** _DEGREE))
        total += 2 * sum(_tile(rows, span, rows, other) for other in _spans(rows, span.stop))
    return total


def _tile(first: Rows, one: slice, second: Rows, other: slice) -> float:
    """Sum of the kernel over all pairs of two blocks of rows."""
    return float(_kernel(first, one, second, other).sum())


def _kernel(first: Rows, one: slice, second: Rows, other: slice) -> torch.Tensor:
    """The kernel of all pairs of two blocks of rows, float64."""
    left = torch.from_numpy(first[one].astype(np.float64))
    right = torch.from_numpy(second[other].astype(np.float64))
    return (left @ right.T).div_(first.shape[1]).add_(1).pow_(_DEGREE)
