"""`precision:ENCODER`, `recall:ENCODER`, `density:ENCODER` and `coverage:ENCODER`, exactly and in blocks.

Sources: Kynkaanniemi et al. 2019 (arXiv 1904.06991) for precision and recall, Naeem et al. 2020 (arXiv 2002.09797) for
density and coverage. The ball of an image reaches up to its k-th nearest neighbour on its own side. That neighbour is
outside of it, as in the code of Naeem et al.; it is inside for Kynkaanniemi et al., which matters for duplicates only.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from dcprune.artifacts import Rows
from dcprune.interfaces import EncoderChoice, Features
from dcprune.metrics.balls import balls_around, gained_by_each_centre, nearest_among, radii
from dcprune.metrics.checks import checked_rows
from dcprune.metrics.influence import centred


class _BallMetric(ABC):
    """What the four have in common: an encoder's space, and k.

    Args:
        argument: name of the encoder.
        num_neighbours: k.
        weights: the encoder's weights, a path or a name it knows; None for its default.
        settings: the encoder's settings.
    """

    balls_of_generated: ClassVar[bool] = False

    def __init__(
        self,
        argument: str,
        *,
        num_neighbours: Annotated[int, Field(ge=1)] = 5,
        weights: str | None = None,
        **settings: Any,
    ) -> None:
        self.num_neighbours = num_neighbours
        self.encoder = EncoderChoice(argument, settings, weights)

    def value(self, generated: Features, reference: Features) -> float:
        """The metric; identical images have balls without an inside.

        Raises:
            InputError: no more than k images on the side whose balls are needed, or features that are not finite.
        """
        return self._value(*self._checked(generated, reference, 0))

    def influence(self, generated: Features, reference: Features) -> NDArray[np.float64]:
        """By leaving out one image at a time, which makes the interval wide rather than narrow (Efron and Stein 1981).

        Raises:
            InputError: as in `value`, which needs one image more here.
        """
        return centred(self._lost(*self._checked(generated, reference, 1)))

    def _checked(self, generated: Features, reference: Features, extra: int) -> tuple[Rows, Rows]:
        least = self.num_neighbours + 1
        needed = {"least_generated": least + extra} if self.balls_of_generated else {"least_reference": least}
        name = f"{type(self).__name__} with {self.num_neighbours} neighbours"
        return checked_rows(name, generated, reference, **needed)

    @abstractmethod
    def _value(self, generated: Rows, reference: Rows) -> float: ...

    @abstractmethod
    def _lost(self, generated: Rows, reference: Rows) -> NDArray[Any]:
        """N times what the value loses without each generated image, up to a constant: [N]."""

    def min_samples(self, dim: int) -> int:
        """10 k images: with fewer, every ball holds more than a tenth of its side."""
        return 10 * self.num_neighbours

    def protocol(self) -> dict[str, Any]:
        return {"distance": "euclidean", "num_neighbours": self.num_neighbours}


class Precision(_BallMetric):
    """Share of the generated images that lie in the ball of any reference image: fidelity."""

    def _value(self, generated: Rows, reference: Rows) -> float:
        return float(self._lost(generated, reference).mean())

    def _lost(self, generated: Rows, reference: Rows) -> NDArray[Any]:
        return balls_around(generated, reference, self.num_neighbours) > 0


class Recall(_BallMetric):
    """Share of the reference images that lie in the ball of any generated image: diversity."""

    balls_of_generated = True

    def _value(self, generated: Rows, reference: Rows) -> float:
        return float((balls_around(reference, generated, self.num_neighbours) > 0).mean())

    def _lost(self, generated: Rows, reference: Rows) -> NDArray[Any]:
        return gained_by_each_centre(reference, generated, self.num_neighbours) * (len(generated) / len(reference))


class Density(_BallMetric):
    """Mean number of balls of reference images that a generated image lies in, divided by k; it may exceed 1."""

    def _value(self, generated: Rows, reference: Rows) -> float:
        return float(balls_around(generated, reference, self.num_neighbours).mean() / self.num_neighbours)

    def _lost(self, generated: Rows, reference: Rows) -> NDArray[Any]:
        return balls_around(generated, reference, self.num_neighbours) / self.num_neighbours


class Coverage(_BallMetric):
    """Share of the reference images whose ball holds any generated image."""

    def _value(self, generated: Rows, reference: Rows) -> float:
        distances = nearest_among(generated, reference).distances[:, 0]
        return float((distances < radii(reference, self.num_neighbours)).mean())

    def _lost(self, generated: Rows, reference: Rows) -> NDArray[Any]:
        near = nearest_among(generated, reference, min(2, len(generated)))
        inside = near.distances < radii(reference, self.num_neighbours)[:, None]
        alone = inside[:, 0] & ~inside[:, 1:].any(axis=1)  # balls that hold one generated image only
        lost = np.bincount(near.positions[alone, 0], minlength=len(generated))
        return lost * (len(generated) / len(reference))
