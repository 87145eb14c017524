"""Difficulty spread over a neighbour graph, and taken back from the neighbours of what is chosen."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy import sparse

from dcprune.artifacts import Embeddings, Rows
from dcprune.interfaces import ScoringContext
from dcprune.neighbours import nearest_neighbours


class D2:
    """D2 pruning (Maharana, Yadav and Bansal, ICLR 2024, arXiv 2310.07931): message passing for difficult and diverse.

    Within a class the samples are the nodes of an undirected graph; an edge joins i and j where one is among the k
    nearest neighbours of the other. Nodes start with the difficulty x_i.

    - forward: x_i + sum over edges of exp(-gamma_f d_ij^2) x_j, so that difficult regions are preferred to outliers;
    - choice: the highest node, of equal ones the one of lower index;
    - reverse: a chosen node i takes exp(-gamma_r d_ij^2) times its present value away from each neighbour j, so that
      regions take turns.

    (The published code, adymaharana/d2pruning, has the distance itself in the exponents, and 1 for gamma_f.)

    The score is the place in this greedy order divided by the size of the class, in [0, 1). The paper takes the
    difficulty from training dynamics; here it comes from the embeddings: the distance to the class mean, or 1 for all
    (`uniform`), with which the choice goes by density alone. Distances d are divided by their mean over the edges of
    the class, so that the gammas do not depend on the encoder's scale.

    Exact, class by class: 2 n^2 D operations for a class of n samples, in blocks, then n k log n; memory of about
    200 k bytes a sample of the class.

    Args:
        num_neighbours: k.
        gamma_f: how fast the forward messages fade with distance; the paper's 1.
        gamma_r: how fast the reverse messages fade; the paper tunes it in 0 to 1, small ones for small coresets.
        difficulty: what the nodes start with.
    """

    keep: ClassVar[str] = "order"
    per_class: ClassVar[bool] = True

    def __init__(
        self,
        num_neighbours: Annotated[int, Field(ge=1)] = 5,
        gamma_f: Annotated[float, Field(ge=0)] = 1.0,
        gamma_r: Annotated[float, Field(ge=0)] = 0.1,
        difficulty: Literal["distance", "uniform"] = "distance",
    ) -> None:
        self.num_neighbours = num_neighbours
        self.gamma_f = gamma_f
        self.gamma_r = gamma_r
        self.difficulty = difficulty

    def score(self, embeddings: Embeddings, context: ScoringContext) -> NDArray[np.float64]:
        """Scores float64 [N]: relative places in the order of choice within the class, in [0, 1)."""
        scores = np.empty(len(embeddings.embeddings))
        with context.progress.task("pass messages", len(scores), "samples") as task:
            for _, rows in embeddings.classes():
                nodes = embeddings.embeddings.take(rows)
                places = self._chosen(self._graph(nodes, context), self._difficulties(nodes))
                scores[rows[np.fromiter(places, dtype=np.int64, count=len(rows))]] = np.arange(len(rows)) / len(rows)
                task.advance(len(rows))
        return scores

    def _graph(self, nodes: Rows, context: ScoringContext) -> sparse.csr_array:
        """Squared relative distances of the edges, a symmetric matrix [n, n] with zeros stored."""
        found = nearest_neighbours(nodes, self.num_neighbours, device=context.device)
        count, kept = found.positions.shape
        sources, targets = np.repeat(np.arange(count), kept), found.positions.ravel()
        scale = found.distances.mean() if kept else 0.0
        squared = np.square(found.distances.ravel() / (scale if scale > 0 else 1.0))
        both = np.stack([np.concatenate([sources, targets]), np.concatenate([targets, sources])])
        _, first = np.unique(both[0] * count + both[1], return_index=True)
        return sparse.csr_array((np.tile(squared, 2)[first], both[:, first]), shape=(count, count))

    def _difficulties(self, nodes: Rows) -> NDArray[np.float64]:
        """What the nodes start with, float64 [n], not negative."""
        if self.difficulty == "uniform":
            return np.ones(len(nodes))
        mean = np.zeros(nodes.shape[1])
        for block in nodes.blocks():
            mean += block.sum(axis=0, dtype=np.float64)
        mean /= len(nodes)
        return np.concatenate([np.linalg.norm(block - mean, axis=1) for block in nodes.blocks()])

    def _chosen(self, squared: sparse.csr_array, start: NDArray[np.float64]) -> Iterator[int]:
        """All positions in the order of choice.

        A heap holds every value that a node has had; what is not its present one is skipped.
        """
        forward, reverse = squared.copy(), squared.copy()
        forward.data, reverse.data = np.exp(-self.gamma_f * squared.data), np.exp(-self.gamma_r * squared.data)
        starts, neighbours, weights = (part.tolist() for part in (reverse.indptr, reverse.indices, reverse.data))
        values: list[float] = (start + forward @ start).tolist()
        heap = [(-value, position) for position, value in enumerate(values)]
        heapq.heapify(heap)
        waiting = [True] * len(values)
        while heap:
            negated, position = heapq.heappop(heap)
            if not waiting[position] or -negated != values[position]:
                continue
            waiting[position] = False
            yield position
            for edge in range(starts[position], starts[position + 1]):
                neighbour = neighbours[edge]
                if waiting[neighbour]:
                    values[neighbour] += weights[edge] * negated
                    heapq.heappush(heap, (-values[neighbour], neighbour))
