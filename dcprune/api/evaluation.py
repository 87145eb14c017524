"""`eval`: a run's images, or a folder of images, against real ones."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dcprune import formats
from dcprune.api.generation import (
    BATCH_SIZE,
    TrainedRun,
    balanced_labels,
    generate,
    image_seeds,
    open_run,
    resolve_sampling,
)
from dcprune.api.measuring import Bench, LoadImage
from dcprune.api.provenance import provenance
from dcprune.artifacts import Coreset, DatasetIdentity, Metrics, MetricValue
from dcprune.devices import cache_dir, dtype_name, resolve_device, resolve_dtype
from dcprune.errors import DatasetError, OptionError
from dcprune.evaluation import Weights, aligned_labels, create_metrics, select_rows
from dcprune.exporters.names import folder_names
from dcprune.formats.documents import RUN_FILE
from dcprune.interfaces import DatasetSource, EncoderContext, Features, Progress, Sampling
from dcprune.progress import SILENT
from dcprune.sources import identify, open_dataset, open_for

StrPath = str | os.PathLike[str]

CORESET_IMAGES = "coreset images"
# The yardstick stays the same, whatever seed the images are drawn with.
_ENCODER_SEED = 0


def evaluate(
    run: StrPath | None = None,
    *,
    metrics: Sequence[str],
    samples: StrPath | None = None,
    reference: StrPath | None = None,
    num_samples: int | None = None,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    sampler: str | None = None,
    settings: Mapping[str, Any] | None = None,
    weights: Weights = None,
    split: str | None = None,
    per_class: bool = True,
    data_dir: Path | None = None,
    batch_size: int = BATCH_SIZE,
    num_workers: int = 2,
    device: str = "auto",
    dtype: str = "auto",
    seed: int = 0,
    progress: Progress | None = None,
) -> Metrics:
    """Measure generated images against real ones.

    Images of a run are drawn as `sample` draws them, the same number of every class; real images are brought to the
    run's resolution by its backend and are not mirrored. For a run that was trained on a coreset, every metric is also
    taken between the coreset's own images and the reference: the value that a copy of the training set would reach.

    Args:
        run: a run folder.
        metrics: registered metrics, such as `"fid"` and `"fd:resnet18"`.
        samples: a folder of images, or a dataset, in place of the run's images; `run` then only says what the
            reference is and at which resolution.
        reference: the dataset to compare with; by default the run's own, whole.
        num_samples: images to draw; by default as many as the run's recipe says.
        num_inference_steps: denoising steps; by default as the run's recipe says.
        guidance_scale: 1 + w; by default as the run's recipe says.
        sampler: a name the run's backend knows; by default as its recipe says.
        settings: of the metrics and of their encoders.
        weights: the encoders' weights: one path for all metrics, or a path for each metric that is named.
        split: split of the reference; by default the run's, or `"train"`.
        per_class: also measure within every class that has images enough.
        data_dir: where datasets lie.
        batch_size: images at a time; the result does not depend on it.
        num_workers: threads that decode images.
        device: where networks run.
        dtype: precision of drawing; features are always computed in float32.
        seed: image i depends on this and on i.
        progress: for long work.

    Raises:
        OptionError: options that contradict each other, or a value out of range.
        UnknownName: an unknown metric, encoder, setting, sampler or dataset.
        MissingInput: a folder that is not there.
        ArtifactError: not a finished run.
        DatasetError: images that cannot be read, or none at all.
        WeightsError: weights that are missing or do not fit.
    """
    progress = progress or SILENT
    named = create_metrics(metrics, settings or {}, weights)
    drawing = {
        "num_samples": num_samples,
        "num_inference_steps": num_inference_steps,
        "guidance_scale": guidance_scale,
        "sampler": sampler,
    }
    _check_options(run, samples, reference, drawing, batch_size)
    place = resolve_device(device)
    precision = resolve_dtype(dtype, place)
    trained = None if run is None else open_run(run)
    subject = _subject(trained, samples, drawing, seed, precision, data_dir)
    real = _open_reference(trained, reference, split, data_dir)
    coreset = None if trained is None else _read_coreset(trained, progress)
    owner = real if trained is None or reference is not None else _Real.of_run(trained, data_dir)
    context = EncoderContext(
        owner.source, owner.identity.fingerprint, place, precision, _ENCODER_SEED, cache_dir(), progress
    )
    bench = Bench(named, context, batch_size, num_workers)
    values = _measure(bench, trained, subject, real, coreset, per_class, data_dir)
    config = {
        "run": None if run is None else str(run),
        "metric": list(metrics),
        "samples": None if samples is None else str(samples),
        "reference": None if reference is None else str(reference),
        "set": dict(settings or {}),
        "weights": _weight_options(weights),
        **drawing,
        "no_per_class": not per_class,
        "split": split,
        "seed": seed,
    }
    record = None if trained is None else str(trained.folder / RUN_FILE)
    return Metrics(
        dataset=real.identity if trained is None else trained.record.dataset,
        metrics=values,
        run=None if record is None else formats.input_file(record),
        sampler=subject.description(),
        provenance=provenance("eval", config, seed=seed, inputs=[record], device=place, dtype=precision),
    )


# --- what is compared -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Real:
    """A dataset of real images, and its identity."""

    source: DatasetSource
    identity: DatasetIdentity

    @classmethod
    def of_run(cls, run: TrainedRun, data_dir: Path | None) -> _Real:
        """What the run was trained on."""
        return cls(open_for(run.record.dataset, data_dir=data_dir), run.record.dataset)

    def load(self, run: TrainedRun | None, progress: Progress) -> LoadImage:
        """Images by row, at the resolution of a run when there is one."""
        if run is None:
            return self.source.image
        to_resolution = run.backend.to_resolution

        def load(row: int) -> NDArray[np.uint8]:
            image = torch.from_numpy(np.ascontiguousarray(self.source.image(row)))
            found: NDArray[np.uint8] = to_resolution(image.permute(2, 0, 1)[None])[0].permute(1, 2, 0).numpy()
            return found

        return load


@dataclass(frozen=True)
class _Drawn:
    """Images that a run draws, the same number of every class."""

    run: TrainedRun
    sampling: Sampling
    count: int
    seed: int
    dtype: torch.dtype

    def features(self, bench: Bench, class_names: Sequence[str]) -> list[Features]:
        """One set of features per encoder, with labels in the order of `class_names`."""
        own_names = self.run.class_names
        labels = balanced_labels(self.count, len(own_names))
        batches = generate(
            self.run,
            labels,
            image_seeds(self.seed, self.count),
            self.sampling,
            batch_size=bench.batch_size,
            device=bench.context.device,
            dtype=self.dtype,
            progress=bench.context.progress,
        )
        return bench.encode_batches(batches, aligned_labels(labels if own_names else None, own_names, class_names))

    def description(self) -> dict[str, Any]:
        return {
            **asdict(self.sampling),
            "seed": self.seed,
            "labels": "balanced" if self.run.class_names else "none",
            "weights": "EMA",
            "step": self.run.record.step,
            "dtype": dtype_name(self.dtype),
        }


@dataclass(frozen=True)
class _Stored:
    """Images that lie in a folder or a dataset."""

    source: DatasetSource

    def features(self, bench: Bench, class_names: Sequence[str]) -> list[Features]:
        """One set of features per encoder, with labels in the order of `class_names`."""
        source = self.source
        labels = aligned_labels(source.labels, source.class_names, class_names)
        if labels is None:  # `sample` makes folder names of class names
            labels = aligned_labels(source.labels, source.class_names, folder_names(class_names))
        return bench.encode(source.image, np.arange(len(source)), labels, f"encode {source.uri}")

    def description(self) -> dict[str, Any]:
        return {}


def _check_options(
    run: StrPath | None,
    samples: StrPath | None,
    reference: StrPath | None,
    drawing: Mapping[str, object],
    batch_size: int,
) -> None:
    if run is None and samples is not None and reference is None:
        raise OptionError("Say what to compare the samples with: a dataset as the reference, or the run they are of.")
    given = [f"{name}={value}" for name, value in drawing.items() if value is not None]
    if samples is not None and given:
        raise OptionError(f"{', '.join(given)}: that is for drawing images, and the samples are there already.")
    count = drawing["num_samples"]
    if isinstance(count, int) and count < 2:
        raise OptionError(f"num_samples={count}: a metric needs at least 2 images.")
    if batch_size < 1:
        raise OptionError(f"batch_size={batch_size} is below 1.")


def _open_reference(
    run: TrainedRun | None, reference: StrPath | None, split: str | None, data_dir: Path | None
) -> _Real:
    if run is not None and reference is None:
        source = open_for(run.record.dataset, data_dir=data_dir, split=split)
    else:
        source = open_dataset(str(reference), split=split or "train", data_dir=data_dir)
    if len(source) < 2:
        raise DatasetError(f"The reference {source.uri!r} has {len(source)} images; a metric needs at least 2.")
    return _Real(source, identify(source))


def _subject(
    run: TrainedRun | None,
    samples: StrPath | None,
    drawing: Mapping[str, Any],
    seed: int,
    dtype: torch.dtype,
    data_dir: Path | None,
) -> _Drawn | _Stored:
    """The images to evaluate: `samples` where they are given, else those that `run` draws."""
    if samples is not None:
        source = open_dataset(samples if isinstance(samples, Path) else str(samples), data_dir=data_dir)
        if len(source) < 2:
            raise DatasetError(f"{source.uri!r} has {len(source)} images; a metric needs at least 2.")
        return _Stored(source)
    if run is None:
        raise OptionError("Nothing to evaluate: give a run folder, or a folder of images as samples.")
    options = {name: value for name, value in drawing.items() if name != "num_samples"}
    count = drawing["num_samples"]
    return _Drawn(run, resolve_sampling(run, **options), run.num_samples if count is None else count, seed, dtype)


def _read_coreset(run: TrainedRun, progress: Progress) -> Coreset | None:
    """The coreset that a run was trained on, if there was one and it still lies where it lay."""
    recorded = run.record.coreset
    if recorded is None:
        return None
    path = Path(recorded.path)
    if not path.is_file() or formats.sha256(path) != recorded.sha256:
        state = "has changed" if path.is_file() else "is not there any more"
        progress.warn(f"The coreset {path} of this run {state}, so its own images are not measured.")
        return None
    return formats.read_coreset(path)


def _weight_options(weights: Weights) -> list[str]:
    """`--weights` as it would be typed."""
    if weights is None:
        return []
    if isinstance(weights, Mapping):
        return [f"{name}={path}" for name, path in weights.items()]
    return [str(weights)]


# --- measuring --------------------------------------------------------------------------------------------------------


def _measure(
    bench: Bench,
    run: TrainedRun | None,
    subject: _Drawn | _Stored,
    real: _Real,
    coreset: Coreset | None,
    per_class: bool,
    data_dir: Path | None,
) -> tuple[MetricValue, ...]:
    """All values: of the images in question, then of the coreset's own."""
    progress = bench.context.progress
    load = real.load(run, progress)
    size = _size(load(0))
    if isinstance(subject, _Stored) and (other := _size(subject.source.image(0))) != size:
        progress.warn(f"The samples have {other} pixels and the reference has {size}: the metrics see that difference.")
    reference = bench.encode(load, np.arange(len(real.source)), real.source.labels, "encode the reference")
    protocol = {
        "reference_fingerprint": real.identity.fingerprint,
        "reference_split": real.identity.split,
        "reference_size": size,
        "reference_mirrored": False,
    }
    names = real.source.class_names
    generated = subject.features(bench, names)
    values = bench.values(generated, reference, protocol=protocol, class_names=names if per_class else ())
    if run is None or coreset is None:
        return values
    rows = np.array(coreset.indices, dtype=np.int64)
    if real.identity.fingerprint == coreset.dataset.fingerprint:
        kept = [select_rows(each, rows) for each in reference]
    else:
        load = _Real.of_run(run, data_dir).load(run, progress)
        kept = bench.encode(load, rows, None, "encode the coreset")
    return values + bench.values(kept, reference, protocol=protocol, label=CORESET_IMAGES)


def _size(image: NDArray[np.uint8]) -> str:
    height, width, channels = image.shape
    return f"{width}x{height}x{channels}"
