"""`embed --dry-run`: what would be done, and what it would take."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np

from dcprune.api.embeddings import Embedding, EmbedOptions, StrPath, opened, prepare
from dcprune.artifacts import Rows
from dcprune.devices import cache_dir
from dcprune.downloads import missing
from dcprune.errors import WeightsError
from dcprune.formats.tensors import SHARD_ROWS
from dcprune.interfaces import DatasetSource, Encoder
from dcprune.plugins import registry
from dcprune.progress import SILENT

_TIMED_BATCHES = 2


def estimate_embedding(dataset: StrPath | DatasetSource, encoder: str, options: EmbedOptions) -> dict[str, Any]:
    """What `embed` would do with the same arguments; nothing is downloaded, trained or written.

    Args:
        dataset: as for `embed`.
        encoder: a registered encoder.
        options: of `embed`.

    Returns:
        `num_samples`, `num_classes`, `missing` (downloads, or a surrogate to train, that come first), and, where the
        encoder can be loaded: `dim`, `output_bytes`, `output_files`, `decoded_bytes` (of images held in memory),
        `images_per_second` and `seconds`, both from timed batches.

    Raises:
        DcpruneError: whatever `embed` would refuse before its first batch.
    """
    dataset = opened(dataset, options, download=False)
    plan: dict[str, Any] = {"num_samples": len(dataset), "num_classes": len(dataset.class_names), "missing": []}
    item: Encoder = registry().create("encoder", encoder, options.settings, weights=options.weights)
    if files := missing(item.downloads(cache_dir())):
        return {**plan, "missing": files}
    try:
        job = prepare(dataset, encoder, replace(options, compile="off"), progress=SILENT, may_train=False)
    except WeightsError as error:
        return {**plan, "missing": [str(error)]}
    rate = _rate(job)
    dim = job.info.dim
    row_bytes = dim * np.dtype(Rows.STORAGE[job.dtype]).itemsize + 8 * (1 + bool(dataset.class_names))
    return {
        **plan,
        "dim": dim,
        "output_bytes": len(dataset) * row_bytes,
        "output_files": 1 if len(dataset) <= SHARD_ROWS else -(-len(dataset) // SHARD_ROWS) + 1,
        "decoded_bytes": 0 if dataset.array is None else dataset.array.nbytes,
        "images_per_second": round(rate, 1),
        "seconds": round(len(dataset) / rate, 1),
    }


def _rate(job: Embedding) -> float:
    """Images per second, from a few batches after the first."""
    size = job.pipeline.batch_size
    rows = np.arange(min(len(job.source), size * (_TIMED_BATCHES + 1)), dtype=np.int64)
    started = time.perf_counter()
    done = timed = 0
    for encoded in job.pipeline.run(job.loader, rows, on_error="skip"):
        done += len(encoded.indices) + len(encoded.failures)
        if done == size and len(rows) > size:
            started, timed = time.perf_counter(), done
    return (done - timed) / (time.perf_counter() - started)
