"""`embed --dry-run`: what would be done, and what it would take."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from dcprune.api.embeddings import Embedding, EmbedOptions, StrPath, opened, prepare
from dcprune.artifacts import Rows
from dcprune.devices import cache_dir, resolve_device, resolve_dtype
from dcprune.downloads import missing
from dcprune.errors import WeightsError
from dcprune.formats.tensors import SHARD_ROWS
from dcprune.interfaces import DatasetSource, Encoder, EncoderContext, Rehearses
from dcprune.plugins import registry
from dcprune.progress import SILENT
from dcprune.weights import write_weights

_TIMED_BATCHES = 2
_CPU_BATCH_SIZE = 16


def estimate_embedding(dataset: StrPath | DatasetSource, encoder: str, options: EmbedOptions) -> dict[str, Any]:
    """What `embed` would do with the same arguments; nothing is downloaded or written, and only a few steps trained.

    Where weights are not there, random ones are timed, of encoders that have some to offer
    (`dcprune.interfaces.Rehearses`).

    Args:
        dataset: as for `embed`.
        encoder: a registered encoder.
        options: of `embed`.

    Returns:
        `num_samples`, `num_classes`, `missing` (downloads, or a surrogate to train, that come first),
        `training_seconds` (of that surrogate), and, where the encoder can be loaded: `dim`, `output_bytes`,
        `output_files`, `decoded_bytes` (of images held in memory), `images_per_second` and `seconds` (of embedding),
        both from timed batches.

    Raises:
        DcpruneError: whatever `embed` would refuse before its first batch.
    """
    dataset = opened(dataset, options, download=False)
    plan: dict[str, Any] = {"num_samples": len(dataset), "num_classes": len(dataset.class_names), "missing": []}
    device = resolve_device(options.device)
    if device.type == "cpu":  # where the rate hardly depends on the batch, and a batch of a large network takes minutes
        options = replace(options, batch_size=min(options.batch_size, _CPU_BATCH_SIZE))
    options = replace(options, compile="off")
    item: Encoder = registry().create("encoder", encoder, options.settings, weights=options.weights)
    if files := missing(item.downloads(cache_dir())):
        return _rehearsed(dataset, encoder, options, item, {**plan, "missing": files})
    try:
        job = prepare(dataset, encoder, options, progress=SILENT, may_train=False)
    except WeightsError as error:
        return _rehearsed(dataset, encoder, options, item, {**plan, "missing": [str(error)]})
    return {**plan, **_measured(job)}


def _rehearsed(
    dataset: DatasetSource, encoder: str, options: EmbedOptions, item: Encoder, plan: dict[str, Any]
) -> dict[str, Any]:
    """The plan, and what can be measured of an encoder whose weights are not there."""
    given = options.weights is not None and options.weights not in getattr(item, "weight_names", ())
    if given or not isinstance(item, Rehearses):
        return plan
    device = resolve_device(options.device)
    context = EncoderContext(
        dataset, "", device, resolve_dtype(options.dtype, device), options.seed, cache_dir(), SILENT, may_train=False
    )
    found = item.untrained(context)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "untrained.safetensors"
        write_weights(path, found.tensors, found.metadata)
        measured = _measured(prepare(dataset, encoder, replace(options, weights=str(path)), progress=SILENT))
    if found.training_seconds:
        plan["training_seconds"] = round(found.training_seconds, 1)
    return {**plan, **measured}


def _measured(job: Embedding) -> dict[str, Any]:
    """Size and speed of an embedding whose encoder is loaded."""
    dataset, dim = job.source, job.info.dim
    rate = _rate(job)
    row_bytes = dim * np.dtype(Rows.STORAGE[job.dtype]).itemsize + 8 * (1 + bool(dataset.class_names))
    return {
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
