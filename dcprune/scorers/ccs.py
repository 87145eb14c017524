"""Even coverage of all levels of difficulty, without the hardest samples."""

from __future__ import annotations

from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from dcprune.artifacts import Embeddings, Rows
from dcprune.clustering import add_by_label
from dcprune.interfaces import ScoringContext


class Ccs:
    """Coverage-centric coreset selection (Zheng, Liu, Lai and Prakash, ICLR 2023, arXiv 2210.15809).

    Of every class the hardest `beta` (mislabelled samples are among them) is put last. The range of difficulty of the
    rest is cut into strata of equal width; every stratum gives the same number of samples, drawn at random, until it
    has no more, and what does not divide evenly goes to the largest strata. The score is a sample's place in this
    order divided by the size of its class, in [0, 1): any budget is split over the strata as the paper's algorithm
    splits it, and a larger coreset contains a smaller one. (The keep policy `stratified` does the same to any score,
    without the cut and with 50 strata. The published code treats all classes together.)

    The paper's difficulty is the accumulated margin (AUM) of a classifier in training: the logit of the sample's own
    class less the highest other one, low for hard samples. Here the classifier is the nearest class mean in the space
    of the embeddings, whose logits are -||z - m_c||^2 / 2:

        difficulty = ||z - m_y||^2 / 2 - min over c != y of ||z - m_c||^2 / 2

    With a single class the second term is left out. Means and distances are float64; which other class is nearest is
    found by float32 products.

    Costs three passes and 2 N K D operations for K classes; memory of 24 bytes a sample, 12 K D bytes and blocks.

    Args:
        beta: fraction of each class that is put last; the paper tunes it with the budget, from 0 for large coresets to
            0.3 or more for small ones.
        num_strata: strata of each class; the paper's 50.
    """

    keep: ClassVar[str] = "order"
    per_class: ClassVar[bool] = False

    def __init__(
        self,
        beta: Annotated[float, Field(ge=0, lt=1)] = 0.1,
        num_strata: Annotated[int, Field(ge=1)] = 50,
    ) -> None:
        self.beta = beta
        self.num_strata = num_strata

    def score(self, embeddings: Embeddings, context: ScoringContext) -> NDArray[np.float64]:
        """Scores float64 [N]: relative places in the order of choice within the class, in [0, 1)."""
        difficulties = _margins(embeddings)
        scores = np.empty(len(difficulties))
        for label, rows in embeddings.classes():
            places = self._places(difficulties[rows], context.generator(label))
            scores[rows] = places / len(rows)
        return scores

    def _places(self, difficulties: NDArray[np.float64], generator: np.random.Generator) -> NDArray[np.int64]:
        """Places int64 [n] of the samples of one class."""
        count = len(difficulties)
        by_difficulty = np.argsort(difficulties, kind="stable")
        rest, hardest = np.split(by_difficulty, [count - int(self.beta * count)])
        strata = _strata(difficulties[rest], self.num_strata)
        drawn = generator.permutation(len(rest))
        rounds = np.empty(len(rest), dtype=np.int64)
        for stratum in np.unique(strata):
            members = drawn[strata[drawn] == stratum]
            rounds[members] = np.arange(len(members))
        sizes = np.bincount(strata, minlength=self.num_strata)
        order = np.lexsort((-strata, -sizes[strata], rounds))
        places = np.empty(count, dtype=np.int64)
        places[np.concatenate([rest[order], hardest])] = np.arange(count)
        return places


def _strata(values: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Strata of equal width int64 [n] in [0, count); one when all values are equal."""
    lowest, highest = values.min(), values.max()
    if highest == lowest:
        return np.zeros(len(values), dtype=np.int64)
    strata: NDArray[np.int64] = ((values - lowest) / (highest - lowest) * count).astype(np.int64)
    return np.minimum(strata, count - 1)


def _margins(embeddings: Embeddings) -> NDArray[np.float64]:
    """Difficulties float64 [N], see `Ccs`; read in the order of the dataset index."""
    rows, order = embeddings.embeddings, np.argsort(embeddings.indices)
    count = len(order)
    labels = np.zeros(count, dtype=np.int64)
    if embeddings.labels is not None:
        _, labels = np.unique(embeddings.labels[order], return_inverse=True)
    means = _class_means(rows, order, labels)
    centre = means.mean(axis=0)
    shifted = (means - centre).astype(np.float32)
    squares = np.square(shifted).sum(axis=1)
    difficulties = np.empty(count)
    start = 0
    for block in rows.blocks(order):
        span = slice(start, start + len(block))
        start += len(block)
        own = labels[span]
        difficulties[order[span]] = _half_squares(block, means[own])
        if len(means) > 1:
            relative = squares - 2 * (block - centre.astype(np.float32)) @ shifted.T
            relative[np.arange(len(block)), own] = np.inf
            difficulties[order[span]] -= _half_squares(block, means[relative.argmin(axis=1)])
    return difficulties


def _class_means(rows: Rows, order: NDArray[np.int64], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Means float64 [K, D] of classes that all have samples."""
    sums, start = np.zeros((int(labels.max()) + 1, rows.shape[1])), 0
    for block in rows.blocks(order):
        add_by_label(sums, labels[start : start + len(block)], block)
        start += len(block)
    return sums / np.bincount(labels)[:, None]


def _half_squares(block: NDArray[np.float32], centres: NDArray[np.float64]) -> NDArray[np.float64]:
    """Half the squared distances float64 [n] between rows."""
    differences = block - centres
    halves: NDArray[np.float64] = np.einsum("nd,nd->n", differences, differences) / 2
    return halves
