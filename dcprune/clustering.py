"""K-means over rows that need not fit in memory: Lloyd's iterations in blocks, started by k-means++.

The result is a function of the sequence of rows, the seed and the settings. How the rows are stored (in one part or in
shards, in memory or mapped) does not enter, not even in the last bit. The order of the rows does enter, because
k-means++ draws positions; `cluster_samples` takes samples in the order of their dataset index and is therefore
independent of the order in which embeddings are stored.

Sources: Lloyd, Least squares quantization in PCM, 1982; Arthur and Vassilvitskii, k-means++, SODA 2007 (the greedy form
with 2 + ln K trials a step); Dhillon and Modha, Concept decompositions for large sparse text data using clustering,
2001, for spherical k-means.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse

from dcprune.artifacts import Embeddings, Rows
from dcprune.errors import ArtifactError, OptionError
from dcprune.interfaces import Progress, ScoringContext
from dcprune.progress import SILENT

_BLOCK_BYTES = 32 << 20
_SUBSAMPLE_BYTES = 256 << 20
_SUBSAMPLE_PER_CLUSTER = 64
_SUBSAMPLE_MIN = 1 << 14
_FEW_ROWS = 1024
_PASSES_OF_SAMPLES = 30
_CANCELLED = 1e-4
_CPU = torch.device("cpu")

_Nearest = tuple[NDArray[np.int64], NDArray[np.float32]]


@dataclass(frozen=True, eq=False)
class KMeans:
    """Clusters of n rows.

    Attributes:
        centroids: float32 [K, D], of unit length for spherical k-means; none is without rows.
        labels: int64 [n], the nearest centroid; of equally near ones the first.
        distances: float64 [n] to that centroid: Euclidean, or 1 - cosine for spherical k-means.
        inertia: sum of the squared Euclidean distances, or of the cosine distances.
    """

    centroids: NDArray[np.float32]
    labels: NDArray[np.int64]
    distances: NDArray[np.float64]
    inertia: float


def kmeans(
    rows: Rows,
    num_clusters: int,
    *,
    generator: np.random.Generator,
    row_index: NDArray[np.int64] | None = None,
    max_iter: int = 100,
    tol: float = 1e-4,
    device: torch.device = _CPU,
    spherical: bool = False,
    progress: Progress | None = None,
) -> KMeans:
    """Cluster rows.

    K-means++ and Lloyd run on a subsample first (64 rows for each cluster, at least 16,384, at most 256 MiB, drawn
    without replacement; all rows when there are no more), then Lloyd runs over all rows from there. Products are
    float32 on `device`, sums and the final distances float64. A cluster that loses its last row moves to the row that
    is farthest from its own centroid.

    Each pass costs 2 n K D operations and reads the rows once. Memory holds some 40 bytes for each row, 12 K D
    bytes, the subsample and a few blocks of 32 MiB.

    Args:
        rows: the matrix [N, D].
        num_clusters: clusters K. There are fewer when the rows (of the subsample) have fewer distinct values.
        generator: draws the subsample and the first centroids.
        row_index: int64 [n], the rows to cluster, in this order; all of them when None.
        max_iter: most passes over all rows.
        tol: Lloyd stops when the centroids move by less than this share of the mean variance of a dimension, both
            squared.
        device: where the products are computed.
        spherical: cluster directions instead of points: rows and centroids of length 1, cosine distances. A row of
            zeros has no direction; its distance is 1.
        progress: counts passes.

    Raises:
        OptionError: fewer than one cluster or pass, or no rows.
        ArtifactError: values so large that their squares overflow float32.
    """
    rows = rows if row_index is None else rows.take(row_index)
    count = len(rows)
    if num_clusters < 1 or max_iter < 1 or count == 0:
        raise OptionError(
            f"K-means of {count} rows into {num_clusters} clusters in {max_iter} passes: all must be > 0."
        )
    points = _Points(rows, unit=spherical, centre=not spherical)
    # MPS has no float64.
    device = _CPU if device.type == "mps" else device
    lloyd = _Lloyd(spherical=spherical, max_iter=max_iter, tol=tol, device=device, progress=progress or SILENT)

    size = min(count, _subsample_size(num_clusters, rows.shape[1]))
    drawn = np.arange(count) if size == count else np.sort(generator.choice(count, size, replace=False, shuffle=False))
    sample = points.gather(drawn)
    centroids = sample[_plus_plus(torch.from_numpy(sample).to(device), num_clusters, generator)].astype(np.float64)
    centroids = lloyd.run(_Points(Rows([sample])), centroids, "k-means, subsample")
    del sample
    if size < count:
        centroids = lloyd.run(points, centroids, "k-means")
    return lloyd.finish(points, centroids)


def cluster_samples(
    embeddings: Embeddings, num_clusters: int, context: ScoringContext, *, spherical: bool = False
) -> KMeans:
    """K-means of all samples, taken in the order of their dataset index; `labels` and `distances` follow the rows.

    Lloyd stops after 30 passes at the latest: what more would gain is far below the difference between two seeds.

    Raises:
        OptionError: fewer than one cluster.
        ArtifactError: values so large that their squares overflow float32.
    """
    order = np.argsort(embeddings.indices)
    found = kmeans(
        embeddings.embeddings,
        num_clusters,
        generator=context.generator(),
        row_index=order,
        max_iter=_PASSES_OF_SAMPLES,
        device=context.device,
        spherical=spherical,
        progress=context.progress,
    )
    labels, distances = np.empty_like(found.labels), np.empty_like(found.distances)
    labels[order], distances[order] = found.labels, found.distances
    return KMeans(found.centroids, labels, distances, found.inertia)


def add_by_label(sums: NDArray[np.float64], labels: NDArray[np.int64], block: NDArray[np.float32]) -> None:
    """Add each row of `block` [n, D] to the row of `sums` [K, D] that its label names, in float64."""
    present, inverse = np.unique(labels, return_inverse=True)
    ones, columns = np.ones(len(labels)), np.arange(len(labels))
    sums[present] += sparse.csr_array((ones, (inverse, columns)), shape=(len(present), len(labels))) @ block


def default_num_clusters(embeddings: Embeddings) -> int:
    """The number of classes; sqrt(N / 2) for class-less data."""
    return embeddings.dataset.num_classes or max(1, round(math.sqrt(len(embeddings.embeddings) / 2)))


def unit_length(vectors: NDArray[np.floating]) -> NDArray[np.floating]:
    """Vectors [n, D] divided by their lengths, in their own dtype; zeros stay zeros."""
    lengths = np.sqrt(np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64))
    units: NDArray[np.floating] = np.divide(vectors, np.where(lengths > 0, lengths, 1)[:, None], dtype=vectors.dtype)
    return units


def _subsample_size(num_clusters: int, width: int) -> int:
    wanted = max(_SUBSAMPLE_MIN, _SUBSAMPLE_PER_CLUSTER * num_clusters)
    return max(num_clusters, min(wanted, _SUBSAMPLE_BYTES // (4 * width)))


class _Points:
    """A sequence of rows, as they are or of unit length, less a vector near their mean.

    Float32 products lose less near the origin.

    Attributes:
        offset: float32 [D], what is subtracted.
    """

    def __init__(self, rows: Rows, *, unit: bool = False, centre: bool = False) -> None:
        self._rows = rows
        self._unit = unit
        self.offset = np.zeros(rows.shape[1], dtype=np.float32)
        if centre:
            spread = np.linspace(0, len(rows) - 1, min(len(rows), _FEW_ROWS)).astype(np.int64)
            self.offset = rows[spread].mean(axis=0, dtype=np.float64).astype(np.float32)

    def __len__(self) -> int:
        return len(self._rows)

    def raw(self, positions: slice | NDArray[np.int64]) -> NDArray[np.float32]:
        """Rows [n, D] as they are stored."""
        return self._rows[positions]

    def take(self, positions: slice | NDArray[np.int64]) -> NDArray[np.float32]:
        """Rows [n, D] as they are clustered, never a view of what is stored."""
        raw = self.raw(positions)
        return unit_length(raw).astype(np.float32, copy=False) if self._unit else raw - self.offset

    def gather(self, positions: NDArray[np.int64]) -> NDArray[np.float32]:
        """Like `take`, for many rows: without copies of all of them on the way."""
        gathered = np.empty((len(positions), self._rows.shape[1]), dtype=np.float32)
        for start in range(0, len(positions), _FEW_ROWS):
            gathered[start : start + _FEW_ROWS] = self.take(positions[start : start + _FEW_ROWS])
            self._rows.release()
        return gathered

    def spans(self, columns: int) -> Iterator[slice]:
        """Blocks of positions, such that `columns` float32 values for each fill about 32 MiB.

        Pages of files that were read for a block are given back after it.
        """
        step = max(1, _BLOCK_BYTES // (4 * max(columns, self._rows.shape[1])))
        for start in range(0, len(self), step):
            yield slice(start, min(start + step, len(self)))
            self._rows.release()


def _plus_plus(sample: torch.Tensor, num_clusters: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """Positions of up to `num_clusters` distinct rows of `sample` [n, D], by greedy k-means++."""
    norms = torch.linalg.vector_norm(sample, dim=1).square()
    _check_finite(norms.sum().item())
    trials = 2 + int(math.log(num_clusters))
    chosen = [int(generator.integers(len(sample)))]
    closest = _squared_distances(sample, norms, torch.tensor(chosen, device=sample.device))[0]
    while len(chosen) < num_clusters and float(closest.max()) > 0:
        cumulated = np.cumsum(closest.cpu().numpy(), dtype=np.float64)  # torch's differs from run to run on CUDA
        drawn = np.searchsorted(cumulated, generator.random(trials) * cumulated[-1], side="right")
        drawn = np.minimum(drawn, np.searchsorted(cumulated, cumulated[-1]))
        distances = _squared_distances(sample, norms, torch.from_numpy(drawn).to(sample.device))
        improved = torch.minimum(closest, distances)
        best = int(improved.sum(1, dtype=torch.float64).argmin())
        chosen.append(int(drawn[best]))
        closest = improved[best]
    return np.array(chosen, dtype=np.int64)


def _squared_distances(sample: torch.Tensor, norms: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Squared distances float32 [m, n] of m rows to all n rows, exactly 0 for duplicates.

    They come from products; where those cancel, the differences are summed.
    """
    few, sizes = sample[positions], norms[positions, None] + norms
    distances = sizes - 2 * few @ sample.T
    left, right = torch.nonzero(distances < _CANCELLED * sizes, as_tuple=True)
    for span in range(0, len(left), _FEW_ROWS):
        one, other = left[span : span + _FEW_ROWS], right[span : span + _FEW_ROWS]
        distances[one, other] = (few[one] - sample[other]).square().sum(1)
    return distances


def _check_finite(total: float) -> None:
    if not math.isfinite(total):
        raise ArtifactError("The embeddings are so large that their squared distances overflow float32: scale them.")


@dataclass(frozen=True, eq=False)
class _Pass:
    """What one look at all n rows gives.

    Attributes:
        sums, counts: float64 [K, D] and int64 [K], the rows of each cluster.
        squared: float32 [n], squared distances to the nearest centroid.
        variance: mean variance of a dimension.
    """

    sums: NDArray[np.float64]
    counts: NDArray[np.int64]
    squared: NDArray[np.float32]
    variance: float


@dataclass(frozen=True)
class _Lloyd:
    """Lloyd's iterations with fixed settings, see `kmeans`; centroids [K, D] count from the offset of the points."""

    spherical: bool
    max_iter: int
    tol: float
    device: torch.device
    progress: Progress

    def run(self, points: _Points, centroids: NDArray[np.float64], what: str) -> NDArray[np.float64]:
        """Centroids where Lloyd's iterations end that start at `centroids`."""
        with self.progress.task(what, None, "passes") as task:
            for _ in range(self.max_iter):
                seen = self._look(points, centroids)
                moved = self._moved(points, centroids, seen)
                shift = float(np.square(moved - centroids).sum())
                centroids = moved
                task.advance(inertia=float(seen.squared.sum(dtype=np.float64)))
                if shift <= self.tol * seen.variance:
                    break
        return centroids

    def finish(self, points: _Points, centroids: NDArray[np.float64]) -> KMeans:
        """Labels and exact distances for the centroids as they are returned."""
        stored = (centroids + points.offset).astype(np.float32)
        exact = stored.astype(np.float64)
        directions = unit_length(exact)
        assign = self._assignment(exact - points.offset)
        labels = np.empty(len(points), dtype=np.int64)
        distances = np.empty(len(points))
        for span in points.spans(2 * len(stored)):
            labels[span], _ = assign(points.take(span))
            raw = points.raw(span).astype(np.float64)
            if self.spherical:
                distances[span] = 1 - np.einsum("nd,nd->n", unit_length(raw), directions[labels[span]])
            else:
                raw -= exact[labels[span]]
                distances[span] = np.sqrt(np.einsum("nd,nd->n", raw, raw))
        np.maximum(distances, 0, out=distances)
        used, labels = np.unique(labels, return_inverse=True)
        inertia = float(distances.sum() if self.spherical else np.square(distances).sum())
        return KMeans(stored[used], labels.astype(np.int64), distances, inertia)

    def _look(self, points: _Points, centroids: NDArray[np.float64]) -> _Pass:
        sums, counts = np.zeros(centroids.shape), np.zeros(len(centroids), dtype=np.int64)
        squared = np.empty(len(points), dtype=np.float32)
        total = 0.0
        assign = self._assignment(centroids)
        for span in points.spans(len(centroids)):
            block = points.take(span)
            labels, relative = assign(block)
            norms = np.einsum("nd,nd->n", block, block)
            squared[span] = np.maximum(norms + relative, 0)
            total += float(norms.sum(dtype=np.float64))
            add_by_label(sums, labels, block)
            counts += np.bincount(labels, minlength=len(counts))
        _check_finite(total)
        mean = sums.sum(axis=0) / len(points)
        variance = max(0.0, total / len(points) - float(mean @ mean)) / len(mean)
        return _Pass(sums, counts, squared, variance)

    def _assignment(self, centroids: NDArray[np.float64]) -> Callable[[NDArray[np.float32]], _Nearest]:
        """A function from rows [n, D] to their nearest centroids int64 [n] and |x - c|^2 - |x|^2, float32 [n]."""
        transposed = torch.from_numpy(centroids.T.astype(np.float32)).to(self.device)
        # Lengths are 1 for spherical k-means; computed, they would decide the ties of rows of zeros.
        squares = np.ones(len(centroids)) if self.spherical else np.square(centroids).sum(axis=1)
        bias = torch.from_numpy(squares.astype(np.float32)).to(self.device)

        def assign(block: NDArray[np.float32]) -> _Nearest:
            relative, labels = torch.addmm(bias, torch.from_numpy(block).to(self.device), transposed, alpha=-2).min(1)
            return labels.cpu().numpy(), relative.cpu().numpy()

        return assign

    def _moved(self, points: _Points, centroids: NDArray[np.float64], seen: _Pass) -> NDArray[np.float64]:
        """Means of the clusters; directions of the means for spherical k-means; empty clusters are placed anew."""
        moved = centroids.copy()
        filled = seen.counts > 0
        moved[filled] = seen.sums[filled] / seen.counts[filled, None]
        if self.spherical:
            directed = filled & (np.square(moved).sum(axis=1) > 0)
            moved[directed] = unit_length(moved[directed])
            moved[filled & ~directed] = centroids[filled & ~directed]
        empty = np.flatnonzero(~filled)
        if len(empty):
            seeds = _farthest(points, seen.squared, len(empty))
            moved[empty[: len(seeds)]] = seeds
        return moved


def _farthest(points: _Points, squared: NDArray[np.float32], wanted: int) -> NDArray[np.float32]:
    """Up to `wanted` distinct rows that are farthest from their centroids, of equally far ones the first."""
    order = np.argsort(-squared, kind="stable")
    found: dict[bytes, NDArray[np.float32]] = {}
    step = max(wanted, _FEW_ROWS)
    for start in range(0, len(order), step):
        for row in points.take(order[start : start + step]) + np.float32(0):  # -0 and 0 have other bytes
            found.setdefault(row.tobytes(), row)
        if len(found) >= wanted:
            break
    return np.stack(list(found.values())[:wanted])
