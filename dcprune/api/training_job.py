"""One call of `train`, resolved: recipe, inputs, device, and the trainer they make."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dcprune import formats
from dcprune.api.guidance import check_sampling, fitted, guided
from dcprune.api.matching import Inputs, open_inputs
from dcprune.api.provenance import provenance
from dcprune.api.recipes import Recipe, resolve_recipe
from dcprune.artifacts import ClassWeights, Coreset, InputFile, RunRecord
from dcprune.devices import dtype_name, resolve_device, resolve_dtype
from dcprune.errors import OptionError
from dcprune.interfaces import DatasetSource, Progress, Sampling, TrainingData
from dcprune.processes import ALONE, Processes
from dcprune.progress import SILENT
from dcprune.training.objectives import WeightedLoss
from dcprune.training.run_folder import RunFolder
from dcprune.training.schedule import Phase, infobatch_phases, phase_steps, warn_of_warmup
from dcprune.training.sharing import Sharing
from dcprune.training.trackers import check_trackers
from dcprune.training.trainer import Trainer

StrPath = str | os.PathLike[str]

# Options that a run's provenance repeats.
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


@dataclass(frozen=True)
class TrainingRequest:
    """What to train, on what, and how, as it was asked for; `dcprune.api.runs.train` documents every option."""

    dataset: str | Path | DatasetSource | None = None
    coreset: Coreset | StrPath | None = None
    class_weights: ClassWeights | StrPath | None = None
    backend: str = "ddpm"
    preset: str = "paper"
    settings: Mapping[str, Any] = field(default_factory=dict)
    epochs: float | None = None
    steps: int | None = None
    anneal: float | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    class_weighting: str | None = None
    unconditional: bool = False
    dynamic: str | None = None
    gradient_accumulation_steps: int | None = None
    checkpoint_every: int | None = None
    sample_every: int | None = None
    guidance_scale: float | None = None
    trackers: Sequence[str] = ()
    latents: StrPath | None = None
    split: str = "train"
    data_dir: StrPath | None = None
    device: str = "auto"
    dtype: str = "auto"
    seed: int = 0

    def options(self) -> dict[str, Any]:
        """Fields of `TrainingConfig` that have an option of their own; None leaves the preset's value."""
        names = (*_RECORDED, "class_weighting", "seed")
        return {name: getattr(self, name) for name in names} | {"unconditional": self.unconditional or None}


def open_job(
    request: TrainingRequest,
    output: Path,
    team: Processes = ALONE,
    progress: Progress = SILENT,
    *,
    download: bool = True,
) -> Job:
    """Resolve a request, read the artifacts and open the dataset; nothing is written.

    Args:
        request: what was asked for.
        output: the run folder.
        team: the processes that share the run.
        progress: hears warnings.
        download: whether a dataset that is missing may be fetched.

    Raises:
        InputError: whatever does not fit; see `dcprune.api.runs.train`.
    """
    check_trackers(request.trackers)
    recipe = resolve_recipe(request.backend, request.preset, request.settings, request.options())

    def opened() -> Inputs:
        artifacts = request.coreset, request.class_weights
        return open_inputs(
            request.dataset, *artifacts, split=request.split, data_dir=request.data_dir, download=download
        )

    inputs = team.main_first(opened)
    device = resolve_device(request.device)
    job = Job(request, recipe, inputs, output, device, resolve_dtype(request.dtype, device), team)
    _check_fit(job, progress)
    Sharing(team, recipe.config.gradient_accumulation_steps).check(recipe.config.batch_size)
    warn_of_warmup(recipe.config, len(inputs.kept), sum(job.steps), progress)
    return job


@dataclass(frozen=True)
class Job:
    """One resolved call of `train`."""

    request: TrainingRequest
    recipe: Recipe
    inputs: Inputs
    output: Path
    device: torch.device
    dtype: torch.dtype
    team: Processes

    @property
    def steps(self) -> tuple[int, int]:
        """Updates on the coreset and on the full data; no more than these where samples are left out."""
        return phase_steps(self.recipe.config, len(self.inputs.kept), len(self.inputs.source))

    @property
    def sampling(self) -> Sampling:
        """How samples of the run are drawn unless somebody asks for another way.

        Raises:
            OptionError: guidance that the model cannot have.
        """
        recipe = self.recipe
        own = fitted(recipe.preset.sampling, recipe.backend)
        found = guided(own, self.request.guidance_scale, recipe.config.model_dump(), recipe.backend)
        check_sampling(found, recipe.backend)
        return found

    @property
    def num_classes(self) -> int:
        """Classes that the model tells apart; 0 for none."""
        return 0 if self.recipe.config.unconditional else self.inputs.identity.num_classes

    def record(self) -> RunRecord:
        """The run's record before the first step."""
        recipe, inputs, config = self.recipe, self.inputs, self.recipe.config
        coreset, weights = _origin(inputs.coreset), _origin(inputs.class_weights)
        own = self.request.options()
        asked = {
            "dataset": inputs.identity.uri if coreset is None else None,
            "coreset": coreset,
            "class_weights": weights,
            "class_weighting": config.class_weighting if weights else None,
            "backend": recipe.backend_name,
            "preset": recipe.preset_name,
            "set": {name: value for name, value in self.request.settings.items() if name.replace("-", "_") not in own},
            **config.model_dump(include=set(_RECORDED)),
            "guidance_scale": self.request.guidance_scale,
            "tracker": list(self.request.trackers),
            "latents": None if self.request.latents is None else str(self.request.latents),
            "output": str(self.output),
            "split": inputs.identity.split if coreset is None else None,
            "dtype": dtype_name(self.dtype),
            "seed": config.seed,
        }
        return RunRecord(
            dataset=inputs.identity,
            backend=recipe.backend_name,
            preset=recipe.preset_name,
            model=recipe.backend.settings(),
            training=config.model_dump(mode="json"),
            sampling=asdict(self.sampling),
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

    def trainer(
        self,
        data: TrainingData,
        phases: Sequence[Phase],
        *,
        folder: RunFolder | None = None,
        progress: Progress = SILENT,
    ) -> Trainer:
        """A trainer at its start.

        Args:
            data: prepared samples.
            phases: what to train on, see `phases`.
            folder: where to leave files.
            progress: for long work.
        """
        return Trainer(
            self.recipe.backend,
            data,
            self.recipe.config,
            phases,
            num_classes=self.num_classes,
            device=self.device,
            dtype=self.dtype,
            folder=folder,
            class_names=self.inputs.identity.class_names,
            processes=self.team,
            progress=progress,
        )


def _check_fit(job: Job, progress: Progress) -> None:
    """Refuse options that need an artifact which is not there; warn about weights of another coreset."""
    inputs = job.inputs
    _ = job.sampling
    if job.request.class_weighting is not None and inputs.class_weights is None:
        raise OptionError(f"class_weighting={job.request.class_weighting} needs class_weights.")
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
