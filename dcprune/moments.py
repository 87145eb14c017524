"""Mean and covariance of rows that arrive in pieces, in float64."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dcprune.errors import InputError

if TYPE_CHECKING:
    import torch

_BLOCK_BYTES = 32 << 20
_SINGLE_ROWS = 4096
# Beyond these magnitudes the squares of float32 values leave its range, or its precision.
_LARGEST, _SMALLEST = 2.0**50, 2.0**-50
# Offsets of blocks whose outer products are added together, as one product of matrices.
_OFFSETS = 64


class Moments:
    """Mean and scatter of rows, merged exactly.

    Every block is centred at its own mean, and blocks and parts are joined by the update of Chan, Golub and LeVeque
    (1979), in float64. The moments of all rows together come out, whatever the split: to about 1e-12 of the largest
    entry. With `single` the products within a block of at most 4,096 rows are float32, which is twice as fast; their
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
        self._scatter: NDArray[np.float64] = np.zeros((dim, dim))
        self._product: NDArray[Any] | None = None
        self._added: list[NDArray[np.float64]] = []
        self._subtracted: list[NDArray[np.float64]] = []
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
            self._subtracted.append(np.sqrt(len(block)) * (mean - centre))
            self._join(len(block), mean)

    def merge(self, other: Moments) -> None:
        """Take in everything that `other` took in.

        Raises:
            InputError: `other` has another width.
        """
        if len(other.mean) != len(self.mean):
            raise InputError(f"Moments of width {len(other.mean)} do not merge into moments of width {len(self.mean)}.")
        if other.count:
            other._add_offsets()
            self._scatter += other._scatter
            self._join(other.count, other.mean)

    @property
    def scatter(self) -> NDArray[np.float64]:
        """Sum of the outer products of the centred rows, float64 [D, D]."""
        self._add_offsets()
        return self._scatter.copy()

    def covariance(self, *, unbiased: bool = True) -> NDArray[np.float64]:
        """Covariance [D, D], divided by n - 1, or by n when it need not be unbiased.

        Raises:
            InputError: fewer than two rows (than one).
        """
        least = 2 if unbiased else 1
        if self.count < least:
            raise InputError(f"A covariance needs at least {least} rows; there are {self.count}.")
        self._add_offsets()
        return self._scatter / (self.count - 1 if unbiased else self.count)

    def _blocks(self, rows: NDArray[Any]) -> Iterator[NDArray[Any]]:
        step = _SINGLE_ROWS if self._single else max(1, _BLOCK_BYTES // (8 * max(1, rows.shape[1])))
        for start in range(0, len(rows), step):
            yield rows[start : start + step]

    def _add_products(self, block: NDArray[Any], mean: NDArray[np.float64]) -> NDArray[np.float64]:
        """Add the products of the centred rows, and return what they were centred at: `mean`, or float32 near it."""
        if self._single:
            near = mean.astype(np.float32)
            centred = np.subtract(block, near, dtype=np.float32)
            largest = float(max(centred.max(initial=0), -centred.min(initial=0)))
            if largest == 0 or _SMALLEST < largest < _LARGEST:
                self._scatter += self._products(centred)
                return near.astype(np.float64)
        centred = block.astype(np.float64)
        centred -= mean
        self._scatter += self._products(centred)
        return mean

    def _products(self, centred: NDArray[Any]) -> NDArray[Any]:
        """X' X of the centred rows X, [D, D], valid until the next call."""
        if self._device is not None:
            import torch

            rows = torch.from_numpy(centred).to(self._device)
            on_device: NDArray[Any] = (rows.T @ rows).double().cpu().numpy()
            return on_device
        if self._product is None or self._product.dtype != centred.dtype:
            self._product = np.empty_like(self._scatter, dtype=centred.dtype)
        # NumPy computes one triangle of X' X and mirrors it, which is half a product's cost.
        return np.matmul(centred.T, centred, out=self._product)

    def _join(self, count: int, mean: NDArray[np.float64]) -> None:
        """Count in rows with this mean, whose scatter has been added."""
        total = self.count + count
        offset = mean - self.mean
        self._added.append(np.sqrt(self.count * count / total) * offset)
        self.mean = self.mean + offset * (count / total)
        self.count = total
        if len(self._added) >= _OFFSETS:
            self._add_offsets()

    def _add_offsets(self) -> None:
        offsets = np.array(self._added + self._subtracted).reshape(-1, len(self.mean))
        signs = np.repeat([1, -1], [len(self._added), len(self._subtracted)])
        some = offsets.any(axis=1)
        self._scatter += (offsets[some].T * signs[some]) @ offsets[some]
        self._added.clear()
        self._subtracted.clear()


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
