"""CLIP maximum mean discrepancy."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dcprune.artifacts import Rows
from dcprune.errors import InputError
from dcprune.interfaces import EncoderChoice, Features
from dcprune.metrics.checks import checked_rows
from dcprune.moments import lower_product

_BANDWIDTH = 10.0
_SCALE = 1000.0
_LARGEST_ERROR = 1e-5
_RATE = 1 / _BANDWIDTH**2  # of unit vectors, k(x, y) = exp(_RATE (x.y - 1))
_TILE = 2048


class Cmmd:
    """Squared maximum mean discrepancy of CLIP embeddings, times 1000.

    Source: Jayasumana et al. 2024 (arXiv 2401.09603). With L2-normalised image embeddings of CLIP ViT-L/14 at 336
    pixels and k(x, y) = exp(-|x - y|^2 / (2 10^2)), it is 1000 (mean k(x, x') + mean k(y, y') - 2 mean k(x, y)). The
    means are over all pairs, each image with itself among them, as in the paper's code: the value is biased upwards by
    about 1000 (1 - mean k) / n for either side of n images.

    See `cmmd` for the arithmetic.

    Args:
        exact: evaluate the kernel on every pair; otherwise the value is within 1e-5 of that.
        weights: a file of OpenAI's ViT-L/14@336; None fetches it.
    """

    def __init__(self, *, exact: bool = False, weights: str | None = None) -> None:
        self.exact = exact
        self.encoder = EncoderChoice("open_clip:ViT-L-14-336/openai", {}, weights)

    def value(self, generated: Features, reference: Features) -> float:
        """CMMD, at least 0; one image on a side is enough.

        Raises:
            InputError: no images, features that are not finite, or an embedding that is zero.
        """
        return cmmd(*checked_rows(generated, reference), exact=self.exact)

    def min_samples(self, dim: int) -> int:
        """With 500 images a side adds about 0.01 to 0.02 of bias."""
        return 500

    def protocol(self) -> dict[str, Any]:
        return {
            "distance": "mmd",
            "kernel": f"gaussian, bandwidth {_BANDWIDTH:g}",
            "estimator": "biased",
            "scale": _SCALE,
        }


def cmmd(first: Rows, second: Rows, *, exact: bool = False) -> float:
    """Squared maximum mean discrepancy of the normalised rows under the kernel of `Cmmd`, times 1000.

    Unit vectors are u + m and v + m for any m, so with g = 1 / 10^2 and w(u) = exp(g m.u) the kernel factorises:

        k = exp(g (|m|^2 - 1)) w(u) w(v) exp(g u.v),   exp(g u.v) = sum over j of g^j / j! (u.v)^j.

    As (u.v)^j is the inner product of j-fold tensor powers, the discrepancy is a sum of squares:

        exp(g (|m|^2 - 1)) sum over j of g^j / j! |E w(u) u^(j) - E w(v) v^(j)|^2.

    The terms j <= 2 need a mean, a weighted mean and a weighted second moment S of either side: 2 n D^2 operations.
    What is left out is not negative, and bounded: with R the largest |u| or |v| and Frobenius norms,

        |E w(u) u^(j)|^2 = mean over pairs of w w' (u.u')^j <= R^(2 (j - 2)) |S|^2,

    so it is at most exp(g (|m|^2 - 1)) (|S_u| + |S_v|)^2 (g^3 R^2 / 6) exp(g R^2). Where 1000 times that exceeds 1e-5,
    as when nearly all rows lie along a few directions, every pair is evaluated instead.

    Everything is float64; memory beside the rows: 8 D^2 bytes and a few blocks of 2048 rows.

    Args:
        first: matrix [n, D], finite.
        second: matrix [m, D], finite.
        exact: evaluate every pair in any case, with (n + m)^2 D operations in tiles.

    Raises:
        InputError: a row is zero, so it has no direction.
    """
    if not exact:
        value, error = expanded(first, second)
        if error <= _LARGEST_ERROR:
            return value
    return every_pair(first, second)


def expanded(first: Rows, second: Rows) -> tuple[float, float]:
    """The terms up to the second order, and a bound of the rest: the value lies in [terms, terms + bound]."""
    origin = (_mean(first) + _mean(second)) / 2
    one, other = _Terms.of(first, origin), _Terms.of(second, origin)
    factor = _SCALE * math.exp(_RATE * (origin @ origin - 1))
    zeroth = (one.zeroth - other.zeroth) ** 2
    linear = np.square(one.linear - other.linear).sum()
    value = factor * (zeroth + _RATE * linear + _RATE**2 / 2 * _square_norm(one.quadratic - other.quadratic))
    radius = max(one.square_radius, other.square_radius)
    norms = math.sqrt(_square_norm(one.quadratic)) + math.sqrt(_square_norm(other.quadratic))
    return float(value), float(factor * norms**2 * _RATE**3 * radius / 6 * math.exp(_RATE * radius))


def every_pair(first: Rows, second: Rows) -> float:
    """The discrepancy by its definition, in tiles.

    The mean of k - 1 stands for that of k: the ones cancel.
    """
    value = _mean_kernel(first, first) + _mean_kernel(second, second) - 2 * _mean_kernel(first, second)
    return max(0.0, _SCALE * value)


@dataclass(frozen=True)
class _Terms:
    """Moments of offsets u from an origin m, each weighted by w(u) = exp(g m.u).

    Attributes:
        zeroth: mean w.
        linear: mean w u, float64 [D].
        quadratic: the lower triangle of mean w u u', float64 [D, D], zeros above.
        square_radius: the largest |u|^2.
    """

    zeroth: float
    linear: NDArray[np.float64]
    quadratic: NDArray[np.float64]
    square_radius: float

    @classmethod
    def of(cls, rows: Rows, origin: NDArray[np.float64]) -> _Terms:
        zeroth, square_radius = 0.0, 0.0
        linear, quadratic = np.zeros(len(origin)), np.zeros((len(origin), len(origin)), order="F")
        for block in _unit_blocks(rows):
            block -= origin
            weights = np.exp(_RATE * (block @ origin))
            zeroth += float(weights.sum())
            linear += weights @ block
            square_radius = max(square_radius, float(np.einsum("ij,ij->i", block, block).max()))
            block *= np.sqrt(weights)[:, None]
            quadratic += lower_product(block.T)
        return cls(zeroth / len(rows), linear / len(rows), quadratic / len(rows), square_radius)


def _square_norm(lower: NDArray[np.float64]) -> float:
    """Squared Frobenius norm of a symmetric matrix, from its lower triangle."""
    return float(2 * np.vdot(lower, lower) - np.square(lower.diagonal()).sum())


def _mean(rows: Rows) -> NDArray[np.float64]:
    """Mean direction, float64 [D]."""
    total = np.zeros(rows.shape[1])
    for block in _unit_blocks(rows):
        total += block.sum(axis=0)
    return total / len(rows)


def _unit_blocks(rows: Rows, start: int = 0) -> Iterator[NDArray[np.float64]]:
    """Rows from `start` on, normalised, as new float64 blocks."""
    for first in range(start, len(rows), _TILE):
        block = rows[first : first + _TILE].astype(np.float64)
        norms = np.sqrt(np.einsum("ij,ij->i", block, block))
        if not norms.all():
            raise InputError(f"The embedding in row {first + int(np.argmin(norms))} is zero, so it has no direction.")
        block /= norms[:, None]
        yield block


def _mean_kernel(first: Rows, second: Rows) -> float:
    """Mean of k - 1 over all pairs; of rows with themselves, tiles below the diagonal are those above it."""
    total = 0.0
    for number, block in enumerate(_unit_blocks(first)):
        here = torch.from_numpy(block)
        start = number * _TILE if second is first else 0
        for other_number, other in enumerate(_unit_blocks(second, start)):
            exponents = (here @ torch.from_numpy(other).T).sub_(1).mul_(_RATE)
            twice = second is first and other_number > 0
            total += float(exponents.expm1_().sum()) * (2 if twice else 1)
    return total / (len(first) * len(second))
