"""`embed`: from a dataset to embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dcprune.api.provenance import provenance
from dcprune.artifacts import Embeddings, Rows
from dcprune.devices import cache_dir, dtype_name, resolve_device, resolve_dtype
from dcprune.embedding import encode_images, load_encoder
from dcprune.interfaces import DatasetSource, EncoderChoice, EncoderContext, Progress
from dcprune.progress import SILENT
from dcprune.sources import identify, open_dataset


def embed(
    dataset: str | Path | DatasetSource,
    encoder: str = "resnet18",
    *,
    weights: str | None = None,
    settings: Mapping[str, Any] | None = None,
    split: str = "train",
    data_dir: str | Path | None = None,
    device: str = "auto",
    dtype: str = "auto",
    seed: int = 0,
    batch_size: int = 256,
    num_workers: int = 2,
    progress: Progress | None = None,
) -> Embeddings:
    """Embed every image of a dataset.

    Args:
        dataset: a registered name, `name:location`, an image folder, or an open dataset.
        encoder: a registered encoder.
        weights: what the encoder loads: a path, a name that it knows, or None for its default.
        settings: its settings; strings are converted.
        split: which split of the dataset to open.
        data_dir: where datasets lie.
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
        dtype: `auto`, `fp32`, `bf16` or `fp16`.
        seed: seed of a surrogate's training.
        batch_size: images per forward pass.
        num_workers: threads that decode.
        progress: for long work.

    Raises:
        UnknownName: no such dataset, encoder or setting.
        MissingInput: the dataset's folder is not there.
        DatasetError: an image cannot be read.
        OptionError: an option's value does not fit.
        WeightsError: no weights, or weights that do not fit.
    """
    progress = progress or SILENT
    where = resolve_device(device)
    precision = resolve_dtype(dtype, where)
    source = open_dataset(dataset, split=split, data_dir=data_dir) if isinstance(dataset, str | Path) else dataset
    identity = identify(source)
    context = EncoderContext(source, identity.fingerprint, where, precision, seed, cache_dir(), progress)
    network, info = load_encoder(EncoderChoice(encoder, settings or {}, weights), context)
    indices = np.arange(len(source), dtype=np.int64)
    embeddings = encode_images(
        network,
        source.image,
        indices,
        device=where,
        dtype=precision,
        batch_size=batch_size,
        num_workers=num_workers,
        progress=progress,
        description=f"embed {source.uri}",
    )
    config = {
        "dataset": source.uri,
        "encoder": encoder,
        "weights": weights,
        "set": info.settings,
        "split": source.split,
        "dtype": dtype_name(precision),
        "seed": seed,
        "batch_size": batch_size,
    }
    return Embeddings(
        embeddings=Rows([embeddings]),
        labels=source.labels,
        indices=indices,
        ids=None if source.ids is None else tuple(source.ids),
        encoder=info,
        dataset=identity,
        provenance=provenance(
            "embed", config, seed=seed, inputs=[_weights_file(weights)], device=where, dtype=precision
        ),
    )


def _weights_file(weights: str | None) -> str | None:
    """`weights` when they are a file, for the provenance."""
    path = Path(weights).expanduser() if weights is not None else None
    return str(path) if path is not None and path.is_file() else None
