"""Log-density under a Gaussian fitted to each class."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.linalg import cholesky, solve_triangular

from dcprune.artifacts import Embeddings
from dcprune.interfaces import ScoringContext


class Gaussian:
    """Instance selection for GANs (DeVries, Drozdzal and Taylor, NeurIPS 2020).

    S(z) = -1/2 [(z - mu)' inv(Sigma) (z - mu) + ln |Sigma| + D ln 2 pi], with mu and Sigma the mean and the full
    covariance (divided by n) of the sample's class, `reg_covar` added to the diagonal. The published code is
    scikit-learn's `GaussianMixture(1).score_samples`, fitted class by class, highest kept. Moments and factorisation
    are float64; the diagonal term keeps classes of fewer samples than dimensions regular.

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
        for _, rows in embeddings.classes():
            scores[rows] = self._log_density(embeddings, rows)
        return scores

    def _log_density(self, embeddings: Embeddings, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        width = embeddings.embeddings.shape[1]
        mean = np.zeros(width)
        for block in embeddings.embeddings.blocks(rows):
            mean += block.sum(axis=0, dtype=np.float64)
        mean /= len(rows)

        covariance = np.zeros((width, width))
        for block in embeddings.embeddings.blocks(rows):
            centred = block - mean
            covariance += centred.T @ centred
        covariance /= len(rows)
        covariance[np.diag_indices(width)] += self.reg_covar

        factor = cholesky(covariance, lower=True, overwrite_a=True, check_finite=False)
        constant = 2 * np.log(np.diag(factor)).sum() + width * math.log(2 * math.pi)
        distances = [
            np.square(solve_triangular(factor, (block - mean).T, lower=True, check_finite=False)).sum(axis=0)
            for block in embeddings.embeddings.blocks(rows)
        ]
        density: NDArray[np.float64] = -0.5 * (np.concatenate(distances) + constant)
        return density
