"""`train --dry-run` and `reweight --dry-run`: what would be done, and what it would take."""

from __future__ import annotations

import math
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from dcprune.api.encoding_estimate import Encoding, few_samples, missing_files
from dcprune.api.proxy import ReweightingRequest, open_game, proxy_trainer
from dcprune.api.training_job import StrPath, TrainingRequest, open_job
from dcprune.devices import cache_dir
from dcprune.interfaces import Progress, TrainingData
from dcprune.latents import Latents
from dcprune.processes import processes
from dcprune.progress import SILENT
from dcprune.subset import Subset
from dcprune.training.estimate import estimate
from dcprune.training.objectives import WeightedLoss
from dcprune.training.schedule import Phase


def estimate_training(request: TrainingRequest, output: StrPath, progress: Progress | None = None) -> dict[str, Any]:
    """What `train` would do with the same arguments, from a few timed updates; nothing is downloaded or written.

    Args:
        request: what would be asked of `train`.
        output: the run folder that would be written.
        progress: hears warnings.

    Returns:
        `num_trained_samples`, `updates_on_full_data` where the run is annealed, `missing` (downloads that come first)
        and, where there are none, what `dcprune.training.estimate.estimate` finds, and, of a backend that trains on
        latents, `encoded_images`, `encoding_seconds` and `latent_bytes`, which `seconds` and `disk_bytes` leave out.
        Where samples are left out, the updates are those without that.

    Raises:
        DcpruneError: whatever `train` would refuse before its first update, but for an output that exists.
    """
    job = open_job(request, Path(output), processes(), progress or SILENT, download=False)
    config, inputs = job.recipe.config, job.inputs
    plan: dict[str, Any] = {"num_trained_samples": len(inputs.kept)}
    if job.steps[1]:
        plan["updates_on_full_data"] = job.steps[1]
    plan["missing"] = missing_files(job.recipe.backend)
    if plan["missing"]:
        return plan
    few = Subset(inputs.source, inputs.kept[: few_samples(job.recipe.backend, config.batch_size, job.device)])
    with TemporaryDirectory() as place:
        encoding = Encoding(few, job.device, Path(place))
        data = job.recipe.backend.prepare(few, encoding.context)
        if request.latents is None:
            everything = inputs.source if job.steps[1] else Subset(inputs.source, inputs.kept)
            plan.update(encoding.of(everything, cache_dir()))
        objective = WeightedLoss(np.ones_like(inputs.weights), inputs.labels[few.indices], job.device)
        trainer = job.trainer(data, [Phase(torch.arange(len(data)), sum(job.steps), objective)])
        resident = len(inputs.source) if job.steps[1] else len(inputs.kept)
        missing_bytes = (resident - len(data)) * _sample_bytes(data, job.device)
        return {**plan, **estimate(trainer, job.output, missing_bytes=missing_bytes)}


def estimate_reweighting(
    request: ReweightingRequest, output: StrPath, progress: Progress | None = None
) -> dict[str, Any]:
    """What `reweight` would do with the same arguments, from a few timed updates; nothing is downloaded or written.

    Args:
        request: what would be asked of `reweight`.
        output: the file that would be written.
        progress: hears warnings.

    Returns:
        `num_trained_samples`, `missing` (downloads that come first) and, where there are none, what
        `dcprune.training.estimate.estimate` finds.

    Raises:
        DcpruneError: whatever `reweight` would refuse before its first update, but for an output that exists.
    """
    game = open_game(request, processes())
    plan: dict[str, Any] = {
        "num_trained_samples": game.coreset.num_selected,
        "missing": missing_files(game.run.backend),
    }
    if plan["missing"]:
        return plan
    few = few_samples(game.run.backend, game.config.batch_size, game.device)
    with TemporaryDirectory() as place:
        trainer, _ = proxy_trainer(game, None, progress or SILENT, download=False, few=few, cache_dir=Path(place))
        missing_bytes = (game.coreset.num_selected - len(trainer.data)) * _sample_bytes(trainer.data, game.device)
        return {**plan, **estimate(trainer, Path(output), missing_bytes=max(0, missing_bytes))}


def _sample_bytes(data: TrainingData, device: torch.device) -> int:
    """What a sample of prepared data takes in memory: its image, or, of latents, mean and deviation in float16."""
    if isinstance(data, Latents) or isinstance(getattr(data, "latents", None), Latents):
        return 4 * math.prod(data.sample_shape)
    return data.images(torch.arange(1, device=device)).nbytes
