"""`prepare`: latents of a dataset ahead of time, and what every training is given to prepare its samples with."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
import torch

from dcprune import formats
from dcprune.api.provenance import provenance
from dcprune.api.recipes import Recipe, resolve_recipe
from dcprune.artifacts import LatentsRecord, StageCost
from dcprune.autoencoder import STABLE_DIFFUSION, load_autoencoder
from dcprune.devices import cache_dir as default_cache_dir
from dcprune.devices import resolve_device
from dcprune.errors import OptionError, OutputExists
from dcprune.formats.documents import LATENTS_FILE
from dcprune.formats.partial import PLAN_FILE
from dcprune.interfaces import Backend, DatasetSource, FetchesWeights, PreparationContext, Progress, TrainingData
from dcprune.latents import Latents, preparation
from dcprune.latents.encoding import MakeProvenance, encode_latents, plan_latents
from dcprune.processes import ALONE, Processes, processes
from dcprune.progress import SILENT
from dcprune.sources import open_dataset
from dcprune.subset import Subset

StrPath = str | os.PathLike[str]

RESOLUTION: Final = 256


def preparation_context(
    device: torch.device,
    *,
    cache_dir: Path | None = None,
    latents: StrPath | None = None,
    spent: list[StageCost] | None = None,
    team: Processes = ALONE,
    progress: Progress = SILENT,
) -> PreparationContext:
    """What `Backend.prepare` is given.

    Args:
        device: where training reads the samples.
        cache_dir: where latents are kept; the user's cache by default.
        latents: folder that `prepare` wrote for the whole dataset, instead of the cache's.
        spent: gets what the latents cost that the backend asks for.
        team: processes that all prepare the same dataset, and share the work.
        progress: for long work.
    """
    return preparation(
        device,
        provenance=_provenance_on(device),
        cache_dir=cache_dir,
        latents=None if latents is None else Path(latents),
        spent=spent,
        team=team,
        progress=progress,
    )


def check_model(
    backend: Backend, source: DatasetSource, row: int, *, num_classes: int, seed: int, device: torch.device
) -> None:
    """Build the model of a backend whose samples take long to prepare, so that what does not fit shows before that.

    Args:
        backend: any; those that fetch no weights prepare in no time, and are left alone.
        source: the dataset.
        row: a sample of it that is trained on.
        num_classes: classes that the model tells apart; 0 for none.
        seed: of its weights.
        device: where samples are prepared.

    Raises:
        InputError: whatever preparing one sample, or building, refuses.
    """
    if not isinstance(backend, FetchesWeights):
        return
    with TemporaryDirectory() as place:
        one = backend.prepare(Subset(source, np.array([row])), preparation_context(device, cache_dir=Path(place)))
        backend.build(num_classes=num_classes, sample_shape=one.sample_shape, seed=seed)


def _provenance_on(device: torch.device) -> MakeProvenance:
    return lambda options: provenance("prepare", options, seed=0, device=device, dtype=torch.float32)


@dataclass(frozen=True)
class Prepared:
    """Latents on the disk: the folder, and what it says about itself."""

    folder: Path
    record: LatentsRecord


def prepare(
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
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Prepared:
    """Encode a dataset with an autoencoder ahead of time, so that no training has to.

    `train` does the same by itself where the latents are not there. Under `torchrun` or `accelerate launch` the
    processes share the work.

    Args:
        dataset: a registered name, `name:location`, an image folder, a manifest, or an open dataset.
        backend: prepare whatever trainings of this backend look for in the user's cache, texts among it, instead of
            naming an autoencoder.
        preset: of the backend.
        settings: of the backend; strings are converted.
        vae: a repository of the hub, `org/name[@revision][/subfolder]`, or a folder, of an `AutoencoderKL` or a
            pipeline; `stabilityai/sd-vae-ft-mse` by default.
        resolution: side of the square images in pixels; 256 by default.
        flips: encode the mirror images, too.
        output: the folder to write, for `train(latents=...)`; the user's cache by default, where trainings look.
        split: which split of the dataset to open.
        columns: names of the dataset's columns, by `image`, `label` and `caption`.
        data_dir: where datasets lie.
        device: where to encode, in float32.
        resume: go on with what an interrupted run has left at `output`; in the cache that is always so.
        overwrite: replace `output`.
        progress: for long work.

    Raises:
        OutputExists: `output` is there, and neither `resume` nor `overwrite` was given.
        OptionError: a resolution that does not fit, options that exclude each other, a backend without latents, or
            other options than those to resume.
        UnknownName: no such dataset, backend, preset or setting.
        WeightsError: the autoencoder cannot be loaded, or gives values that are not finite.
        MissingInput, DatasetError: the dataset is not there, or an image cannot be decoded.
    """
    team = processes()
    progress = progress if progress is not None and team.is_main else SILENT
    place = resolve_device(device)
    if output is not None:
        _check_output(Path(output), resume=resume, overwrite=overwrite)
    check_choice(backend, settings, vae=vae, resolution=resolution, flips=flips, output=output)
    recipe = None if backend is None else resolve_recipe(backend, preset, settings or {}, {})
    source = opened(dataset, team, split=split, data_dir=data_dir, columns=columns)
    if recipe is not None:
        return _by_backend(recipe, source, preparation_context(place, team=team, progress=progress))
    autoencoder = team.main_first(lambda: load_autoencoder(vae or STABLE_DIFFUSION, progress=progress))
    plan = plan_latents(source, autoencoder, resolution=resolution or RESOLUTION, flips=flips)
    folder = default_cache_dir() / "latents" / plan.folder_name if output is None else Path(output)
    team.barrier()  # every process has looked at the output before the first one changes it
    if team.is_main and overwrite:
        formats.remove(folder)
    team.barrier()
    made = encode_latents(plan, folder, device=place, provenance=_provenance_on(place), team=team, progress=progress)
    return Prepared(folder, made)


def check_choice(
    backend: str | None,
    settings: Mapping[str, Any] | None,
    *,
    vae: str | None,
    resolution: int | None,
    flips: bool,
    output: StrPath | None,
) -> None:
    """Refuse settings of a backend where none is named, and the options that go with an autoencoder where one is.

    Raises:
        OptionError: they exclude each other.
    """
    if backend is not None and (vae is not None or resolution is not None or output is not None or not flips):
        raise OptionError("A backend brings its own autoencoder and resolution, and looks for latents in the cache.")
    if backend is None and settings:
        raise OptionError("Settings are those of a backend: name one.")


def no_latents(backend: str) -> OptionError:
    """That a backend asks for no latents."""
    return OptionError(f"The backend {backend!r} trains on no latents: there is nothing to prepare.")


def opened(dataset: str | Path | DatasetSource, team: Processes, **options: Any) -> DatasetSource:
    """The dataset, unless it is open already."""
    if not isinstance(dataset, str | Path):
        return dataset
    return team.main_first(lambda: open_dataset(dataset, **options))


def _by_backend(recipe: Recipe, source: DatasetSource, context: PreparationContext) -> Prepared:
    """Let a backend prepare its samples, and see which latents it asks for.

    Raises:
        OptionError: it asks for none.
    """
    if not _asks_for_latents(recipe, source, context):
        raise no_latents(recipe.backend_name)
    asked: list[Prepared] = []

    def latents(dataset: DatasetSource, *, vae: str, resolution: int, flips: bool = True) -> TrainingData:
        found = context.latents(dataset, vae=vae, resolution=resolution, flips=flips)
        if isinstance(found, Latents):
            asked.append(Prepared(found.folder, found.record))
        return found

    recipe.backend.prepare(source, replace(context, latents=latents))
    return asked[0]


class _Asked(Exception):
    """A backend has asked for latents."""


def _asks_for_latents(recipe: Recipe, source: DatasetSource, context: PreparationContext) -> bool:
    """Whether a backend does, found out on one sample: another one would decode the whole dataset to no end."""

    def latents(dataset: DatasetSource, *, vae: str, resolution: int, flips: bool = True) -> TrainingData:
        raise _Asked

    try:
        recipe.backend.prepare(Subset(source, np.zeros(1, dtype=np.int64)), replace(context, latents=latents))
    except _Asked:
        return True
    return False


def _check_output(output: Path, *, resume: bool, overwrite: bool) -> None:
    """Refuse to write over anything but latents, and over latents only when that was asked for."""
    if resume and overwrite:
        raise OptionError("--resume goes on with the latents and --overwrite replaces them: choose one.")
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not any((output / name).is_file() for name in (LATENTS_FILE, PLAN_FILE)):
        raise OutputExists(f"{output} exists and holds no latents. Choose another --output.")
    if not (resume or overwrite):
        raise OutputExists(f"{output} exists. Choose another --output, or pass --resume or --overwrite.")
