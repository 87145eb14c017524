"""Encodes a dataset with an autoencoder, once, into files that training maps into memory."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dcprune import formats
from dcprune.artifacts import DatasetIdentity, LatentShard, LatentsRecord, Provenance, StageCost
from dcprune.autoencoder import Autoencoder, load_autoencoder
from dcprune.backends.pixels import fit_square
from dcprune.embedding import Loader, Pipeline, default_workers, loader
from dcprune.errors import OptionError, WeightsError
from dcprune.formats import Part, Parts
from dcprune.formats.costs import write_costs
from dcprune.formats.documents import LATENTS_FILE
from dcprune.formats.streaming import write_tensors
from dcprune.interfaces import DatasetSource, Progress, Relabels
from dcprune.latents.table import Latents
from dcprune.processes import ALONE, Processes
from dcprune.progress import SILENT
from dcprune.sources import identify, sample_id
from dcprune.subset import Subset

# Rows of a file, a multiple of every batch size: what a kill costs is seconds on a GPU and a minute on a CPU.
SHARD_ROWS = 512
_BATCH_SIZE = {"cuda": 32}
_CPU_BATCH_SIZE = 8
_PREPROCESSING = "shorter side resized (bilinear, antialiased), centre cropped, scaled to [-1, 1]"

MakeProvenance = Callable[[Mapping[str, Any]], Provenance]


@dataclass(frozen=True)
class LatentPlan:
    """What is encoded, and by what: everything that the latents depend on, but for rounding.

    Attributes:
        whole: the dataset, under its own labels.
        rows: int64 [n], the samples of it that are encoded; None for all.
        identity: of `whole`.
        autoencoder: the encoder.
        resolution, flips: see `dcprune.interfaces.LatentCache`.

    Raises:
        OptionError: a resolution that the autoencoder does not divide.
    """

    whole: DatasetSource
    rows: NDArray[np.int64] | None
    identity: DatasetIdentity
    autoencoder: Autoencoder
    resolution: int
    flips: bool

    def __post_init__(self) -> None:
        factor = self.autoencoder.downsampling
        if self.resolution < 1 or self.resolution % factor:
            raise OptionError(
                f"resolution={self.resolution} is not a multiple of {factor}, what the autoencoder "
                f"{self.autoencoder.name} divides by."
            )

    @property
    def indices(self) -> NDArray[np.int64]:
        """Samples in the order of the rows, int64 [n]."""
        return np.arange(len(self.whole), dtype=np.int64) if self.rows is None else self.rows

    @property
    def rows_sha256(self) -> str | None:
        return None if self.rows is None else hashlib.sha256(np.ascontiguousarray(self.rows).tobytes()).hexdigest()

    def document(self) -> dict[str, Any]:
        """As JSON values; the record of finished latents repeats them."""
        return {
            "format": "dcprune.latents-plan/1",
            "fingerprint": self.identity.fingerprint,
            "rows_sha256": self.rows_sha256,
            "autoencoder_sha256": self.autoencoder.sha256,
            "resolution": self.resolution,
            "flips": self.flips,
            "preprocessing": _PREPROCESSING,
            "dtype": "float16",
        }

    @property
    def folder_name(self) -> str:
        """A name that no other plan has."""
        return hashlib.sha256(json.dumps(self.document()).encode()).hexdigest()[:24]


def plan_latents(dataset: DatasetSource, autoencoder: Autoencoder, *, resolution: int, flips: bool) -> LatentPlan:
    """What encoding `dataset` means: a subset, or the same images under other labels, are rows of the whole dataset."""
    whole, rows = (dataset.source, dataset.indices) if isinstance(dataset, Subset) else (dataset, None)
    while isinstance(whole, Relabels):
        whole = whole.base
    if rows is not None and np.array_equal(rows, np.arange(len(whole))):
        rows = None
    return LatentPlan(whole, rows, identify(whole), autoencoder, resolution, flips)


def cached_latents(
    dataset: DatasetSource,
    *,
    vae: str,
    resolution: int,
    flips: bool = True,
    device: torch.device,
    cache_dir: Path,
    provenance: MakeProvenance,
    folder: Path | None = None,
    team: Processes = ALONE,
    progress: Progress = SILENT,
) -> Latents:
    """Latents for training, encoded first when they are not there; see `dcprune.interfaces.LatentCache`.

    Of a subset only its samples are encoded, unless those of the whole dataset are there.

    Args:
        dataset: grey or RGB images of any size.
        vae: name of the autoencoder.
        resolution: side of the square images that it is given.
        flips: encode mirror images, too.
        device: where to encode, and where training reads.
        cache_dir: latents lie in its folder `latents`, in a sub-folder for every dataset, autoencoder and resolution.
        provenance: resolved options of `prepare` -> what the record says about its origin.
        folder: finished latents of the whole dataset somewhere else, that must fit.
        team: the processes that share the work.
        progress: for long work.

    Raises:
        OptionError: a resolution that the autoencoder does not divide, or a `folder` of other latents.
        MissingInput, ArtifactError: `folder` holds no finished latents.
        WeightsError: the autoencoder cannot be loaded, or gives values that are not finite.
        DatasetError: an image cannot be decoded.
    """
    autoencoder = team.main_first(lambda: load_autoencoder(vae, progress=progress))
    plan = plan_latents(dataset, autoencoder, resolution=resolution, flips=flips)
    everything = replace(plan, rows=None)
    place = cache_dir / "latents"
    open_latents = partial(Latents, dataset=dataset, device=device)
    if folder is not None:
        return open_latents(checked_record(folder, everything), folder, rows=plan.rows)
    if plan.rows is not None and (place / everything.folder_name / LATENTS_FILE).is_file():
        whole = place / everything.folder_name
        return open_latents(formats.read_latents(whole), whole, rows=plan.rows)
    own = place / plan.folder_name
    record = encode_latents(plan, own, device=device, provenance=provenance, team=team, progress=progress)
    return open_latents(record, own)


def num_to_encode(
    dataset: DatasetSource, *, vae: str, resolution: int, flips: bool, cache_dir: Path, progress: Progress = SILENT
) -> int:
    """Of how many samples `cached_latents` would have to make latents first; the arguments are those."""
    plan = plan_latents(dataset, load_autoencoder(vae, progress=progress), resolution=resolution, flips=flips)
    everything = replace(plan, rows=None)
    folders = [cache_dir / "latents" / each.folder_name for each in (plan, everything)]
    return 0 if any((folder / LATENTS_FILE).is_file() for folder in folders) else len(plan.indices)


def checked_record(folder: Path, plan: LatentPlan) -> LatentsRecord:
    """The record of finished latents that fit a plan.

    Raises:
        MissingInput, ArtifactError: there are none in `folder`.
        OptionError: they are others.
    """
    record = formats.read_latents(folder)
    asked = plan.document()
    known = {**record.model_dump(), "fingerprint": record.dataset.fingerprint}
    for name in ("fingerprint", "rows_sha256", "autoencoder_sha256", "resolution", "flips"):
        if known[name] != asked[name]:
            raise OptionError(
                f"The latents in {folder} have {name}={known[name]}, and {asked[name]} is needed. Use the same "
                "options, another folder, or make them anew with `dcprune prepare --overwrite`."
            )
    return record


def encode_latents(
    plan: LatentPlan,
    folder: Path,
    *,
    device: torch.device,
    provenance: MakeProvenance,
    team: Processes = ALONE,
    progress: Progress = SILENT,
) -> LatentsRecord:
    """Encode into `folder`, or go on there; all of it may be there already.

    Files are written one by one, each all or nothing, and `latents.json` last, so that a process that was killed goes
    on with the file it was at; the bytes are the same in the end. Several processes share the files. What it cost lies
    beside `latents.json`; the time of files that were there already is taken to be that of the others.

    Args:
        plan: what to encode.
        folder: where to.
        device: where the autoencoder runs, in float32.
        provenance: see `cached_latents`.
        team: the processes that share the work.
        progress: counts images.

    Raises:
        OptionError: `folder` holds latents of another plan.
        WeightsError: a value that is not finite, or beyond float16.
        DatasetError: an image cannot be decoded.
    """
    if team.gather(_is_finished(folder, plan))[0]:
        return formats.read_latents(folder)
    parts = team.main_first(lambda: _Shards.create(folder, plan.document(), len(plan.indices), SHARD_ROWS))
    todo = parts.unfinished()
    team.barrier()  # everybody has seen what is there before anybody adds to it
    images, pipeline = loader(plan.whole, device), _pipeline(plan, device)
    started = time.perf_counter()
    _encode(plan, parts, todo[team.rank :: team.count], images, pipeline, progress)
    team.barrier()
    if team.is_main:
        elapsed = (time.perf_counter() - started) * team.count
        fresh = sum(part.stop - part.start for part in todo)
        formats.write_latents(_record(plan, parts, provenance), folder)
        cost = StageCost(
            stage="encode",
            images_seen=len(plan.indices) * (2 if plan.flips else 1),
            updates=0,
            flops=pipeline.flops(images, plan.indices),
            device_seconds=round(elapsed * len(plan.indices) / fresh, 3) if fresh else None,
        )
        write_costs([cost], folder / LATENTS_FILE)
    team.barrier()
    return formats.read_latents(folder)


def _is_finished(folder: Path, plan: LatentPlan) -> bool:
    """Whether all latents of a plan are there, and whole.

    Raises:
        OptionError: latents of another plan are.
    """
    if not (folder / LATENTS_FILE).is_file():
        return False
    return all(formats.is_whole(folder / shard.file) for shard in checked_record(folder, plan).shards)


class _Shards(Parts):
    """Files of latents."""

    WHAT = "latents"

    def path(self, part: Part) -> Path:
        """See `Parts.path`."""
        return self.folder / f"latents-{part.number:05d}-of-{len(self.parts):05d}.safetensors"


def _pipeline(plan: LatentPlan, device: torch.device) -> Pipeline:
    batch_size = _BATCH_SIZE.get(device.type, _CPU_BATCH_SIZE)
    return Pipeline(_Network(plan, device), device, torch.float32, batch_size, default_workers())


def _encode(
    plan: LatentPlan, parts: _Shards, mine: list[Part], images: Loader, pipeline: Pipeline, progress: Progress
) -> None:
    shape = _shape(plan)
    with progress.task("encode images", sum(part.stop - part.start for part in mine), "images") as task:
        for part in mine:
            moments = _moments(plan, pipeline, images, plan.indices[part.start : part.stop], task.advance)
            both = moments.reshape(len(moments), *shape).transpose(2, 0, 1, 3, 4, 5)  # [2, n, F, C, h, w]
            with formats.atomic_file(parts.path(part), overwrite=True) as temporary:
                tensors = {"mean": np.ascontiguousarray(both[0]), "std": np.ascontiguousarray(both[1])}
                write_tensors(temporary, tensors, {})


def _shape(plan: LatentPlan) -> tuple[int, ...]:
    """Of what a sample is encoded to: views, mean and deviation, and the shape of a latent."""
    return (2 if plan.flips else 1, 2, *plan.autoencoder.sample_shape(plan.resolution))


def _moments(
    plan: LatentPlan,
    pipeline: Pipeline,
    images: Loader,
    indices: NDArray[np.int64],
    advance: Callable[[int], None],
) -> NDArray[np.float16]:
    """Means and deviations float16 [n, F * 2 * C * h * w] of some samples.

    Raises:
        WeightsError: a value that is not finite, or beyond float16.
    """
    found = []
    with closing(pipeline.run(images, indices)) as batches:
        for encoded in batches:
            with np.errstate(over="ignore"):
                stored = encoded.vectors.astype(np.float16)
            bad = ~np.isfinite(stored).all(axis=1)
            if bad.any():
                name = sample_id(plan.whole, int(encoded.indices[bad.argmax()]))
                raise WeightsError(
                    f"The autoencoder {plan.autoencoder.name} gives latents of sample {name} that are not finite in "
                    "float16. Look at its weights and at the image."
                )
            found.append(stored)
            advance(len(stored))
    return np.concatenate(found)


class _Network:
    """The encoder half, as a `dcprune.interfaces.Encoder` that is loaded."""

    shorter_side = None
    compilable = False

    def __init__(self, plan: LatentPlan, device: torch.device) -> None:
        self.plan = plan
        self.autoencoder = plan.autoencoder.to(device)

    def preprocess(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 [B, C, H, W] -> float32 [B, 3, S, S] in [-1, 1]."""
        return fit_square(images, self.plan.resolution).expand(-1, 3, -1, -1).float() / 127.5 - 1

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels [B, 3, S, S] -> float32 [B, F * 2 * C * h * w]: mean and deviation of an image, then of its mirror."""
        views = (pixels, pixels.flip(-1)) if self.plan.flips else (pixels,)
        return torch.stack([torch.stack(self.autoencoder.encode(view), dim=1) for view in views], dim=1).flatten(1)


def _record(plan: LatentPlan, parts: _Shards, provenance: MakeProvenance) -> LatentsRecord:
    autoencoder, identity = plan.autoencoder, plan.identity
    shards = [
        LatentShard(file=parts.path(part).name, rows=(part.start, part.stop), sha256=formats.sha256(parts.path(part)))
        for part in parts.parts
    ]
    options = {
        "dataset": identity.uri,
        "split": identity.split,
        "vae": autoencoder.name,
        "resolution": plan.resolution,
        "no_flips": not plan.flips,
    }
    return LatentsRecord(
        dataset=identity,
        autoencoder=autoencoder.name,
        autoencoder_sha256=autoencoder.sha256,
        scaling_factor=autoencoder.scaling_factor,
        shift_factor=autoencoder.shift_factor,
        resolution=plan.resolution,
        flips=plan.flips,
        sample_shape=autoencoder.sample_shape(plan.resolution),
        num_rows=len(plan.indices),
        rows_sha256=plan.rows_sha256,
        shards=tuple(shards),
        provenance=provenance(options),
    )
