"""Kernel distance in the space of any registered encoder: `kd:ENCODER`."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from dcprune.interfaces import EncoderChoice, Features
from dcprune.metrics.polynomial import distances_of_subsets, influence_on_discrepancy, subset_protocol


class KernelDistance:
    """Squared maximum mean discrepancy under a cubic kernel of an encoder's features; the KID with another network.

    Source: Binkowski et al. 2018 (arXiv 1801.01401) for the distance, Stein et al. 2023 (arXiv 2306.04675) for other
    encoders; see `dcprune.metrics.kid.Kid`.

    Args:
        argument: name of the encoder.
        num_subsets: random subsets; 0 takes all pairs of all images at once.
        subset_size: images of each side in a subset; with fewer images, all of the smaller side.
        subset_seed: of the subsets.
        weights: the encoder's weights, a path or a name it knows; None for its default.
        settings: the encoder's settings.
    """

    random_subsets: ClassVar[bool] = True

    def __init__(
        self,
        argument: str,
        *,
        num_subsets: Annotated[int, Field(ge=0)] = 100,
        subset_size: Annotated[int, Field(ge=2)] = 1000,
        subset_seed: Annotated[int, Field(ge=0)] = 0,
        weights: str | None = None,
        **settings: Any,
    ) -> None:
        self.subsets = {"num_subsets": num_subsets, "subset_size": subset_size, "subset_seed": subset_seed}
        self.encoder = EncoderChoice(argument, settings, weights)

    def value(self, generated: Features, reference: Features) -> float:
        """The distance, which may be negative.

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
        return subset_protocol(**self.subsets)
