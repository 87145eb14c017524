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

_DEGREE = 3
_TILE = 2048

PROTOCOL = {"distance": "mmd", "kernel": f"polynomial, degree {_DEGREE}, gamma 1/D, offset 1", "estimator": "unbiased"}


def subset_protocol(num_subsets: int, subset_size: int, subset_seed: int) -> dict[str, Any]:
    """How the kernel distance was estimated; see `distance_of_subsets`."""
    if num_subsets == 0:
        return {**PROTOCOL, "num_subsets": 0}
    return {**PROTOCOL, "num_subsets": num_subsets, "subset_size": subset_size, "subset_seed": subset_seed}


def distance_of_subsets(
    generated: Features, reference: Features, *, num_subsets: int, subset_size: int, subset_seed: int
) -> float:
    """Mean discrepancy over random subsets of both sides.

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
    rows = checked_rows("A kernel distance", generated, reference, least_generated=2, least_reference=2)
    size = min(subset_size, *(len(side) for side in rows))
    if num_subsets == 0 or all(len(side) == size for side in rows):
        return discrepancy(*rows)
    generator = np.random.default_rng(subset_seed)
    direction = generator.normal(size=rows[0].shape[1])
    orders = [_order(side, direction) for side in rows]
    found = []
    for _ in range(num_subsets):
        first, second = (
            Rows([side[order[generator.choice(len(order), size, replace=False)]]])
            for side, order in zip(rows, orders, strict=True)
        )
        found.append(discrepancy(first, second))
    return float(np.mean(found))


def discrepancy(first: Rows, second: Rows) -> float:
    """Unbiased estimate from all pairs of the rows of two matrices [n, D] and [m, D], in tiles."""
    n, m = len(first), len(second)
    within = _sum_of_others(first) / (n * (n - 1)) + _sum_of_others(second) / (m * (m - 1))
    across = sum(_tile(first, one, second, other) for one in _spans(first) for other in _spans(second))
    return within - 2 * across / (n * m)


def _order(rows: Rows, direction: NDArray[np.float64]) -> NDArray[np.int64]:
    keys = np.concatenate([rows[span].astype(np.float64) @ direction for span in _spans(rows)])
    return np.argsort(keys, kind="stable")


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
    left = torch.from_numpy(first[one].astype(np.float64))
    right = torch.from_numpy(second[other].astype(np.float64))
    return float((left @ right.T).div_(first.shape[1]).add_(1).pow_(_DEGREE).sum())
