"""Distance to the centre of the class, the middle of which is kept."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from dcprune.artifacts import ClassRows, Embeddings
from dcprune.class_scores import score_classes, squared_distances, threads_that_fit
from dcprune.interfaces import ScoringContext

# A class of more bytes than this is not brought into memory.
_CLASS_BYTES = 256 << 20
# Float32 values of a cache line, and bytes that stay in the cache of a processor.
_LINE = 16
_CACHE_BYTES = 2 << 20
# Rows that bracket the median, and how many places of their order it may lie off the middle: 2.2 standard deviations.
_SAMPLE = 512
_MARGIN = 25
# Digits of a float32, as an integer that sorts like it: where they start and how many bits they have.
_DIGITS = ((21, 11), (10, 11), (0, 10))


class Moderate:
    """Moderate-DS (Xia et al., ICLR 2023): d_i = ||z_i - m_y||, keep the window of ranks round the median distance.

    The published code takes the coordinate-wise median as the centre m and ranks over all classes together
    (`--scope global`); Li et al. (arXiv 2409.19128) keep the same ratio of every class, the default here.
    `--keep nearest` keeps what lies nearest to the centre instead of the window.

    Medians and means are exact, distances float64. Several classes are worked on at the same time.
    A class beyond 256 MiB is read in blocks: its median is found digit by digit, in four passes over its rows.

    Args:
        centre: `median` (coordinate-wise) or `mean`.
    """

    keep: ClassVar[str] = "median-window"
    per_class: ClassVar[bool] = True

    def __init__(self, centre: Literal["median", "mean"] = "median") -> None:
        self.centre = centre

    def score(self, embeddings: Embeddings, context: ScoringContext) -> NDArray[np.float64]:
        """Scores float64 [N]: Euclidean distances; see `dcprune.interfaces.Scorer`."""
        largest = max(len(rows) for _, rows in embeddings.classes()) * embeddings.embeddings.shape[1]
        threads = threads_that_fit(min(8 * largest, _CLASS_BYTES))
        return score_classes(embeddings, self._distances, context, "score moderate", threads=threads)

    def _distances(self, part: ClassRows) -> NDArray[np.float64]:
        """Distances float64 [n] of a class to its centre."""
        part = part.in_memory()
        centre = _mean(part) if self.centre == "mean" else _median(part)
        distances: NDArray[np.float64] = np.sqrt(
            np.concatenate([squared_distances(block, centre) for block in part.blocks()])
        )
        return distances


def _mean(part: ClassRows) -> NDArray[np.float64]:
    total = sum(block.sum(axis=0, dtype=np.float64) for block in part.blocks())
    return np.asarray(total) / len(part)


def _median(part: ClassRows) -> NDArray[np.float64]:
    """Coordinate-wise median, float64 [D]; of an even number the mean of the two in the middle."""
    if len(part) * part.dim * 4 > _CLASS_BYTES:
        return _streamed_median(part)
    return _middle(part.matrix()) if len(part) <= 2 * _SAMPLE else _bracketed_median(part)


def _middle(rows: NDArray[np.float32]) -> NDArray[np.float64]:
    """The median by sorting."""
    columns = _sorted_columns(rows)
    middle = len(rows) // 2
    return (columns[:, (len(rows) - 1) // 2].astype(np.float64) + columns[:, middle]) / 2


def _sorted_columns(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """The rows transposed, float32 [D, n], each column sorted; np.partition is far slower where values are equal."""
    columns = np.empty((rows.shape[1], len(rows)), dtype=np.float32)
    for row in range(0, len(rows), _LINE):  # a cache line of a column at a time
        some = rows[row : row + _LINE]
        columns[:, row : row + len(some)] = some.T
    columns.sort(axis=1)
    return columns


def _bracketed_median(part: ClassRows) -> NDArray[np.float64]:
    """Like `_middle`, without sorting all (after Floyd and Rivest, "Expected time bounds for selection", 1975).

    A sample says between which two values of a column the median very likely lies. Counting what is below and between
    them shows whether it does; then only what is between is sorted, else the column.
    """
    sample = _sorted_columns(part.some(np.linspace(0, len(part) - 1, _SAMPLE).astype(np.int64)))
    lower, upper = (np.ascontiguousarray(sample[:, _SAMPLE // 2 + offset]) for offset in (-_MARGIN, _MARGIN))
    below, up_to_lower, up_to_upper = (np.zeros(part.dim, dtype=np.int64) for _ in range(3))
    between = []
    step = max(1, _CACHE_BYTES // (4 * part.dim))
    for block in part.blocks():
        for row in range(0, len(block), step):
            some = block[row : row + step]
            above, beyond = some > lower, some > upper
            below += _counts(some < lower)
            up_to_lower += len(some) - _counts(above)
            up_to_upper += len(some) - _counts(beyond)
            place = np.flatnonzero(above ^ beyond)
            column = (place % part.dim).astype(np.uint64)
            between.append(column << np.uint64(32) | _sortable(some.ravel()[place]))
    # Torch sorts integers in less than half the time; these are below 2^63.
    keys = torch.from_numpy(np.concatenate(between).view(np.int64)).sort().values.numpy().view(np.uint64)
    ends = np.searchsorted(keys, np.arange(1, part.dim + 1, dtype=np.uint64) << np.uint64(32))
    starts = np.concatenate([[0], ends[:-1]])
    values = np.append(_from_sortable(keys.astype(np.uint32)), np.float32(0))
    total = np.zeros(part.dim)
    certain = np.ones(part.dim, dtype=bool)
    for rank in ((len(part) - 1) // 2, len(part) // 2):
        inner = values[np.clip(starts + rank - up_to_lower, 0, len(keys))]
        total += np.where(rank < up_to_lower, lower, inner)
        certain &= (below <= rank) & (rank < up_to_upper)
    median = total / 2
    missed = np.flatnonzero(~certain)
    if len(missed):
        median[missed] = _middle(np.concatenate([block[:, missed] for block in part.blocks()]))
    return median


def _counts(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """How many are true in every column, int64 [D]; bytes are added as such, 255 rows at a time."""
    ones = mask.view(np.uint8)
    sums = [np.add.reduce(ones[row : row + 255], axis=0, dtype=np.uint8) for row in range(0, len(ones), 255)]
    total: NDArray[np.int64] = np.sum(sums, axis=0, dtype=np.int64)
    return total


def _streamed_median(part: ClassRows) -> NDArray[np.float64]:
    """Like `_median`, by counting digits: the leading one of all values, the next of those that share it, and so on."""
    count, dim = len(part), part.dim
    found = np.zeros(dim, dtype=np.uint32)
    rank = np.full(dim, (count - 1) // 2)
    for start, bits in _DIGITS:
        counts = np.zeros((dim, 1 << bits), dtype=np.int64)
        for block in part.blocks():
            keys = _sortable(block)
            if start + bits == 32:
                column, digit = np.broadcast_to(np.arange(dim), keys.shape).ravel(), (keys >> start).ravel()
            else:
                row, column = np.nonzero(keys >> (start + bits) == found)
                digit = keys[row, column] >> start & ((1 << bits) - 1)
            counts += np.bincount((column << bits) + digit, minlength=counts.size).reshape(counts.shape)
        before = np.cumsum(counts, axis=1)
        digits = (before <= rank[:, None]).sum(axis=1)
        rank = rank - np.where(digits > 0, before[np.arange(dim), np.maximum(digits, 1) - 1], 0)
        found = found << np.uint32(bits) | digits.astype(np.uint32)
    lower = _from_sortable(found)
    upper = lower if count % 2 else _next_value(part, lower)
    return (lower.astype(np.float64) + upper) / 2


def _next_value(part: ClassRows, lower: NDArray[np.float32]) -> NDArray[np.float32]:
    """What follows the lower median in every sorted column: itself where it is there often enough."""
    up_to = np.zeros(len(lower), dtype=np.int64)
    above = np.full(len(lower), np.inf, dtype=np.float32)
    for block in part.blocks():
        higher = block > lower
        up_to += len(block) - higher.sum(axis=0)
        np.minimum(above, np.where(higher, block, np.float32(np.inf)).min(axis=0), out=above)
    return np.where(up_to > len(part) // 2, lower, above)


def _sortable(values: NDArray[np.float32]) -> NDArray[np.uint32]:
    """Unsigned integers in the order of the values: the sign bit flipped, and all others of negative values."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    return bits ^ np.where(bits >> 31, np.uint32(0xFFFFFFFF), np.uint32(0x80000000))


def _from_sortable(keys: NDArray[np.uint32]) -> NDArray[np.float32]:
    bits: NDArray[np.uint32] = keys ^ np.where(keys >> 31, np.uint32(0x80000000), np.uint32(0xFFFFFFFF))
    return bits.view(np.float32)
