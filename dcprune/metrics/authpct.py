"""Share of generated images that are no copies of training images: `authpct:ENCODER`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dcprune.interfaces import EncoderChoice, Features
from dcprune.metrics.balls import nearest_among
from dcprune.metrics.checks import checked_rows
from dcprune.metrics.influence import centred
from dcprune.neighbours import nearest_neighbours


class AuthPct:
    """Percentage of the generated images that are authentic, against the images that the model was trained on.

    Source: Alaa et al. 2022 (arXiv 2102.08921) for authenticity, Stein et al. 2023 (arXiv 2306.04675) for the
    percentage. A generated image is authentic when it is farther from the nearest training image than that one is from
    its own nearest training image. A copy never is. Fresh draws from the distribution of the training images have 33
    (in one dimension) to 50 (in many); less is memorisation, and more is being off that distribution.

    Costs at most 4 q n D operations for q generated and n training images.

    Args:
        argument: name of the encoder.
        weights: the encoder's weights, a path or a name it knows; None for its default.
        settings: the encoder's settings.
    """

    def __init__(self, argument: str, *, weights: str | None = None, **settings: Any) -> None:
        self.encoder = EncoderChoice(argument, settings, weights)

    def value(self, generated: Features, reference: Features) -> float:
        """A percentage.

        Raises:
            InputError: no generated images, fewer than two reference images, or features that are not finite.
        """
        return float(self._authentic(generated, reference).mean())

    def influence(self, generated: Features, reference: Features) -> NDArray[np.float64]:
        """Every generated image counts for itself."""
        return centred(self._authentic(generated, reference))

    def _authentic(self, generated: Features, reference: Features) -> NDArray[Any]:
        """100 where a generated image is authentic, 0 where it is not."""
        made, real = checked_rows("Authenticity", generated, reference, least_reference=2)
        nearest = nearest_among(real, made)
        # Few training images are nearest to a generated one, and only their neighbours are looked for.
        theirs, place = np.unique(nearest.positions[:, 0], return_inverse=True)
        to_others = nearest_neighbours(real, 1, queries=theirs).distances[:, 0]
        return 100.0 * (nearest.distances[:, 0] > to_others[place])

    def min_samples(self, dim: int) -> int:
        """100 images: one of them is one per cent."""
        return 100

    def protocol(self) -> dict[str, Any]:
        return {"distance": "euclidean", "num_neighbours": 1}
