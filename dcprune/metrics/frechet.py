"""The Frechet distance between two Gaussians, and the moments it needs, in float64.

Source: Dowson and Landau 1982, for images Heusel et al. 2017 (arXiv 1706.08500, equation 6):
d^2 = |mean1 - mean2|^2 + Tr(cov1 + cov2 - 2 (cov1 cov2)^(1/2)), with covariances that divide by n - 1.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import eigvalsh, lapack

from dcprune.errors import InputError
from dcprune.interfaces import Features, Gaussian
from dcprune.metrics.influence import centred
from dcprune.moments import Moments, moments

__all__ = [
    "Moments",
    "distance_of_features",
    "frechet_distance",
    "gaussian_of",
    "influence_on_distance",
    "moments",
]

# Covariances that were stored in float32 are symmetric, and positive, to about this fraction of their largest entry.
_ROUNDING = 1e-5
_BLOCK_ROWS = 2048


def frechet_distance(mean1: ArrayLike, cov1: ArrayLike, mean2: ArrayLike, cov2: ArrayLike) -> float:
    """Squared Frechet distance of two Gaussians, never negative.

    Args:
        mean1: [D].
        cov1: [D, D], symmetric and positive semi-definite; it may be singular.
        mean2: like `mean1`.
        cov2: like `cov1`.

    Raises:
        InputError: shapes that do not fit, values that are not finite, or a matrix that is not a covariance.
    """
    mean1, cov1 = _gaussian(mean1, cov1, "first")
    mean2, cov2 = _gaussian(mean2, cov2, "second")
    if len(mean1) != len(mean2):
        raise InputError(
            f"The Gaussians have {len(mean1)} and {len(mean2)} dimensions; compare features of one encoder."
        )
    root = _trace_of_root(cov1, cov2)
    offset = mean1 - mean2
    return max(0.0, float(offset @ offset + np.trace(cov1) + np.trace(cov2) - 2 * root))


def _gaussian(mean: ArrayLike, cov: ArrayLike, which: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    mean, cov = np.asarray(mean, dtype=np.float64), np.asarray(cov, dtype=np.float64)
    if mean.ndim != 1 or cov.shape != (len(mean), len(mean)) or not len(mean):
        raise InputError(f"The {which} mean has shape {mean.shape} and its covariance {cov.shape}, not [D] and [D, D].")
    if not (np.isfinite(mean).all() and np.isfinite(cov).all()):
        raise InputError(f"The {which} mean or covariance is not finite (NaN or infinity).")
    scale = np.abs(cov).max()
    if np.abs(cov - cov.T).max() > _ROUNDING * scale:
        raise InputError(f"The {which} covariance is not symmetric.")
    return mean, (cov + cov.T) / 2


def _trace_of_root(cov1: NDArray[np.float64], cov2: NDArray[np.float64]) -> float:
    """Tr (cov1 cov2)^(1/2).

    With cov1 = L L', the product has the eigenvalues of L' cov2 L, which is symmetric; the grading of L keeps even the
    small ones accurate. Where a covariance is singular, rounding noise takes the place of zero eigenvalues and its root
    would count, so there the trace is the sum of the singular values of F1' F2, which needs no further root.

    LAPACK's `sygst` forms L' cov2 L with a quarter of the operations of two products.
    """
    factor1, failed1 = lapack.dpotrf(cov1.T, lower=1)  # symmetric, so transposing only spares a copy
    factor2, failed2 = lapack.dpotrf(cov2.T, lower=1)
    if not (failed1 or failed2):
        reduced, _ = lapack.dsygst(cov2.T, factor1, itype=2, lower=1)
        eigenvalues = eigvalsh(reduced, lower=True, driver="ev", overwrite_a=True, check_finite=False)
        return float(np.sqrt(eigenvalues.clip(min=0)).sum())
    root1, root2 = (
        _root(torch.from_numpy(cov)) if failed else torch.from_numpy(factor)
        for cov, factor, failed in ((cov1, factor1, failed1), (cov2, factor2, failed2))
    )
    return float(torch.linalg.svdvals(root1.T @ root2).sum())


def _root(cov: torch.Tensor) -> torch.Tensor:
    """F [D, rank] with F F' = cov."""
    eigenvalues, vectors = torch.linalg.eigh(cov)
    if eigenvalues[0] < -_ROUNDING * eigenvalues.abs().max():
        raise InputError(f"A covariance is not positive semi-definite: it has the eigenvalue {eigenvalues[0]:.3g}.")
    kept = eigenvalues > len(cov) * torch.finfo(cov.dtype).eps * eigenvalues[-1].clamp_min(0)
    root: torch.Tensor = vectors[:, kept] * eigenvalues[kept].sqrt()
    return root


def gaussian_of(features: Features | Gaussian) -> Gaussian:
    """The moments of features; those of a `Gaussian` are there already.

    Raises:
        InputError: fewer than two images, or features that are not finite.
    """
    return features if isinstance(features, Gaussian) else Gaussian(*moments(features.features))


def distance_of_features(generated: Features | Gaussian, reference: Features | Gaussian) -> float:
    """Frechet distance of the Gaussians with the moments of two sets of features.

    Raises:
        InputError: fewer than two images on one side, or features of unlike width.
    """
    first, second = gaussian_of(generated), gaussian_of(reference)
    return frechet_distance(first.mean, first.covariance, second.mean, second.covariance)


def influence_on_distance(generated: Features, reference: Features | Gaussian) -> NDArray[np.float64]:
    """What each generated image does to the Frechet distance, to the first order: float64 [N], of mean 0.

    The derivative of the distance is 2 (mean1 - mean2) by the first mean and I - T by the first covariance, where
    T = F (F' cov1 F)^(-1/2) F' with cov2 = F F' maps the first Gaussian onto the second one. An image whose features
    lie at u from mean1 therefore has the influence 2 (mean1 - mean2).u + (|u|^2 - u' T u) N / (N - 1), less its mean.
    With fewer images than dimensions cov1 is singular; no u has a part in its null space, so that is left out of T.

    The second order, which is left out, is the bias of the distance: it differs between two sets of images by only
    about 1 / D of itself. 2 N D^2 operations and two eigenvalue problems.

    Raises:
        InputError: as in `distance_of_features`.
    """
    first, second = gaussian_of(generated), gaussian_of(reference)
    if len(first.mean) != len(second.mean):
        raise InputError(
            f"The Gaussians have {len(first.mean)} and {len(second.mean)} dimensions; compare features of one encoder."
        )
    factor = _root(torch.from_numpy(second.covariance))
    eigenvalues, vectors = torch.linalg.eigh(factor.T @ torch.from_numpy(first.covariance) @ factor)
    largest = eigenvalues[-1].clamp_min(0) if len(eigenvalues) else 0
    kept = eigenvalues > len(eigenvalues) * torch.finfo(eigenvalues.dtype).eps * largest
    onto = factor @ (vectors[:, kept] * eigenvalues[kept].pow(-0.25))  # T = onto onto'
    shift = torch.from_numpy(2 * (first.mean - second.mean))
    found = np.empty(len(generated.features))
    for start in range(0, len(found), _BLOCK_ROWS):
        rows = slice(start, start + _BLOCK_ROWS)
        offsets = torch.from_numpy(generated.features[rows].astype(np.float64) - first.mean)
        by_covariance = offsets.square().sum(1) - (offsets @ onto).square().sum(1)
        found[rows] = offsets @ shift + by_covariance * (len(found) / (len(found) - 1))
    return centred(found)
