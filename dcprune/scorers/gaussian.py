"""Log-density under a Gaussian fitted to each class."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from scipy.linalg import cholesky, get_blas_funcs, lapack, solve_triangular

from dcprune.artifacts import ClassRows, Embeddings
from dcprune.errors import OptionError
from dcprune.interfaces import ScoringContext
from dcprune.moments import Moments, lower_product

# Up to this mean variance inflation factor float32 products move scores by about 1e-5 of their spread in a class.
_LARGEST_INFLATION = 100.0
_PROBES = 16


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
        scores = np.empty(len(embeddings.embeddings))
        with context.progress.task("score gaussian", len(scores), "samples") as task:
            for part in embeddings.by_class():
                scores[part.rows] = self._log_densities(part, embeddings.embeddings.shape[1], context.device)
                task.advance(len(part))
        return scores

    def _log_densities(self, part: ClassRows, dim: int, device: torch.device) -> NDArray[np.float64]:
        if len(part) <= dim:
            squares, log_determinant = self._through_gram_matrix(part, device)
        else:
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
            try:
                factor = _Factor(covariance, device, single=single)
            except np.linalg.LinAlgError:
                continue
            if not single or factor.inflation(covariance) <= _LARGEST_INFLATION:
                return moments.mean, factor
        raise self._singular(part.label, float(covariance.diagonal().max()))

    def _through_gram_matrix(self, part: ClassRows, device: torch.device) -> tuple[NDArray[np.float64], float]:
        """Squared distances float64 [n] to the mean, and ln |Sigma|, for n <= D."""
        rows = part.matrix().astype(np.float64)
        rows -= rows.mean(axis=0)
        count, dim = rows.shape
        if device.type == "cuda":
            on_device = torch.from_numpy(rows).to(device)
            gram = (on_device @ on_device.T).cpu().numpy()
        else:
            gram = lower_product(rows)
        gram /= count
        gram[np.diag_indices(count)] += self.reg_covar
        try:
            factor = cholesky(gram, lower=True, check_finite=False)
        except np.linalg.LinAlgError as error:
            raise self._singular(part.label, float(gram.diagonal().max())) from error
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

    Args:
        covariance: float64 [D, D].
        device: where lengths are computed.
        single: compute them in float32.

    Raises:
        LinAlgError: the covariance is not positive definite.
    """

    def __init__(self, covariance: NDArray[np.float64], device: torch.device, *, single: bool) -> None:
        self._factor = cholesky(covariance, lower=True, check_finite=False)
        self._working = np.asfortranarray(self._factor, dtype=np.float32 if single else np.float64)
        self._on_device = torch.from_numpy(self._working).to(device) if device.type == "cuda" else None

    @property
    def log_determinant(self) -> float:
        return 2 * float(np.log(self._factor.diagonal()).sum())

    def inflation(self, covariance: NDArray[np.float64]) -> float:
        """Mean variance inflation factor, estimated: inv(L)' g of a normal g has the variances inv(Sigma)_ii."""
        probes = np.random.default_rng(0).normal(size=(len(covariance), _PROBES))
        solved = solve_triangular(self._factor, probes, lower=True, trans="T", check_finite=False)
        return float((np.square(solved).mean(axis=1) * covariance.diagonal()).mean())

    def squared_distances(self, rows: NDArray[np.float32], mean: NDArray[np.float64]) -> NDArray[np.float64]:
        """Mahalanobis distances squared, float64 [n], of rows [n, D]."""
        near = mean.astype(self._working.dtype)
        centred = np.subtract(rows, near, dtype=self._working.dtype)
        solved = self._solve(centred)
        rest = solve_triangular(self._factor, mean - near, lower=True, check_finite=False)
        if rest.any():
            solved -= rest.astype(solved.dtype)
        squares: NDArray[np.float64] = np.einsum("ij,ij->i", solved, solved, dtype=np.float64)
        return squares

    def _solve(self, centred: NDArray[Any]) -> NDArray[Any]:
        """Each row x as inv(L) x, in the place of `centred` where that can be."""
        if self._on_device is not None:
            rows = torch.from_numpy(centred).to(self._on_device.device)
            solved: NDArray[Any] = torch.linalg.solve_triangular(self._on_device, rows.T, upper=False).T.cpu().numpy()
            return solved
        (solve,) = get_blas_funcs(("trsm",), (self._working, centred))
        in_place: NDArray[Any] = solve(1.0, self._working, centred.T, lower=1, overwrite_b=1).T
        return in_place
