"""Frechet distance in the space of any registered encoder: `fd:ENCODER`."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from dcprune.interfaces import EncoderChoice, Features, Gaussian
from dcprune.metrics.frechet import distance_of_features, influence_on_distance


class FrechetDistance:
    """Frechet distance between Gaussians fitted to an encoder's features; the FID with another network.

    Source: Heusel et al. 2017 (arXiv 1706.08500) for the distance, Stein et al. 2023 (arXiv 2306.04675) for why the
    encoder should fit the images.

    Args:
        argument: name of the encoder.
        weights: the encoder's weights, a path or a name it knows; None for its default.
        settings: the encoder's settings.
    """

    takes_moments: ClassVar[bool] = True
    extrapolates: ClassVar[bool] = True

    def __init__(self, argument: str, *, weights: str | None = None, **settings: Any) -> None:
        self.encoder = EncoderChoice(argument, settings, weights)

    def value(self, generated: Features, reference: Features | Gaussian) -> float:
        """Squared Frechet distance.

        Raises:
            InputError: fewer than two images on one side.
        """
        return distance_of_features(generated, reference)

    def influence(self, generated: Features, reference: Features | Gaussian) -> NDArray[np.float64]:
        """See `dcprune.metrics.frechet.influence_on_distance`."""
        return influence_on_distance(generated, reference)

    def min_samples(self, dim: int) -> int:
        """As many images as dimensions: with fewer, both covariances are singular."""
        return max(2, dim)

    def protocol(self) -> dict[str, Any]:
        return {"distance": "frechet", "covariance": "n - 1"}
