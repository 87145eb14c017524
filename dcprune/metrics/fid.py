"""Frechet Inception distance."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from dcprune.interfaces import EncoderChoice, Features, Gaussian
from dcprune.metrics.frechet import distance_of_features, influence_on_distance


class Fid:
    """Frechet distance in the space of the TensorFlow Inception-v3, with clean-fid's network and resizing.

    Source: Heusel et al. 2017 (arXiv 1706.08500); the modes are those of Parmar et al. 2022 (arXiv 2104.11222). Values
    of different modes are not comparable.

    Args:
        mode: `clean`, `legacy_pytorch` or `legacy_tensorflow`; how images come to 299 x 299 pixels.
        weights: a file of the Inception weights; None downloads the one that clean-fid uses in this mode.
    """

    takes_moments: ClassVar[bool] = True
    extrapolates: ClassVar[bool] = True

    def __init__(
        self,
        *,
        mode: Literal["clean", "legacy_pytorch", "legacy_tensorflow"] = "clean",
        weights: str | None = None,
    ) -> None:
        self.mode = mode
        self.encoder = EncoderChoice("inceptionv3-fid", {"mode": mode, "layer": "pool3"}, weights)

    def value(self, generated: Features, reference: Features | Gaussian) -> float:
        """FID, the squared Frechet distance.

        Raises:
            InputError: fewer than two images on one side.
        """
        return distance_of_features(generated, reference)

    def influence(self, generated: Features, reference: Features | Gaussian) -> NDArray[np.float64]:
        """See `dcprune.metrics.frechet.influence_on_distance`."""
        return influence_on_distance(generated, reference)

    def min_samples(self, dim: int) -> int:
        """As many images as dimensions (2048): with fewer, both covariances are singular."""
        return max(2, dim)

    def protocol(self) -> dict[str, Any]:
        return {"distance": "frechet", "covariance": "n - 1", "mode": self.mode}
