"""`sample`: images from a run, each a function of its seed and its label."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dcprune import formats
from dcprune.api.guidance import check_sampling, guided
from dcprune.artifacts import RunRecord
from dcprune.devices import autocast, resolve_device, resolve_dtype
from dcprune.errors import ArtifactError, OptionError, UnknownName
from dcprune.exporters.names import folder_names
from dcprune.interfaces import Backend, DrawsPrompts, Progress, Sampling
from dcprune.plugins import registry
from dcprune.progress import SILENT
from dcprune.training.compiling import compiled
from dcprune.training.draws import Purpose, derived_seed
from dcprune.training.run_folder import png_bytes

StrPath = str | os.PathLike[str]

MODEL_FOLDER = "model"
BATCH_SIZE = 128

# Compiling a U-Net for a GPU takes about a minute, which is about what it saves over so many passes.
_MIN_PASSES = 5000


@dataclass(frozen=True)
class TrainedRun:
    """A finished run and the backend that its model belongs to."""

    folder: Path
    record: RunRecord
    model_sha256: str
    backend: Backend

    @property
    def sampling(self) -> Sampling:
        """How the run's own recipe draws samples."""
        return Sampling(**self.record.sampling)

    @property
    def num_samples(self) -> int:
        """How many images an evaluation draws in the run's own recipe."""
        return self.backend.presets[self.record.preset or "paper"].num_samples

    @property
    def class_names(self) -> tuple[str, ...]:
        """Classes that the model can draw, in label order; none for an unconditional one."""
        return () if self.record.training.get("unconditional") else self.record.dataset.class_names

    def load(self, device: torch.device) -> torch.nn.Module:
        """The EMA model in inference mode, frozen.

        Raises:
            WeightsError: the model folder is damaged.
        """
        model = self.backend.load(self.folder / MODEL_FOLDER)
        return model.to(device).eval().requires_grad_(requires_grad=False)


def open_run(folder: StrPath) -> TrainedRun:
    """A run that is finished.

    What its model settings name by an absolute path (an autoencoder, say) and is no longer there is looked for by its
    name in the run's folder, and beside it.

    Raises:
        MissingInput: no such folder.
        ArtifactError: it is not a run, is damaged, or is not finished.
        UnknownName: its backend is not installed.
    """
    folder = Path(folder)
    record = formats.read_run(folder)
    if record.model_sha256 is None:
        raise ArtifactError(
            f"The run {folder} stopped at step {record.step} of {record.total_steps} and has no model yet. "
            "Finish it: train with the same options and --resume."
        )
    settings = {name: _moved(value, folder) for name, value in record.model.items()}
    backend: Backend = registry().create("backend", record.backend, settings)
    return TrainedRun(folder, record, record.model_sha256, backend)


def _moved(value: Any, folder: Path) -> Any:
    """A setting; the path of what has moved along with the run."""
    if not isinstance(value, str) or not Path(value).is_absolute() or Path(value).exists():
        return value
    places = (folder / Path(value).name, folder.absolute().parent / Path(value).name)
    return next((str(place) for place in places if place.exists()), value)


def balanced_labels(num_samples: int, num_classes: int) -> NDArray[np.int64]:
    """Labels 0, 1, ..., K - 1, 0, 1, ...: int64 [num_samples]; zeros for class-less data."""
    return np.arange(num_samples, dtype=np.int64) % max(1, num_classes)


def image_seeds(seed: int, num_samples: int) -> list[int]:
    """One seed for every image; a longer list starts with the shorter ones.

    They count up from a number that depends on `seed`, within 32 bits, which is all that torch's CPU generator uses:
    two images of one list never share their noise.
    """
    first = derived_seed(seed, Purpose.IMAGES)
    return [(first + index) % 2**32 for index in range(num_samples)]


def generate(
    run: TrainedRun | StrPath,
    labels: NDArray[np.int64],
    seeds: Sequence[int],
    sampling: Sampling,
    *,
    prompts: Sequence[str] | None = None,
    batch_size: int = BATCH_SIZE,
    device: torch.device | str = "auto",
    dtype: torch.dtype | str = "auto",
    progress: Progress | None = None,
) -> Iterator[torch.Tensor]:
    """Draw images batch by batch, in the order of `labels`.

    Args:
        run: a finished run, or its folder.
        labels: int64 [N].
        seeds: N of them, see `image_seeds`.
        sampling: how to draw.
        prompts: texts to draw, which `labels` number then; the backend must be a `dcprune.interfaces.DrawsPrompts`.
        batch_size: images drawn together; it does not change them.
        device: where to draw.
        dtype: precision of the network.
        progress: counts images.

    Yields:
        Images uint8 [B, C, H, W] on the CPU.

    Raises:
        OptionError: labels and seeds differ in number, a size is out of range, or a backend that knows no texts.
        ArtifactError: not a finished run.
    """
    if len(labels) != len(seeds) or batch_size < 1:
        raise OptionError(f"{len(labels)} labels, {len(seeds)} seeds, batch_size={batch_size}: need as many, and >= 1.")
    trained = run if isinstance(run, TrainedRun) else open_run(run)
    device = resolve_device(device) if isinstance(device, str) else device
    dtype = resolve_dtype(dtype, device) if isinstance(dtype, str) else dtype
    progress = progress or SILENT
    count, backend = len(labels), trained.backend
    if prompts is not None and not isinstance(backend, DrawsPrompts):
        raise OptionError(f"The backend {trained.record.backend!r} draws classes, not prompts.")

    def draw(network: torch.nn.Module, rows: NDArray[np.int64], how: Sampling) -> torch.Tensor:
        own_seeds = [seeds[row] for row in rows]
        with autocast(device, dtype):
            if prompts is not None and isinstance(backend, DrawsPrompts):
                return backend.sample_prompts(network, [prompts[labels[row]] for row in rows], own_seeds, how)
            return backend.sample(network, torch.from_numpy(labels[rows]).to(device), own_seeds, how)

    model = trained.load(device)
    batches = [np.arange(start, min(start + batch_size, count)) for start in range(0, count, batch_size)]
    if _compiling_repays(device, len(batches) * sampling.num_inference_steps):
        # A compiled network takes batches of one shape, so the first images fill up the last batch.
        batches[-1] = np.resize(np.concatenate([batches[-1], batches[0]]), len(batches[0]))
        short = replace(sampling, num_inference_steps=1)
        model = compiled(
            model, cuda_graphs=False, trial=lambda network: draw(network, batches[0], short), progress=progress
        )
    with progress.task("sample", count, "images") as task:
        for number, rows in enumerate(batches):
            images = draw(model, rows, sampling)[: count - number * batch_size]
            yield images.cpu()
            task.advance(len(images))


def _compiling_repays(device: torch.device, passes: int) -> bool:
    """Whether so many passes through a network get back the time that its compilation takes."""
    return device.type == "cuda" and passes >= _MIN_PASSES


def sample(
    run: StrPath,
    *,
    output: StrPath,
    num_samples: int | None = None,
    class_names: Sequence[str] | None = None,
    prompts: Sequence[str] | None = None,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    sampler: str | None = None,
    batch_size: int | None = None,
    device: str = "auto",
    dtype: str = "auto",
    seed: int = 0,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Draw images from a run into a folder of PNG files, one sub-folder a class, as many of every class.

    Args:
        run: the run folder.
        output: the folder to write; class-less data gets no sub-folders.
        num_samples: number of images; that of the run's recipe by default, and one of every prompt.
        class_names: draw these classes only.
        prompts: draw these texts instead of classes, into one folder with a `metadata.jsonl` that says which is which.
        num_inference_steps: network evaluations; that of the run's recipe by default.
        guidance_scale: 1 + w; that of the run's recipe by default.
        sampler: a name the backend knows; that of the run's recipe by default.
        batch_size: images drawn together; it does not change them.
        device: where to draw.
        dtype: precision of the network.
        seed: image i depends on this and on i.
        overwrite: replace an existing folder.
        progress: for long work.

    Returns:
        The folder.

    Raises:
        OutputExists: `output` exists and `overwrite` is false.
        ArtifactError: not a finished run.
        UnknownName: no such class or sampler.
        OptionError: a number out of range, prompts and classes, or a backend that draws no prompts.
    """
    output = formats.check_output(output, overwrite)
    trained = open_run(run)
    if prompts and class_names:
        raise OptionError("Images are drawn for classes or for prompts, not for both.")
    names = () if prompts else trained.class_names
    chosen = np.arange(len(prompts), dtype=np.int64) if prompts else _chosen(names, class_names)
    sampling = resolve_sampling(trained, sampler, num_inference_steps, guidance_scale)
    count = (len(prompts) if prompts else trained.num_samples) if num_samples is None else num_samples
    if count < 1:
        raise OptionError(f"num_samples={count} is below 1.")
    labels = chosen[balanced_labels(count, len(chosen))]
    folders = folder_names(names)
    images = generate(
        trained,
        labels,
        image_seeds(seed, count),
        sampling,
        prompts=prompts or None,
        batch_size=BATCH_SIZE if batch_size is None else batch_size,
        device=device,
        dtype=dtype,
        progress=progress,
    )
    with formats.atomic_folder(output, overwrite=overwrite) as folder:
        for index, image in enumerate(image for batch in images for image in batch):
            place = folder / folders[labels[index]] if folders else folder
            place.mkdir(exist_ok=True)
            (place / f"{index:06d}.png").write_bytes(png_bytes(image))
        if prompts:
            lines = [{"file_name": f"{index:06d}.png", "text": prompts[label]} for index, label in enumerate(labels)]
            text = "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines)
            (folder / "metadata.jsonl").write_text(text, encoding="utf-8")
    return output


def resolve_sampling(
    run: TrainedRun, sampler: str | None, num_inference_steps: int | None, guidance_scale: float | None
) -> Sampling:
    """The run's own way of sampling, with what a user asked for instead.

    Raises:
        UnknownName: no such sampler.
        OptionError: a number out of range, or guidance that the model cannot have.
    """
    given: dict[str, Any] = {"sampler": sampler, "num_inference_steps": num_inference_steps}
    sampling = replace(run.sampling, **{name: value for name, value in given.items() if value is not None})
    sampling = guided(sampling, guidance_scale, run.record.training, run.backend)
    check_sampling(sampling, run.backend)
    return sampling


def _chosen(names: Sequence[str], wanted: Sequence[str] | None) -> NDArray[np.int64]:
    """Labels to draw; the one label 0 for class-less data."""
    if wanted is None:
        return np.arange(max(1, len(names)), dtype=np.int64)
    for name in wanted:
        if name not in names:
            raise UnknownName("class", name, names)
    return np.array(sorted({names.index(name) for name in wanted}), dtype=np.int64)
