"""CLIP maximum mean discrepancy."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import scipy.linalg
import torch
from numpy.typing import NDArray

from dcprune.artifacts import Rows
from dcprune.errors import InputError
from dcprune.interfaces import EncoderChoice, Features
from dcprune.metrics.checks import checked_rows
from dcprune.metrics.influence import centred

_BANDWIDTH = 10.0
_SCALE = 1000.0
_LARGEST_ERROR = 1e-5
_RATE = 1 / _BANDWIDTH**2  # of unit vectors, k(x, y) = exp(_RATE (x.y - 1))
_TILE = 2048
_ROUNDING = 2.0**-24 * (_TILE + 3)  # of a sum of products of a tile in float32
_THIRD_ORDER_DIM = 48


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

    extrapolates: ClassVar[bool] = True

    def __init__(self, *, exact: bool = False, weights: str | None = None) -> None:
        self.exact = exact
        self.encoder = EncoderChoice("open_clip:ViT-L-14-336/openai", {}, weights)

    def value(self, generated: Features, reference: Features) -> float:
        """CMMD, at least 0; one image on a side is enough.

        Raises:
            InputError: no images, features that are not finite, or an embedding that is zero.
        """
        return cmmd(*checked_rows("CMMD", generated, reference), exact=self.exact)

    def influence(self, generated: Features, reference: Features) -> NDArray[np.float64]:
        """See `influence_on_cmmd`."""
        return influence_on_cmmd(*checked_rows("CMMD", generated, reference))

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
    as when the rows lie along a few directions, the largest part of the third term is evaluated too, and what is left
    out is bounded again; see `_third_order`. Where that is not enough, every pair is evaluated.

    Everything is float64 but the products of S: blocks of 2048 rows are multiplied in float32 and added up in float64.
    An entry is off by at most 2^-24 (2048 + 3) mean w |u|^2, which is about 1e-7 in the end, as S enters with g^2 / 2;
    the bound counts it. Memory beside the rows: a few D x D matrices and some blocks.

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


def influence_on_cmmd(first: Rows, second: Rows) -> NDArray[np.float64]:
    """What each row of `first` does to the discrepancy: float64 [n], of mean 0.

    That is 2000 (mean k(x, x') - mean k(x, y)), less its mean, with the terms j <= 2 of the series of `cmmd`.

    Raises:
        InputError: a row is zero.
    """
    origin = (_mean(first) + _mean(second)) / 2
    one, other = _Terms.of(first, origin), _Terms.of(second, origin)
    linear = _RATE * (one.linear - other.linear)
    quadratic = _RATE**2 / 2 * (one.quadratic - other.quadratic)
    parts = [
        weights * (one.zeroth - other.zeroth + offsets @ linear + np.einsum("ij,ij->i", offsets @ quadratic, offsets))
        for offsets, weights in _offset_blocks(first, origin)
    ]
    found = 2 * _SCALE * math.exp(_RATE * (origin @ origin - 1)) * np.concatenate(parts)
    return centred(found)


def expanded(first: Rows, second: Rows) -> tuple[float, float]:
    """The first terms, and a bound of how far the discrepancy is from them."""
    origin = (_mean(first) + _mean(second)) / 2
    one, other = _Terms.of(first, origin), _Terms.of(second, origin)
    factor = _SCALE * math.exp(_RATE * (origin @ origin - 1))
    zeroth = (one.zeroth - other.zeroth) ** 2
    linear = np.square(one.linear - other.linear).sum()
    apart = float(np.linalg.norm(one.quadratic - other.quadratic))
    value = factor * (zeroth + _RATE * linear + _RATE**2 / 2 * apart**2)
    off = _ROUNDING * float(np.trace(one.quadratic) + np.trace(other.quadratic))
    rounding = factor * _RATE**2 / 2 * (2 * apart + off) * off
    norms = float(np.linalg.norm(one.quadratic) + np.linalg.norm(other.quadratic))
    square_radius = max(one.square_radius, other.square_radius)
    error = factor * _tail(3, norms, square_radius) + rounding
    if error > _LARGEST_ERROR:
        third, rest = _third_order(first, second, origin, one.quadratic, other.quadratic)
        value, error = value + factor * third, factor * (rest + _tail(4, norms, square_radius)) + rounding
    return float(value), error


def _tail(order: int, norms: float, square_radius: float) -> float:
    """Bound of all terms from `order` on, given |S_u| + |S_v| and R^2."""
    leading = _RATE**order * square_radius ** (order - 2) / math.factorial(order)
    return float(norms**2 * leading * math.exp(_RATE * square_radius))


def _third_order(
    first: Rows,
    second: Rows,
    origin: NDArray[np.float64],
    quadratic1: NDArray[np.float64],
    quadratic2: NDArray[np.float64],
) -> tuple[float, float]:
    """The third term within the directions of most variance, and a bound of what it lacks.

    With u = p + q, p in at most 48 principal directions and q across them, (u.u')^3 = a^3 + 3 a^2 b + 3 a b^2 + b^3 for
    a = p.p' and b = q.q', and each summand adds a square to the discrepancy. That of a^3 is evaluated. By Cauchy and
    Schwarz the others have means over pairs of at most 3 (P^2 + Q^2) |S_p| |S_q| + Q^2 |S_q|^2 on either side, P and Q
    being the largest |p| and |q|; and (x + y)^2 <= 2 x^2 + 2 y^2 joins the sides.
    """
    dim = len(origin)
    kept = min(_THIRD_ORDER_DIM, dim)
    basis = scipy.linalg.eigh(quadratic1 + quadratic2, driver="evd")[1][:, dim - kept :]
    cubes, inside, outside = zip(*(_cube(rows, origin, basis) for rows in (first, second)), strict=True)
    largest, rest = max(outside), 0.0
    for quadratic in (quadratic1, quadratic2):
        across = quadratic - basis @ (basis.T @ quadratic)
        across -= (across @ basis) @ basis.T
        within, beyond = np.linalg.norm(basis.T @ quadratic @ basis), np.linalg.norm(across)
        rest += float(2 * (3 * (max(inside) + largest) * within * beyond + largest * beyond**2))
    coefficient = _RATE**3 / 6
    return coefficient * float(np.square(cubes[0] - cubes[1]).sum()), coefficient * rest


def _cube(
    rows: Rows, origin: NDArray[np.float64], basis: NDArray[np.float64]
) -> tuple[NDArray[np.float64], float, float]:
    """Mean w p p p of the components p [k] in an orthonormal basis [D, k], as [k^2, k]; the largest |p|^2 and |q|^2."""
    kept = basis.shape[1]
    cube, inside, outside = np.zeros((kept * kept, kept)), 0.0, 0.0
    for offsets, weights in _offset_blocks(rows, origin):
        parts = offsets @ basis
        squares = _square_lengths(parts)
        inside = max(inside, float(squares.max()))
        outside = max(outside, float((_square_lengths(offsets) - squares).max()))
        pairs = (parts * weights[:, None])[:, :, None] * parts[:, None]
        cube += pairs.reshape(len(parts), -1).T @ parts
    return cube / len(rows), inside, outside


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
        quadratic: S = mean w u u', float64 [D, D], see `cmmd` for its rounding.
        square_radius: the largest |u|^2.
    """

    zeroth: float
    linear: NDArray[np.float64]
    quadratic: NDArray[np.float64]
    square_radius: float

    @classmethod
    def of(cls, rows: Rows, origin: NDArray[np.float64]) -> _Terms:
        zeroth, square_radius = 0.0, 0.0
        linear, quadratic = np.zeros(len(origin)), np.zeros((len(origin), len(origin)))
        for offsets, weights in _offset_blocks(rows, origin):
            zeroth += float(weights.sum())
            linear += weights @ offsets
            square_radius = max(square_radius, float(_square_lengths(offsets).max()))
            weighted = np.multiply(offsets, np.sqrt(weights)[:, None], dtype=np.float32, casting="same_kind")
            quadratic += weighted.T @ weighted
        return cls(zeroth / len(rows), linear / len(rows), quadratic / len(rows), square_radius)


def _mean(rows: Rows) -> NDArray[np.float64]:
    """Mean direction, float64 [D]."""
    total = np.zeros(rows.shape[1])
    for block in _unit_blocks(rows):
        total += block.sum(axis=0)
    return total / len(rows)


def _offset_blocks(
    rows: Rows, origin: NDArray[np.float64]
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Offsets u [b, D] of the normalised rows from the origin, and their weights w(u) [b]."""
    for block in _unit_blocks(rows):
        block -= origin
        yield block, np.exp(_RATE * (block @ origin))


def _square_lengths(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    lengths: NDArray[np.float64] = np.einsum("ij,ij->i", rows, rows)
    return lengths


def _unit_blocks(rows: Rows, start: int = 0) -> Iterator[NDArray[np.float64]]:
    """Rows from `start` on, normalised, as new float64 blocks."""
    for first in range(start, len(rows), _TILE):
        block = rows[first : first + _TILE].astype(np.float64)
        norms = np.sqrt(_square_lengths(block))
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
