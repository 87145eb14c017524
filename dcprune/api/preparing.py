"""`prepare`: latents of a dataset ahead of time, and what every training is given to prepare its samples with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from dcprune import formats
from dcprune.api.provenance import provenance
from dcprune.artifacts import LatentsRecord
from dcprune.autoencoder import STABLE_DIFFUSION, load_autoencoder
from dcprune.devices import cache_dir as default_cache_dir
from dcprune.devices import resolve_device
from dcprune.errors import OptionError, OutputExists
from dcprune.formats.documents import LATENTS_FILE
from dcprune.formats.partial import PLAN_FILE
from dcprune.interfaces import DatasetSource, PreparationContext, Progress
from dcprune.latents import preparation
from dcprune.latents.encoding import MakeProvenance, encode_latents, plan_latents
from dcprune.processes import ALONE, Processes, processes
from dcprune.progress import SILENT
from dcprune.sources import open_dataset

StrPath = str | Path


def preparation_context(
    device: torch.device,
    *,
    cache_dir: Path | None = None,
    team: Processes = ALONE,
    progress: Progress = SILENT,
) -> PreparationContext:
    """What `Backend.prepare` is given.

    Args:
        device: where training reads the samples.
        cache_dir: where latents are kept; the user's cache by default.
        team: processes that all prepare the same dataset, and share the work.
        progress: for long work.
    """
    return preparation(device, provenance=_provenance_on(device), cache_dir=cache_dir, team=team, progress=progress)


def _provenance_on(device: torch.device) -> MakeProvenance:
    return lambda options: provenance("prepare", options, seed=0, device=device, dtype=torch.float32)


def prepare(
    dataset: StrPath | DatasetSource,
    *,
    output: StrPath | None = None,
    vae: str = STABLE_DIFFUSION,
    resolution: int = 256,
    flips: bool = True,
    split: str = "train",
    columns: Mapping[str, str] | None = None,
    data_dir: StrPath | None = None,
    device: str = "auto",
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> tuple[Path, LatentsRecord]:
    """Encode a dataset with an autoencoder, so that no training has to.

    `train` does the same by itself where the latents are not there. Under `torchrun` or `accelerate launch` the
    processes share the work.

    Args:
        dataset: a registered name, `name:location`, an image folder, a manifest, or an open dataset.
        output: the folder to write; the user's cache by default, where trainings look for latents.
        vae: a repository of the hub, `org/name[@revision][/subfolder]`, or a folder, of an `AutoencoderKL` or a
            pipeline.
        resolution: side of the square images in pixels.
        flips: encode the mirror images, too.
        split: which split of the dataset to open.
        columns: names of the dataset's columns, by `image`, `label` and `caption`.
        data_dir: where datasets lie.
        device: where to encode, in float32.
        resume: go on with what an interrupted run has left at `output`; in the cache that is always so.
        overwrite: replace `output`.
        progress: for long work.

    Returns:
        The folder, and what it says about itself.

    Raises:
        OutputExists: `output` is there, and neither `resume` nor `overwrite` was given.
        OptionError: a resolution that the autoencoder does not divide, or other options than those to resume.
        WeightsError: the autoencoder cannot be loaded, or gives values that are not finite.
        MissingInput, DatasetError: the dataset is not there, or an image cannot be decoded.
    """
    team = processes()
    progress = progress if progress is not None and team.is_main else SILENT
    place = resolve_device(device)
    if output is not None:
        _check_output(Path(output), resume=resume, overwrite=overwrite)
    source = (
        team.main_first(lambda: open_dataset(dataset, split=split, data_dir=data_dir, columns=columns))
        if isinstance(dataset, str | Path)
        else dataset
    )
    autoencoder = team.main_first(lambda: load_autoencoder(vae, progress=progress))
    plan = plan_latents(source, autoencoder, resolution=resolution, flips=flips)
    folder = default_cache_dir() / "latents" / plan.folder_name if output is None else Path(output)
    team.barrier()  # every process has looked at the output before the first one changes it
    if team.is_main and overwrite:
        formats.remove(folder)
    team.barrier()
    record = encode_latents(plan, folder, device=place, provenance=_provenance_on(place), team=team, progress=progress)
    return folder, record


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
