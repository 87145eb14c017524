"""Log-density under a Gaussian fitted to each class."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from scipy.linalg import cholesky, lapack, solve_triangular

from dcprune.artifacts import ClassRows, Embeddings
from dcprune.class_scores import score_classes, threads_for_classes
from dcprune.errors import OptionError
from dcprune.interfaces import ScoringContext
from dcprune.moments import Moments

# Up to this mean variance inflation factor float32 products move scores by about 1e-5 of their spread in a class.
_LARGEST_INFLATION = 100.0
_PROBES = 16
# Rows whose forms are computed together, and columns that one step of the substitution solves for.
_ROWS = 512
_PANEL = 64
# Bytes that a class holds at most beside its rows, for each entry of its covariance.
_BYTES_PER_ENTRY = 44


class Gaussian:
    """Instance selection for GANs (DeVries, Drozdzal and Taylor, NeurIPS 2020).

    S(z) = -1/2 [(z - mu)' inv(Sigma) (z - mu) + ln |Sigma| + D ln 2 pi], with mu and Sigma the mean and the full
    covariance (divided by n) of the sample's class, `reg_covar` added to the diagonal. The published code is
    scikit-learn's `GaussianMixture(1).score_samples`, fitted class by class, highest kept.

    Two passes over the rows of a class: moments (`dcprune.moments.Moments`), then Sigma = L L' and |inv(L) (z - mu)|^2.
    A class of n <= D samples is solved through its n x n Gram matrix (Woodbury): with X the centred rows and
    K = X X' / n + reg_covar I, the square is n (1 - reg_covar inv(K)_ii), and |Sigma| = |K| reg_covar^(D - n). So
    constant dimensions and classes of one sample need no exception.

    Sums and factorisations are float64. The products are float32 while the columns are not nearly dependent (mean
    variance inflation factor, the mean of Sigma_ii inv(Sigma)_ii, at most 100); the root mean square error of a class's
    scores is then about 1e-5 of their standard deviation, and 1e-6 of it for independent columns. Otherwise, and for
    n <= D, all is float64.

    Cost of a class: n D^2 multiplications twice and D^3 / 3; memory: a few D x D matrices and blocks of rows.

    Args:
        reg_covar: added to the diagonal of every covariance.
    """

    keep: ClassVar[str] = "highest"
    per_class: ClassVar[bool] = True

    def __init__(self, reg_covar: Annotated[float, Field(gt=0)] = 1e-5) -> None:
        self.reg_covar = reg_covar

    def score(self, embeddings: Embeddings, context: ScoringContext) -> NDArray[np.float64]:
        """Scores float64 [N]: log-densities in nats; see `dcprune.interfaces.Scorer`."""
        dim = embeddings.embeddings.shape[1]
        threads = threads_for_classes(embeddings, context.device, _BYTES_PER_ENTRY * dim**2)

        def log_densities(part: ClassRows) -> NDArray[np.float64]:
            return self._log_densities(part, dim, context.device)

        return score_classes(embeddings, log_densities, context, "score gaussian", threads=threads)

    def _log_densities(self, part: ClassRows, dim: int, device: torch.device) -> NDArray[np.float64]:
        if len(part) <= dim:
            squares, log_determinant = self._through_gram_matrix(part, device)
        else:
            part = part.in_memory()
            mean, factor = self._fitted(part, dim, device)
            squares = np.concatenate([factor.squared_distances(block, mean) for block in part.blocks()])
            log_determinant = factor.log_determinant
        density: NDArray[np.float64] = -0.5 * (squares + log_determinant + dim * math.log(2 * math.pi))
        return density

    def _fitted(self, part: ClassRows, dim: int, device: torch.device) -> tuple[NDArray[np.float64], _Factor]:
        """Mean and factorised covariance, in float64 if float32 will not do."""
        for single in (True, False):
            moments = Moments(dim, single=single, device=device)
            for block in part.blocks():
                moments.update(block)
            covariance = moments.covariance(unbiased=False)
            covariance[np.diag_indices(dim)] += self.reg_covar
            variances = covariance.diagonal().copy()
            try:
                factor = _Factor(covariance, device, single=single)
            except np.linalg.LinAlgError:
                continue
            if not single or factor.inflation(variances) <= _LARGEST_INFLATION:
                return moments.mean, factor
        raise self._singular(part.label, float(variances.max()))

    def _through_gram_matrix(self, part: ClassRows, device: torch.device) -> tuple[NDArray[np.float64], float]:
        """Squared distances float64 [n] to the mean, and ln |Sigma|, for n <= D."""
        rows = part.matrix().astype(np.float64)
        rows -= rows.mean(axis=0)
        count, dim = rows.shape
        if device.type == "cuda":
            on_device = torch.from_numpy(rows).to(device)
            gram = (on_device @ on_device.T).cpu().numpy()
        else:
            gram = rows @ rows.T
        gram /= count
        gram[np.diag_indices(count)] += self.reg_covar
        largest = float(gram.diagonal().max())
        try:
            factor = cholesky(gram.T, lower=True, overwrite_a=True, check_finite=False)
        except np.linalg.LinAlgError as error:
            raise self._singular(part.label, largest) from error
        log_determinant = 2 * float(np.log(factor.diagonal()).sum()) + (dim - count) * math.log(self.reg_covar)
        inverse, _ = lapack.dpotri(factor, lower=1, overwrite_c=1)
        return count * (1 - self.reg_covar * inverse.diagonal()), log_determinant

    def _singular(self, label: int, variance: float) -> OptionError:
        return OptionError(
            f"The covariance of class {label} is singular in float64: reg_covar={self.reg_covar:g} vanishes beside "
            f"variances of up to {variance:.3g}. Pass a larger one, such as --set reg_covar={1e-10 * variance:.1g}."
        )


class _Factor:
    """Lower Cholesky factor L of a covariance, and squared lengths of inv(L) x.

    inv(L) x is solved for a panel of entries at a time, by forward substitution. With L_pp the triangle of a panel p on
    the diagonal and L_p< what is left of it, y_p = inv(L_pp) (x_p - L_p< y_<), one product for many rows x.

    Args:
        covariance: float64 [D, D], which is overwritten.
        device: where lengths are computed.
        single: compute them in float32.

    Raises:
        LinAlgError: the covariance is not positive definite.
    """

    def __init__(self, covariance: NDArray[np.float64], device: torch.device, *, single: bool) -> None:
        self._factor = cholesky(covariance.T, lower=True, overwrite_a=True, check_finite=False)
        self._dtype = np.float32 if single else np.float64
        self._on_device = None
        if device.type == "cuda":
            self._on_device = torch.from_numpy(np.ascontiguousarray(self._factor, dtype=self._dtype)).to(device)
            return
        self._panels: list[NDArray[Any]] = []
        for start in range(0, len(covariance), _PANEL):
            rows = self._factor[start : start + _PANEL]
            inverse, _ = lapack.dtrtri(rows[:, start : start + _PANEL], lower=1)
            panel = np.hstack([-inverse @ rows[:, :start], inverse])
            self._panels.append(np.ascontiguousarray(panel.T, dtype=self._dtype))

    @property
    def log_determinant(self) -> float:
        return 2 * float(np.log(self._factor.diagonal()).sum())

    def inflation(self, variances: NDArray[np.float64]) -> float:
        """Mean variance inflation factor, estimated: inv(L)' g of a normal g has the variances inv(Sigma)_ii.

        `variances` float64 [D] are the Sigma_ii.
        """
        probes = np.random.default_rng(0).normal(size=(len(variances), _PROBES))
        solved = solve_triangular(self._factor, probes, lower=True, trans="T", check_finite=False)
        return float((np.square(solved).mean(axis=1) * variances).mean())

    def squared_distances(self, rows: NDArray[np.float32], mean: NDArray[np.float64]) -> NDArray[np.float64]:
        """Mahalanobis distances squared, float64 [n], of rows [n, D]."""
        near: NDArray[Any] = mean.astype(self._dtype)
        rest = solve_triangular(self._factor, mean - near, lower=True, check_finite=False).astype(self._dtype)
        squares = np.empty(len(rows))
        for start in range(0, len(rows), _ROWS):
            part = slice(start, start + _ROWS)
            squares[part] = self._squares(np.subtract(rows[part], near, dtype=self._dtype), rest)
        return squares

    def _squares(self, centred: NDArray[Any], rest: NDArray[Any]) -> NDArray[np.float64]:
        """|inv(L) x - rest|^2 float64 [n] of rows x [n, D], which are overwritten."""
        if self._on_device is not None:
            columns = torch.from_numpy(centred).to(self._on_device.device).T
            offsets = torch.linalg.solve_triangular(self._on_device, columns, upper=False).T.cpu().numpy() - rest
            lengths: NDArray[np.float64] = np.einsum("ij,ij->i", offsets, offsets, dtype=np.float64)
            return lengths
        squares = np.zeros(len(centred))
        for start, panel in zip(range(0, centred.shape[1], _PANEL), self._panels, strict=True):
            solved = centred[:, : start + _PANEL] @ panel
            centred[:, start : start + _PANEL] = solved
            solved -= rest[start : start + _PANEL]
            squares += np.einsum("ij,ij->i", solved, solved)
        return squares
