"""`prepare --dry-run`, and what encoding adds to `train --dry-run`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from dcprune.api.preparing import RESOLUTION, StrPath, check_choice, no_latents, opened, preparation_context
from dcprune.api.recipes import resolve_recipe
from dcprune.artifacts import StageCost
from dcprune.autoencoder import STABLE_DIFFUSION, autoencoder_files
from dcprune.devices import cache_dir, device_name, resolve_device
from dcprune.downloads import missing
from dcprune.interfaces import Backend, DatasetSource, FetchesWeights, TrainingData
from dcprune.latents import num_to_encode
from dcprune.processes import ALONE
from dcprune.subset import Subset
from dcprune.training.estimate import free_disk_bytes


class Encoding:
    """What it takes to encode images, from the few that a backend asks latents of.

    Args:
        few: the dataset that `context` is used for.
        device: where to encode.
        folder: where the few latents go.

    Attributes:
        context: for `Backend.prepare`.
        asked: how the backend wants its latents; empty where it wants none.
    """

    def __init__(self, few: DatasetSource, device: torch.device, folder: Path) -> None:
        self.asked: dict[str, Any] = {}
        self._few = few
        self._spent: list[StageCost] = []
        own = preparation_context(device, cache_dir=folder, spent=self._spent)

        def latents(dataset: DatasetSource, *, vae: str, resolution: int, flips: bool = True) -> TrainingData:
            self.asked = {"vae": vae, "resolution": resolution, "flips": flips}
            self._latents = own.latents(dataset, **self.asked)
            return self._latents

        self.context = replace(own, latents=latents)

    def of(self, dataset: DatasetSource, cache: Path | None) -> dict[str, Any]:
        """`encoded_images`, `encoding_seconds` and `latent_bytes` of a dataset; empty for a backend without latents.

        Args:
            dataset: what is to be encoded.
            cache: where latents of it may be; None for nowhere.
        """
        if not self.asked:
            return {}
        count = len(dataset) if cache is None else num_to_encode(dataset, **self.asked, cache_dir=cache)
        seconds = sum(each.device_seconds or 0.0 for each in self._spent) * count / len(self._few)
        # Mean and deviation in float16, of every image and where asked of its mirror.
        size = 2 * 2 * math.prod(self._latents.sample_shape) * (2 if self.asked["flips"] else 1)
        return {"encoded_images": count, "encoding_seconds": float(f"{seconds:.3g}"), "latent_bytes": count * size}


def few_samples(backend: Backend, batch_size: int, device: torch.device) -> int:
    """How many samples to prepare: two batches, fewer where every one goes through a frozen network first."""
    return _few_encoded(device) if isinstance(backend, FetchesWeights) else 2 * batch_size


def _few_encoded(device: torch.device) -> int:
    return 256 if device.type == "cuda" else 16


def missing_files(backend: Backend) -> list[str]:
    """What a backend would fetch first."""
    return missing(backend.downloads(cache_dir())) if isinstance(backend, FetchesWeights) else []


def estimate_preparation(
    dataset: str | Path | DatasetSource,
    *,
    backend: str | None = None,
    preset: str = "paper",
    settings: Mapping[str, Any] | None = None,
    vae: str | None = None,
    resolution: int | None = None,
    flips: bool = True,
    output: StrPath | None = None,
    split: str = "train",
    columns: Mapping[str, str] | None = None,
    data_dir: str | Path | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """What `prepare` would do with the same arguments, from a few encoded images; nothing is fetched or written.

    Args:
        dataset: this and what follows as for `dcprune.api.preparing.prepare`.
        backend: whose latents.
        preset: of the backend.
        settings: of the backend.
        vae: the autoencoder, where no backend is named.
        resolution: side of the images.
        flips: encode the mirror images, too.
        output: the folder that would be written.
        split: of the dataset.
        columns: of the dataset.
        data_dir: where datasets lie.
        device: where to encode.

    Returns:
        `num_samples`, `missing` (downloads that come first) and, where there are none, `encoded_images`,
        `encoding_seconds` and `latent_bytes`, all 0 where the cache has the latents, `disk_free_bytes` and `device`.

    Raises:
        DcpruneError: whatever `prepare` would refuse before its first batch, but for an output that exists.
    """
    check_choice(backend, settings, vae=vae, resolution=resolution, flips=flips, output=output)
    place = resolve_device(device)
    source = opened(dataset, ALONE, split=split, data_dir=data_dir, columns=columns, download=False)
    chosen = None if backend is None else resolve_recipe(backend, preset, settings or {}, {}).backend
    name = vae or STABLE_DIFFUSION
    files = missing(autoencoder_files(name, cache_dir())) if chosen is None else missing_files(chosen)
    plan: dict[str, Any] = {"num_samples": len(source), "missing": files}
    if files:
        return plan
    few = Subset(source, np.arange(min(len(source), _few_encoded(place)), dtype=np.int64))
    with TemporaryDirectory() as folder:
        encoding = Encoding(few, place, Path(folder))
        if chosen is None:
            encoding.context.latents(few, vae=name, resolution=resolution or RESOLUTION, flips=flips)
        else:
            chosen.prepare(few, encoding.context)
        if backend is not None and not encoding.asked:
            raise no_latents(backend)
        plan.update(encoding.of(source, None if output is not None else cache_dir()))
    return {
        **plan,
        "disk_free_bytes": free_disk_bytes(cache_dir() if output is None else Path(output)),
        "device": device_name(place),
    }
