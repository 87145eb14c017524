"""`train`: from a coreset, or a whole dataset, to a run folder."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from dcprune import formats
from dcprune.api.class_weights import reweight
from dcprune.api.generation import MODEL_FOLDER, balanced_labels, generate, image_seeds, open_run, sample
from dcprune.api.preparing import check_model, preparation_context
from dcprune.api.recipes import check_same_options
from dcprune.api.training_job import Job, TrainingRequest, open_job
from dcprune.artifacts import ClassWeights, Coreset, RunRecord, StageCost, joined_costs
from dcprune.devices import autocast
from dcprune.errors import OptionError, OutputExists
from dcprune.formats.documents import RUN_FILE
from dcprune.interfaces import DatasetSource, Progress
from dcprune.processes import processes
from dcprune.progress import SILENT
from dcprune.subset import Subset
from dcprune.training import checkpoint
from dcprune.training.interrupt import seconds_of
from dcprune.training.run_folder import RunFolder, is_leftover, remove_leftovers, written
from dcprune.training.trackers import Tracker
from dcprune.training.trainer import Trainer

__all__ = ["balanced_labels", "generate", "image_seeds", "open_run", "reweight", "sample", "train"]

StrPath = str | os.PathLike[str]

_GRID_CLASSES = 10
_GRID_COLUMNS = 8


def train(
    dataset: str | Path | DatasetSource | None = None,
    *,
    coreset: Coreset | StrPath | None = None,
    class_weights: ClassWeights | StrPath | None = None,
    output: StrPath,
    backend: str = "ddpm",
    preset: str = "paper",
    settings: Mapping[str, Any] | None = None,
    epochs: float | None = None,
    steps: int | None = None,
    anneal: float | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    class_weighting: str | None = None,
    unconditional: bool = False,
    dynamic: str | None = None,
    gradient_accumulation_steps: int | None = None,
    checkpoint_every: int | None = None,
    sample_every: int | None = None,
    guidance_scale: float | None = None,
    trackers: Sequence[str] = (),
    latents: StrPath | None = None,
    split: str = "train",
    data_dir: StrPath | None = None,
    device: str = "auto",
    dtype: str = "auto",
    seed: int = 0,
    max_time: float | str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> RunRecord:
    """Train a diffusion model.

    Under `torchrun` or `accelerate launch` every process calls this; they share the batches, and the first one writes.

    Args:
        dataset: train on all of it, or check that the other artifacts belong to it. Without it the artifacts say which
            dataset they were made from.
        coreset: train on these samples only; the artifact or its path.
        class_weights: loss weight of every class; the artifact or its path.
        output: the run folder.
        backend: a registered backend.
        preset: recipe that gives every option that is not given here.
        settings: settings of the backend, and fields of `dcprune.training.config.TrainingConfig` that have no argument
            of their own (`ema_decay`, `lr_schedule`, ...); strings are converted.
        epochs: length in passes over the coreset: fewer samples are fewer updates.
        steps: length in updates, instead of `epochs`.
        anneal: fraction of the length on the coreset; the rest is on the full data with weights 1.
        batch_size: samples of one update.
        learning_rate: peak learning rate.
        class_weighting: `loss` multiplies the loss, `sampling` draws the classes in proportion.
        unconditional: learn without classes, as if the dataset had none; `ddae` embeds with such a run.
        dynamic: `infobatch` leaves out, in every epoch anew, half of the samples that the model does well on.
        gradient_accumulation_steps: portions of a batch that a device computes one after the other, to save memory.
        checkpoint_every: updates between checkpoints.
        sample_every: updates between sample grids.
        guidance_scale: 1 + w of the run's samples, unless `sample` or `eval` asks for another.
        trackers: `tensorboard`, `trackio`, `wandb`: where losses and sample grids go besides the run folder.
        max_time: save and stop after this time: seconds, or a text such as `55m` or `1h30m`.
        latents: folder that `prepare` wrote for the whole dataset; the user's cache by default.
        split: split of `dataset`.
        data_dir: where datasets lie.
        device: where to train.
        dtype: autocast precision.
        seed: of everything random.
        resume: continue the run in `output` if there is one; its options must be the same.
        overwrite: replace the run in `output`.
        progress: for long work.

    Returns:
        The record of the finished run.

    Raises:
        OutputExists: `output` exists, and neither `resume` nor `overwrite` was given, or it is no run folder.
        OptionError: options that do not fit, or differ from those of the run to resume.
        DatasetMismatch: artifacts of another dataset.
        TrainingDiverged: the loss is not finite, or explodes.
        StorageError: a file of the run cannot be written; what was saved before is still there.
        KeyboardInterrupt: after Ctrl-C or SIGTERM; the state is saved.
        OutOfTime: after `max_time`; the state is saved.
    """
    deadline = None if max_time is None else time.monotonic() + seconds_of(max_time)
    team = processes()
    progress = progress if progress is not None and team.is_main else SILENT
    output = Path(output)
    _check_output(output, resume=resume, overwrite=overwrite)
    request = TrainingRequest(
        dataset=dataset,
        coreset=coreset,
        class_weights=class_weights,
        backend=backend,
        preset=preset,
        settings=settings or {},
        epochs=epochs,
        steps=steps,
        anneal=anneal,
        batch_size=batch_size,
        learning_rate=learning_rate,
        class_weighting=class_weighting,
        unconditional=unconditional,
        dynamic=dynamic,
        gradient_accumulation_steps=gradient_accumulation_steps,
        checkpoint_every=checkpoint_every,
        sample_every=sample_every,
        guidance_scale=guidance_scale,
        trackers=trackers,
        latents=latents,
        split=split,
        data_dir=data_dir,
        device=device,
        dtype=dtype,
        seed=seed,
    )
    job = open_job(request, output, team, progress)
    record = job.record()
    if resume and (output / RUN_FILE).exists():
        known = formats.read_run(output)
        check_same_options(known, record)
        if known.model_sha256 is not None:
            progress.note(f"{output} is finished ({known.step} steps); there is nothing to resume.")
            return known
    team.barrier()  # every process has looked at the output before the first one changes it
    if team.is_main and overwrite:
        _discard(output)
    elif team.is_main:
        remove_leftovers(output)
    team.barrier()
    return _run(job, record, resume=resume, deadline=deadline, progress=progress)


def _run(job: Job, record: RunRecord, *, resume: bool, deadline: float | None, progress: Progress) -> RunRecord:
    """Train, save the model, write the final record."""
    spent: list[StageCost] = []
    if job.team.is_main and checkpoint.latest(job.output) is None:
        classes, seed = job.num_classes, job.recipe.config.seed
        row = int(job.inputs.kept[0])
        check_model(job.recipe.backend, job.inputs.source, row, num_classes=classes, seed=seed, device=job.device)
    job.team.barrier()
    trainer = _trainer(job, record, spent, progress)
    if resume and trainer.resume(job.output):
        progress.note(f"Resuming at step {trainer.step} of {trainer.total_steps}.")
    if job.team.is_main:
        formats.write_run(_advanced(job, record, trainer, spent), job.output)
    with _followers(job, record, trainer):
        trainer.run(deadline)
    if job.team.is_main:
        with written(job.output / MODEL_FOLDER):
            with formats.atomic_folder(job.output / MODEL_FOLDER, overwrite=True) as model_folder:
                job.recipe.backend.save(trainer.ema.model, model_folder)
            sha256 = formats.sha256(job.output / MODEL_FOLDER)
            formats.write_run(
                _advanced(job, record, trainer, spent).model_copy(update={"model_sha256": sha256}), job.output
            )
    job.team.barrier()
    return formats.read_run(job.output)


@contextmanager
def _followers(job: Job, record: RunRecord, trainer: Trainer) -> Iterator[None]:
    """Trackers that hear of what the first process writes down, closed whatever happens."""
    names = job.request.trackers if job.team.is_main else ()
    config = {**record.training, **record.model, "backend": record.backend, "preset": record.preset}
    class_names = job.inputs.identity.class_names
    with ExitStack() as stack:
        opened = [Tracker(name, job.output, config, class_names) for name in names]
        for tracker in opened:
            stack.callback(tracker.close)
        if trainer.folder is not None:
            trainer.folder.followers = opened
        yield


def _trainer(job: Job, record: RunRecord, spent: list[StageCost], progress: Progress) -> Trainer:
    """The trainer of a run that writes its files; what preparing the samples cost is added to `spent`."""
    inputs, recipe = job.inputs, job.recipe
    kept = torch.from_numpy(inputs.kept)
    context = preparation_context(
        job.device, latents=job.request.latents, spent=spent, team=job.team, progress=progress
    )
    if job.steps[1]:
        data = recipe.backend.prepare(inputs.source, context)
    else:
        data = recipe.backend.prepare(Subset(inputs.source, inputs.kept), context)
        kept = torch.arange(len(kept))
    folder = RunFolder(
        job.output,
        keep_checkpoints=recipe.config.keep_checkpoints,
        draw_images=lambda model: _grid_images(job, model),
        columns=_GRID_COLUMNS,
        on_checkpoint=lambda: formats.write_run(_advanced(job, record, trainer, spent), job.output),
    )
    trainer = job.trainer(data, job.phases(kept, torch.arange(len(data))), folder=folder, progress=progress)
    return trainer


def _advanced(job: Job, record: RunRecord, trainer: Trainer, spent: Sequence[StageCost]) -> RunRecord:
    """The record with what the run and everything before it have cost so far."""
    before = [each.costs for each in (job.inputs.coreset, job.inputs.class_weights) if each is not None]
    ledger = joined_costs(*before, spent, [trainer.cost("train")])
    return record.model_copy(update={"step": trainer.step, "total_steps": trainer.total_steps, "ledger": ledger})


def _grid_images(job: Job, model: torch.nn.Module) -> torch.Tensor:
    """Samples for the grid: a row of each of the first classes, with the same noise at every step of the run."""
    classes = min(max(1, job.num_classes), _GRID_CLASSES)
    labels = torch.arange(classes, device=job.device).repeat_interleave(_GRID_COLUMNS)
    seeds = image_seeds(job.recipe.config.seed, len(labels))
    with autocast(job.device, job.dtype):
        return job.recipe.backend.sample(model, labels, seeds, job.sampling)


def _check_output(output: Path, *, resume: bool, overwrite: bool) -> None:
    """Refuse to write over anything but a run, and over a run only when that was asked for."""
    if resume and overwrite:
        raise OptionError("--resume continues the run and --overwrite replaces it: choose one.")
    if not output.exists() or (output.is_dir() and all(map(is_leftover, output.iterdir()))):
        return
    if not (output / RUN_FILE).is_file():
        raise OutputExists(f"{output} exists and is not a run folder. Choose another --output.")
    if not (resume or overwrite):
        raise OutputExists(f"{output} exists. Choose another --output, or pass --resume or --overwrite.")


def _discard(output: Path) -> None:
    """Remove a run folder; killed half-way, it leaves no folder that looks like something else."""
    refuse = output.with_name(f".{output.name}.old.tmp")
    formats.remove(refuse)
    if output.exists():
        formats.remove(output.replace(refuse))
