"""Cosine similarity to a better sample of the same cluster: semantic duplicates go first."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from dcprune.artifacts import Embeddings, Rows, group_by_class
from dcprune.clustering import KMeans, cluster_samples, unit_length
from dcprune.interfaces import ScoringContext

# The paper's 50,000 clusters for the 440 million images of LAION.
_SAMPLES_PER_CLUSTER = 8800
_BLOCK_BYTES = 32 << 20
_BLOCK_ROWS = 2048


class SemDeDup:
    """Semantic deduplication (Abbas, Tirumala, Simig, Ganguli and Morcos 2023, arXiv 2303.09540).

    Spherical k-means clusters all samples, whatever their class. Within a cluster the samples are ordered by what is
    preferred: those far from the centroid (`hard`, the paper's choice), near to it (`easy`), or at random. The score of
    a sample is its highest cosine similarity to a sample before it, and -1 for the first: the method drops the samples
    with a score above 1 - eps. The lowest scores are kept, so that the duplicates go first, and a budget is met as in
    the paper, by the eps that leaves so many. `eps` changes no score; it says how many samples a threshold would leave.

    Costs a k-means of all samples (2 N K D operations a pass) and N^2 D / K operations for the similarities; memory of
    16 bytes a sample, 12 K D bytes and blocks. Rows of zeros have no direction and resemble nothing.

    Args:
        num_clusters: K; by default one for every 8,800 samples, as for LAION in the paper. Duplicates in different
            clusters are not found.
        prefer: which of two duplicates is kept.
        eps: samples closer than this cosine distance count as duplicates.
    """

    keep: ClassVar[str] = "lowest"
    per_class: ClassVar[bool] = False

    def __init__(
        self,
        num_clusters: Annotated[int, Field(ge=1)] | None = None,
        prefer: Literal["hard", "easy", "random"] = "hard",
        eps: Annotated[float, Field(ge=0, le=2)] = 0.05,
    ) -> None:
        self.num_clusters = num_clusters
        self.prefer = prefer
        self.eps = eps

    def score(self, embeddings: Embeddings, context: ScoringContext) -> NDArray[np.float64]:
        """Scores float64 [N]: cosine similarities in [-1, 1]; see `dcprune.interfaces.Scorer`."""
        count = len(embeddings.embeddings)
        clusters = self.num_clusters or max(1, round(count / _SAMPLES_PER_CLUSTER))
        found = cluster_samples(embeddings, clusters, context, spherical=True)
        ranks = self._ranks(found, embeddings, context)
        scores = np.empty(count)
        with context.progress.task("compare within clusters", count, "samples") as task:
            for _, rows in group_by_class(found.labels, count):
                ordered = rows[np.lexsort((embeddings.indices[rows], ranks[rows]))]
                scores[ordered] = _highest_before(embeddings.embeddings, ordered, context.device)
                task.advance(len(rows))
        kept = int((scores <= 1 - self.eps).sum())
        context.progress.note(
            f"{kept} of {count} samples have no better one within eps={self.eps:g}. "
            f"--num {kept} --scope global keeps exactly these."
        )
        return scores

    def _ranks(self, found: KMeans, embeddings: Embeddings, context: ScoringContext) -> NDArray[np.float64]:
        """Keys float64 [N] by which a cluster is ordered, what is kept first."""
        if self.prefer == "random":
            drawn: NDArray[np.float64] = context.generator(1).random(embeddings.dataset.num_samples)[embeddings.indices]
            return drawn
        return found.distances if self.prefer == "easy" else -found.distances


def _highest_before(embeddings: Rows, ordered: NDArray[np.int64], device: torch.device) -> NDArray[np.float64]:
    """Highest cosine similarity float64 [n] of each row to those before it; -1 where there is none."""
    step = max(1, min(_BLOCK_ROWS, _BLOCK_BYTES // (4 * embeddings.shape[1])))
    spans = [slice(start, start + step) for start in range(0, len(ordered), step)]

    def directions(span: slice) -> torch.Tensor:
        return torch.from_numpy(unit_length(embeddings[ordered[span]])).to(device)

    highest = np.full(len(ordered), -1.0)
    for number, span in enumerate(spans):
        block = directions(span)
        best = torch.full((len(block),), -1.0, device=device)
        for earlier in spans[:number]:
            best = torch.maximum(best, (directions(earlier) @ block.T).amax(0))
        pairs = block @ block.T
        not_before = torch.ones_like(pairs, dtype=torch.bool).tril()
        best = torch.maximum(best, pairs.masked_fill_(not_before, -1.0).amax(0))
        highest[span] = best.cpu().numpy()
        embeddings.release()
    clipped: NDArray[np.float64] = np.clip(highest, -1, 1)
    return clipped
