"""Scores class by class, several classes at the same time, and the rows of a class as products need them."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from dcprune.artifacts import ClassRows, Embeddings
from dcprune.interfaces import ScoringContext

# Bytes that all classes in work may hold together.
_BYTES = 512 << 20
# Of float64 rows that are squared at a time, so that they stay in the cache of a processor.
_CACHE_BYTES = 512 << 10


@dataclass(frozen=True)
class Centred:
    """The rows of a class, moved and scaled such that float32 products of them lose little and do not overflow.

    Attributes:
        rows: float32 [n, D], (row - mean) / scale.
        mean: float64 [D].
        scale: the power of two below the largest coordinate of a difference, so that dividing by it is exact.
        norms: float64 [n], squared lengths of the rows.
    """

    rows: NDArray[np.float32]
    mean: NDArray[np.float64]
    scale: float
    norms: NDArray[np.float64]


def centred(rows: NDArray[np.float32]) -> Centred:
    """Centre and scale rows float32 [n, D], which are left as they are."""
    mean = rows.mean(axis=0, dtype=np.float64)
    moved = rows - mean.astype(np.float32)
    largest = float(max(moved.max(), -moved.min())) or 1.0
    scale = float(2.0 ** np.floor(np.log2(largest)))
    moved /= np.float32(scale)
    return Centred(moved, mean, scale, squared_distances(moved, np.zeros(rows.shape[1])))


def squared_distances(rows: NDArray[np.float32], centre: NDArray[np.float64]) -> NDArray[np.float64]:
    """Squared Euclidean distances float64 [n] of rows [n, D] to a centre [D], computed in float64."""
    step = max(1, _CACHE_BYTES // (8 * rows.shape[1]))
    squares = np.empty(len(rows))
    buffer = np.empty((step, rows.shape[1]))
    for row in range(0, len(rows), step):
        some = rows[row : row + step]
        offsets = np.subtract(some, centre, out=buffer[: len(some)])
        np.einsum("ij,ij->i", offsets, offsets, out=squares[row : row + step])
    return squares


def score_classes(
    embeddings: Embeddings,
    score: Callable[[ClassRows], NDArray[np.float64]],
    context: ScoringContext,
    description: str,
    *,
    threads: int,
) -> NDArray[np.float64]:
    """Scores float64 [N], of which `score` computes those of one class, float64 [n].

    With several threads, of which each works on a class, products of matrices have one thread each: small ones that
    share all cores wait for one another. So `score` must not hold the interpreter's lock for long; NumPy does not.
    """
    scores = np.empty(len(embeddings.embeddings))
    running: deque[tuple[ClassRows, Future[NDArray[np.float64]]]] = deque()
    with (
        context.progress.task(description, len(scores), "samples") as task,
        threadpool_limits(1, "blas") if threads > 1 else contextlib.nullcontext(),
        ThreadPoolExecutor(threads) as pool,
    ):

        def finish(most: int) -> None:
            while len(running) > most:
                part, values = running.popleft()
                scores[part.rows] = values.result()
                task.advance(len(part))

        for part in embeddings.by_class():
            running.append((part, pool.submit(score, part)))
            finish(threads)
        finish(0)
    return scores


def threads_that_fit(num_bytes: int) -> int:
    """How many of the threads of this process hold `num_bytes` each in 512 MiB together; at least one."""
    return max(1, min(torch.get_num_threads(), _BYTES // max(1, num_bytes)))


def threads_for_classes(embeddings: Embeddings, device: torch.device, num_bytes: int) -> int:
    """How many classes to work on at the same time, where one class alone could use all threads.

    All threads of this process, unless a class is so large that it would keep one of them busy when the others are
    done, or the classes, each of which holds `num_bytes` beside its rows, do not fit. Then one.
    """
    threads = torch.get_num_threads()
    largest = max(len(rows) for _, rows in embeddings.classes())
    fits = threads_that_fit(num_bytes) == threads and threads * largest <= len(embeddings.embeddings)
    return threads if fits and device.type == "cpu" else 1
