"""What backends are given to prepare a dataset with."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch

from dcprune.artifacts import StageCost
from dcprune.devices import cache_dir as default_cache_dir
from dcprune.formats.costs import read_costs
from dcprune.formats.documents import LATENTS_FILE
from dcprune.interfaces import DatasetSource, PreparationContext, Progress
from dcprune.latents.encoding import MakeProvenance, cached_latents
from dcprune.latents.table import Latents
from dcprune.latents.texts import cached_texts
from dcprune.processes import ALONE, Processes
from dcprune.progress import SILENT


def preparation(
    device: torch.device,
    *,
    provenance: MakeProvenance,
    cache_dir: Path | None = None,
    latents: Path | None = None,
    spent: list[StageCost] | None = None,
    team: Processes = ALONE,
    progress: Progress = SILENT,
) -> PreparationContext:
    """A context whose caches lie in a folder.

    Args:
        device: where training reads the samples.
        provenance: see `dcprune.latents.cached_latents`.
        cache_dir: where the caches lie; the user's cache by default.
        latents: finished latents of the whole dataset, instead of the cache's.
        spent: gets what the latents cost that a backend asks for.
        team: processes that all prepare the same dataset, and share the work.
        progress: for long work.
    """
    place = cache_dir or default_cache_dir()

    def cached(dataset: DatasetSource, *, vae: str, resolution: int, flips: bool = True) -> Latents:
        found = cached_latents(
            dataset,
            vae=vae,
            resolution=resolution,
            flips=flips,
            device=device,
            cache_dir=place,
            provenance=provenance,
            folder=latents,
            team=team,
            progress=progress,
        )
        if spent is not None:
            spent.extend(read_costs(found.folder / LATENTS_FILE))
        return found

    return PreparationContext(
        device=device,
        progress=progress,
        latents=cached,
        texts=partial(cached_texts, device=device, cache_dir=place, team=team, progress=progress),
    )
