"""Kernel Inception distance."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from dcprune.interfaces import EncoderChoice, Features
from dcprune.metrics.polynomial import distances_of_subsets, influence_on_discrepancy, subset_protocol


class Kid:
    """Squared maximum mean discrepancy under a cubic kernel, in the space of the FID network; not scaled.

    Source: Binkowski et al. 2018 (arXiv 1801.01401): k(x, y) = (x.y / D + 1)^3, unbiased, the mean over 100 random
    subsets of 1,000 images of either side. Unlike the FID it has no bias at few images, and it may be negative.
    Published values are often times 1000.

    Args:
        num_subsets: random subsets; 0 takes all pairs of all images at once.
        subset_size: images of each side in a subset; with fewer images, all of the smaller side.
        subset_seed: of the subsets.
        mode: `clean`, `legacy_pytorch` or `legacy_tensorflow`; how images come to 299 x 299 pixels.
        weights: a file of the Inception weights; None downloads the one that clean-fid uses in this mode.
    """

    random_subsets: ClassVar[bool] = True

    def __init__(
        self,
        *,
        num_subsets: Annotated[int, Field(ge=0)] = 100,
        subset_size: Annotated[int, Field(ge=2)] = 1000,
        subset_seed: Annotated[int, Field(ge=0)] = 0,
        mode: Literal["clean", "legacy_pytorch", "legacy_tensorflow"] = "clean",
        weights: str | None = None,
    ) -> None:
        self.subsets = {"num_subsets": num_subsets, "subset_size": subset_size, "subset_seed": subset_seed}
        self.mode = mode
        self.encoder = EncoderChoice("inceptionv3-fid", {"mode": mode, "layer": "pool3"}, weights)

    def value(self, generated: Features, reference: Features) -> float:
        """KID.

        Raises:
            InputError: fewer than two images on one side, or features that are not finite.
        """
        return float(self.splits(generated, reference).mean())

    def splits(self, generated: Features, reference: Features) -> NDArray[np.float64]:
        """The distance of every subset, float64 [num_subsets]."""
        return distances_of_subsets(generated, reference, **self.subsets)

    def influence(self, generated: Features, reference: Features) -> NDArray[np.float64]:
        """See `dcprune.metrics.polynomial.influence_on_discrepancy`; the subsets add a spread of their own."""
        return influence_on_discrepancy(generated, reference, subset_seed=self.subsets["subset_seed"])

    def min_samples(self, dim: int) -> int:
        """Unbiased at any number, but with fewer than 100 images mostly noise."""
        return 100

    def protocol(self) -> dict[str, Any]:
        return {**subset_protocol(**self.subsets), "mode": self.mode}
