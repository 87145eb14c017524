"""`train`: from a coreset, or a whole dataset, to a run folder."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dcprune import formats
from dcprune.api.class_weights import reweight
from dcprune.api.generation import MODEL_FOLDER, balanced_labels, generate, image_seeds, open_run, sample
from dcprune.api.matching import Inputs, open_inputs
from dcprune.api.provenance import provenance
from dcprune.api.recipes import Recipe, check_same_options, resolve_recipe
from dcprune.artifacts import ClassWeights, Coreset, InputFile, RunRecord, joined_costs
from dcprune.devices import autocast, resolve_device, resolve_dtype
from dcprune.errors import OptionError, OutputExists
from dcprune.formats.documents import RUN_FILE
from dcprune.interfaces import DatasetSource, Progress
from dcprune.processes import Processes, processes
from dcprune.progress import SILENT
from dcprune.training.interrupt import seconds_of
from dcprune.training.objectives import WeightedLoss
from dcprune.training.run_folder import RunFolder, is_leftover, remove_leftovers
from dcprune.training.schedule import Phase, infobatch_phases, phase_steps
from dcprune.training.subset import Subset
from dcprune.training.trackers import Tracker, check_trackers
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
    trackers: Sequence[str] = (),
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
        trackers: `tensorboard`, `trackio`, `wandb`: where losses and sample grids go besides the run folder.
        max_time: save and stop after this time: seconds, or a text such as `55m` or `1h30m`.
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
    check_trackers(trackers)
    _check_output(output, resume=resume, overwrite=overwrite)
    options = {
        "epochs": epochs,
        "steps": steps,
        "anneal": anneal,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "class_weighting": class_weighting,
        "unconditional": unconditional or None,
        "dynamic": dynamic,
        "gradient_accumulation_steps": gradient_accumulation_steps,
        "checkpoint_every": checkpoint_every,
        "sample_every": sample_every,
        "seed": seed,
    }
    recipe = resolve_recipe(backend, preset, settings or {}, options)
    inputs = team.main_first(lambda: open_inputs(dataset, coreset, class_weights, split=split, data_dir=data_dir))
    place = resolve_device(device)
    job = _Job(recipe, inputs, output, place, resolve_dtype(dtype, place), dict(settings or {}), tuple(trackers), team)
    _check_fit(job, class_weighting, progress)
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


@dataclass(frozen=True)
class _Job:
    """One resolved call of `train`."""

    recipe: Recipe
    inputs: Inputs
    output: Path
    device: torch.device
    dtype: torch.dtype
    settings: Mapping[str, Any]
    trackers: tuple[str, ...]
    team: Processes

    @property
    def steps(self) -> tuple[int, int]:
        """Updates on the coreset and on the full data; no more than these where samples are left out."""
        return phase_steps(self.recipe.config, len(self.inputs.kept), len(self.inputs.source))

    @property
    def num_classes(self) -> int:
        """Classes that the model tells apart; 0 for none."""
        return 0 if self.recipe.config.unconditional else self.inputs.identity.num_classes

    def record(self) -> RunRecord:
        """The run's record before the first step."""
        recipe, inputs, config = self.recipe, self.inputs, self.recipe.config
        coreset, weights = _origin(inputs.coreset), _origin(inputs.class_weights)
        asked = {
            "dataset": inputs.identity.uri if coreset is None else None,
            "coreset": coreset,
            "class_weights": weights,
            "class_weighting": config.class_weighting if weights else None,
            "backend": recipe.backend_name,
            "preset": recipe.preset_name,
            "set": dict(self.settings),
            **config.model_dump(include=set(_RECORDED)),
            "tracker": list(self.trackers),
            "output": str(self.output),
            "split": inputs.identity.split if coreset is None else None,
            "seed": config.seed,
        }
        return RunRecord(
            dataset=inputs.identity,
            backend=recipe.backend_name,
            preset=recipe.preset_name,
            model=recipe.backend.settings(),
            training=config.model_dump(mode="json"),
            sampling=asdict(recipe.preset.sampling),
            num_trained_samples=len(inputs.kept),
            coreset=_input_file(coreset),
            class_weights=_input_file(weights),
            step=0,
            total_steps=sum(self.steps),
            model_sha256=None,
            ledger=(),
            provenance=provenance(
                "train", asked, seed=config.seed, inputs=[coreset, weights], device=self.device, dtype=self.dtype
            ),
        )

    def phases(self, kept: torch.Tensor, full: torch.Tensor) -> list[Phase]:
        """The coreset with its class weights, then the full data with weights 1; rows int64 of the training data."""
        inputs, (first, second) = self.inputs, self.steps
        labels = inputs.labels[inputs.kept]
        ones = np.ones_like(inputs.weights)
        by_loss = self.recipe.config.class_weighting == "loss"
        row_weights = None if by_loss else torch.from_numpy(inputs.weights[labels])
        objective = WeightedLoss(inputs.weights if by_loss else ones, labels, self.device)
        if self.recipe.config.dynamic is not None:
            return infobatch_phases(kept, objective, self.recipe.config)
        return [
            Phase(kept, first, objective, row_weights),
            Phase(full, second, WeightedLoss(ones, inputs.labels, self.device)),
        ]


_RECORDED = (
    "epochs",
    "steps",
    "anneal",
    "batch_size",
    "learning_rate",
    "unconditional",
    "dynamic",
    "gradient_accumulation_steps",
    "checkpoint_every",
    "sample_every",
)


def _run(job: _Job, record: RunRecord, *, resume: bool, deadline: float | None, progress: Progress) -> RunRecord:
    """Train, save the model, write the final record."""
    trainer = _trainer(job, record, progress)
    if resume and trainer.resume(job.output):
        progress.note(f"Resuming at step {trainer.step} of {trainer.total_steps}.")
    if job.team.is_main:
        formats.write_run(_advanced(job, record, trainer), job.output)
    with _followers(job, record, trainer):
        trainer.run(deadline)
    if job.team.is_main:
        with formats.atomic_folder(job.output / MODEL_FOLDER, overwrite=True) as model_folder:
            job.recipe.backend.save(trainer.ema.model, model_folder)
        sha256 = formats.sha256(job.output / MODEL_FOLDER)
        formats.write_run(_advanced(job, record, trainer).model_copy(update={"model_sha256": sha256}), job.output)
    job.team.barrier()
    return formats.read_run(job.output)


@contextmanager
def _followers(job: _Job, record: RunRecord, trainer: Trainer) -> Iterator[None]:
    """Trackers that hear of what the first process writes down, closed whatever happens."""
    names = job.trackers if job.team.is_main else ()
    config = {**record.training, **record.model, "backend": record.backend, "preset": record.preset}
    class_names = job.inputs.identity.class_names
    with ExitStack() as stack:
        opened = [Tracker(name, job.output, config, class_names) for name in names]
        for tracker in opened:
            stack.callback(tracker.close)
        if trainer.folder is not None:
            trainer.folder.followers = opened
        yield


def _trainer(job: _Job, record: RunRecord, progress: Progress) -> Trainer:
    """The trainer of a run that writes its files."""
    inputs, recipe = job.inputs, job.recipe
    kept = torch.from_numpy(inputs.kept)
    if job.steps[1]:
        data = recipe.backend.prepare(inputs.source, job.device, progress)
    else:
        data = recipe.backend.prepare(Subset(inputs.source, inputs.kept), job.device, progress)
        kept = torch.arange(len(kept))
    folder = RunFolder(
        job.output,
        keep_checkpoints=recipe.config.keep_checkpoints,
        draw_images=lambda model: _grid_images(job, model),
        columns=_GRID_COLUMNS,
        on_checkpoint=lambda: formats.write_run(_advanced(job, record, trainer), job.output),
    )
    trainer = Trainer(
        recipe.backend,
        data,
        recipe.config,
        job.phases(kept, torch.arange(len(data))),
        num_classes=job.num_classes,
        device=job.device,
        dtype=job.dtype,
        folder=folder,
        class_names=inputs.identity.class_names,
        processes=job.team,
        progress=progress,
    )
    return trainer


def _advanced(job: _Job, record: RunRecord, trainer: Trainer) -> RunRecord:
    """The record with what the run and everything before it have cost so far."""
    before = [each.costs for each in (job.inputs.coreset, job.inputs.class_weights) if each is not None]
    ledger = joined_costs(*before, [trainer.cost("train")])
    return record.model_copy(update={"step": trainer.step, "total_steps": trainer.total_steps, "ledger": ledger})


def _grid_images(job: _Job, model: torch.nn.Module) -> torch.Tensor:
    """Samples for the grid: a row of each of the first classes, with the same noise at every step of the run."""
    classes = min(max(1, job.num_classes), _GRID_CLASSES)
    labels = torch.arange(classes, device=job.device).repeat_interleave(_GRID_COLUMNS)
    seeds = image_seeds(job.recipe.config.seed, len(labels))
    with autocast(job.device, job.dtype):
        return job.recipe.backend.sample(model, labels, seeds, job.recipe.preset.sampling)


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


def _check_fit(job: _Job, class_weighting: str | None, progress: Progress) -> None:
    """Refuse options that need an artifact which is not there; warn about weights of another coreset."""
    inputs = job.inputs
    if class_weighting is not None and inputs.class_weights is None:
        raise OptionError(f"class_weighting={class_weighting} needs class_weights.")
    if job.recipe.config.unconditional and inputs.class_weights is not None:
        raise OptionError("An unconditional model knows no classes, so class_weights do not go with it: drop one.")
    if job.recipe.config.anneal is not None and inputs.coreset is None:
        raise OptionError(
            f"anneal={job.recipe.config.anneal} goes from a coreset to the full data: it needs a coreset."
        )
    if inputs.coreset is None or inputs.class_weights is None or inputs.coreset.origin is None:
        return
    learned_on = [each.sha256 for each in inputs.class_weights.provenance.inputs if each.path.endswith(".json")]
    if learned_on and formats.sha256(inputs.coreset.origin) not in learned_on:
        progress.warn("The class weights were learned on another coreset than the one that is trained on.")


def _origin(artifact: Coreset | ClassWeights | None) -> str | None:
    return None if artifact is None else artifact.origin


def _input_file(path: str | None) -> InputFile | None:
    return None if path is None or path == "-" else formats.input_file(path)
