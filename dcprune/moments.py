"""Mean and covariance of rows that arrive in pieces, in float64."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import get_blas_funcs
from scipy.linalg.blas import dsyr

from dcprune.errors import InputError

if TYPE_CHECKING:
    import torch

_BLOCK_BYTES = 32 << 20
_SINGLE_ROWS = 2048
# Beyond these magnitudes the squares of float32 values leave its range, or its precision.
_LARGEST, _SMALLEST = 2.0**50, 2.0**-50


class Moments:
    """Mean and scatter of rows, merged exactly.

    Every block is centred at its own mean, and blocks and parts are joined by the update of Chan, Golub and LeVeque
    (1979), in float64. The moments of all rows together come out, whatever the split: to about 1e-12 of the largest
    entry. With `single` the products within a block of at most 2,048 rows are float32, which is twice as fast; their
    sums stay float64, so an entry is off by about 1e-7 of the product of the two standard deviations.

    Args:
        dim: width D of the rows.
        single: multiply in float32.
        device: where the products are computed; None for the CPU, which needs no torch.

    Attributes:
        count: number of rows.
        mean: float64 [D].
    """

    def __init__(self, dim: int, *, single: bool = False, device: torch.device | None = None) -> None:
        self.count = 0
        self.mean: NDArray[np.float64] = np.zeros(dim)
        self._lower: NDArray[np.float64] = np.zeros((dim, dim), order="F")  # in which BLAS adds to it
        self._single = single
        self._device = device if device is not None and device.type != "cpu" else None

    def update(self, rows: NDArray[Any]) -> None:
        """Take in rows [n, D] of any floating dtype; n may be 0.

        Raises:
            InputError: another width, or values that are not finite.
        """
        if rows.ndim != 2 or rows.shape[1] != len(self.mean):
            raise InputError(f"Rows of shape {rows.shape} do not fit moments of width {len(self.mean)}.")
        for block in self._blocks(rows):
            mean = block.mean(axis=0, dtype=np.float64)
            if not np.isfinite(mean).all():
                raise InputError("Features are not finite (NaN or infinity), so they have no moments.")
            centre = self._add_products(block, mean)
            self._add(mean - centre, -len(block))
            self._join(len(block), mean)

    def merge(self, other: Moments) -> None:
        """Take in everything that `other` took in.

        Raises:
            InputError: `other` has another width.
        """
        if len(other.mean) != len(self.mean):
            raise InputError(f"Moments of width {len(other.mean)} do not merge into moments of width {len(self.mean)}.")
        if other.count:
            self._lower += other._lower
            self._join(other.count, other.mean)

    @property
    def scatter(self) -> NDArray[np.float64]:
        """Sum of the outer products of the centred rows, float64 [D, D]."""
        lower = np.tril(self._lower)
        return lower + np.tril(lower, -1).T

    def covariance(self, *, unbiased: bool = True) -> NDArray[np.float64]:
        """Covariance [D, D], divided by n - 1, or by n when it need not be unbiased.

        Raises:
            InputError: fewer than two rows (than one).
        """
        least = 2 if unbiased else 1
        if self.count < least:
            raise InputError(f"A covariance needs at least {least} rows; there are {self.count}.")
        return self.scatter / (self.count - 1 if unbiased else self.count)

    def _blocks(self, rows: NDArray[Any]) -> Iterator[NDArray[Any]]:
        step = _SINGLE_ROWS if self._single else max(1, _BLOCK_BYTES // (8 * max(1, rows.shape[1])))
        for start in range(0, len(rows), step):
            yield rows[start : start + step]

    def _add_products(self, block: NDArray[Any], mean: NDArray[np.float64]) -> NDArray[np.float64]:
        """Add the products of the centred rows, and return what they were centred at: `mean`, or float32 near it."""
        if self._single:
            near = mean.astype(np.float32)
            centred = np.subtract(block, near, dtype=np.float32)
            largest = float(np.abs(centred).max(initial=0))
            if largest == 0 or _SMALLEST < largest < _LARGEST:
                self._lower += self._product(centred)
                return near.astype(np.float64)
        centred = block.astype(np.float64)
        centred -= mean
        self._lower += self._product(centred)
        return mean

    def _product(self, centred: NDArray[Any]) -> NDArray[Any]:
        """X' X of the centred rows X, float64 [D, D], of which only the lower triangle counts."""
        if self._device is not None:
            import torch

            rows = torch.from_numpy(centred).to(self._device)
            on_device: NDArray[Any] = (rows.T @ rows).double().cpu().numpy()
            return on_device
        return lower_product(centred.T)

    def _join(self, count: int, mean: NDArray[np.float64]) -> None:
        """Count in rows with this mean, whose scatter has been added."""
        total = self.count + count
        offset = mean - self.mean
        self._add(offset, self.count * count / total)
        self.mean = self.mean + offset * (count / total)
        self.count = total

    def _add(self, vector: NDArray[np.float64], weight: float) -> None:
        """Add weight times vector vector', in place."""
        if weight and vector.any():
            self._lower = dsyr(weight, vector, lower=1, a=self._lower, overwrite_a=1)


def lower_product(matrix: NDArray[Any]) -> NDArray[Any]:
    """The lower triangle of A A' of a float32 or float64 A [m, k] as [m, m], zeros above; half a product's cost.

    It goes through SciPy's BLAS, as the factorisations that follow do: NumPy's would keep threads of its own spinning
    beside them.
    """
    (rank_k,) = get_blas_funcs(("syrk",), (matrix,))
    rows = matrix.flags.c_contiguous  # which BLAS, that thinks in columns, takes transposed without a copy
    product: NDArray[Any] = rank_k(1.0, matrix.T, trans=1, lower=1) if rows else rank_k(1.0, matrix, lower=1)
    return product


def moments(features: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64], int]:
    """Mean [D], unbiased covariance [D, D] and number of rows of features [N, D], N at least 2.

    Raises:
        InputError: fewer than two rows, another shape, or values that are not finite.
    """
    if features.ndim != 2:
        raise InputError(f"Features of shape {features.shape} are not a matrix [N, D].")
    total = Moments(features.shape[1])
    total.update(features)
    return total.mean, total.covariance(), total.count
