"""Inception score."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.special import log_softmax, logsumexp

from dcprune.artifacts import Rows
from dcprune.interfaces import EncoderChoice, Features
from dcprune.metrics.checks import checked_rows
from dcprune.metrics.order import order_of


class InceptionScore:
    """exp of the mean divergence of p(class | image) from p(class), averaged over splits of the generated images.

    Source: Salimans et al. 2016 (arXiv 1606.03498), with the classifier of the FID network without its bias, as in
    their code. The score of n images lies in [1, min(n, 1008)]; higher is better. It looks at no reference, rewards
    what looks like one of ImageNet's classes, and means little for anything else (Barratt and Sharma 2018, arXiv
    1801.01973). Splits are drawn at random, so the order of the images does not count.

    Args:
        num_splits: parts of equal size that the images are dealt to; the value is the mean over them.
        split_seed: of the deal.
        mode: `clean`, `legacy_pytorch` or `legacy_tensorflow`; how images come to 299 x 299 pixels. Published scores
            are those of `legacy_tensorflow`.
        weights: a file of the Inception weights; None downloads the one that clean-fid uses in this mode.
    """

    needs_reference: ClassVar[bool] = False
    extrapolates: ClassVar[bool] = True

    def __init__(
        self,
        *,
        num_splits: Annotated[int, Field(ge=1)] = 10,
        split_seed: Annotated[int, Field(ge=0)] = 0,
        mode: Literal["clean", "legacy_pytorch", "legacy_tensorflow"] = "clean",
        weights: str | None = None,
    ) -> None:
        self.num_splits = num_splits
        self.split_seed = split_seed
        self.mode = mode
        self.encoder = EncoderChoice("inceptionv3-fid", {"mode": mode, "layer": "logits"}, weights)

    def value(self, generated: Features, reference: Features | None = None) -> float:
        """The score, at least 1.

        Raises:
            InputError: fewer images than splits, or logits that are not finite.
        """
        return float(self.splits(generated, reference).mean())

    def splits(self, generated: Features, reference: Features | None = None) -> NDArray[np.float64]:
        """The score of every split, float64 [num_splits]; see `value`."""
        return np.array([np.exp(divergences(rows).mean()) for _, rows in self._deal(generated)])

    def influence(self, generated: Features, reference: Features | None = None) -> NDArray[np.float64]:
        """The derivative by p(class) vanishes, so an image counts by its own divergence."""
        count = len(generated.features)
        found = np.empty(count)
        for rows, logits in self._deal(generated):
            own = divergences(logits)
            found[rows] = np.exp(own.mean()) * (own - own.mean()) * (count / (self.num_splits * len(rows)))
        return found

    def min_samples(self, dim: int) -> int:
        """With fewer than 500 images a split, its p(class) is mostly noise."""
        return 500 * self.num_splits

    def protocol(self) -> dict[str, Any]:
        return {
            "divergence": "kullback-leibler",
            "num_splits": self.num_splits,
            "split_seed": self.split_seed,
            "mode": self.mode,
        }

    def _deal(self, generated: Features) -> list[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Row numbers and logits of every split."""
        rows, _ = checked_rows("The Inception score", generated, generated, least_generated=self.num_splits)
        generator = np.random.default_rng(self.split_seed)
        order = order_of(rows, generator.normal(size=rows.shape[1]))[generator.permutation(len(rows))]
        bounds = [number * len(rows) // self.num_splits for number in range(self.num_splits + 1)]
        parts = [order[start:stop] for start, stop in pairwise(bounds)]
        return [(part, Rows([generated.features])[part]) for part in parts]


def divergences(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Kullback-Leibler divergence of every row's classes from those of all rows: logits [n, K] -> float64 [n]."""
    logs = log_softmax(logits.astype(np.float64), axis=1)
    overall = logsumexp(logs, axis=0) - np.log(len(logs))
    found: NDArray[np.float64] = np.einsum("ij,ij->i", np.exp(logs), logs - overall)
    return found
