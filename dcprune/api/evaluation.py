"""`eval`: a run's images, or images that are there already, against real ones."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dcprune import formats
from dcprune.api.generation import (
    BATCH_SIZE,
    TrainedRun,
    open_run,
)
from dcprune.api.measuring import Bench, by_main, protocol_of
from dcprune.api.provenance import provenance
from dcprune.api.references import (
    Needs,
    RealImages,
    StoredMoments,
    StoredStatistics,
    open_reference,
)
from dcprune.api.subjects import Drawn, Stored, open_subject
from dcprune.artifacts import Coreset, DatasetIdentity, Metrics, MetricValue, Provenance, ReferenceStatistics
from dcprune.devices import cache_dir, resolve_device, resolve_dtype
from dcprune.errors import OptionError
from dcprune.evaluation import (
    NamedMetric,
    Plan,
    Reference,
    Weights,
    create_metrics,
    measure,
    needs_reference,
    select_rows,
)
from dcprune.formats.documents import RUN_FILE
from dcprune.interfaces import EncoderContext, Features, Progress
from dcprune.processes import processes
from dcprune.progress import SILENT
from dcprune.sources import open_for

StrPath = str | os.PathLike[str]
OpenReference = RealImages | StoredStatistics | StoredMoments

CORESET_IMAGES = "coreset images"
# The yardstick stays the same, whatever seed the images are drawn with.
_ENCODER_SEED = 0


def evaluate(
    images: StrPath | None = None,
    *,
    metrics: Sequence[str],
    samples: StrPath | None = None,
    reference: StrPath | None = None,
    num_samples: int | Sequence[int] | None = None,
    seeds: Sequence[int] = (),
    bootstrap: int = 0,
    confidence: float = 0.95,
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
    """Measure images against real ones; each is decoded or drawn once, for all metrics, and never written.

    A run is measured at its own resolution and against what it was trained on. If that was a coreset, the coreset's
    own images are measured too, as `"fid (coreset images)"`: what a model that repeats them would reach. Under
    `torchrun` or `accelerate launch` the processes share the images.

    Args:
        images: a run folder; or images that are there already, which need a reference: a folder, an `.npz` as ADM
            writes it, a dataset; or a coreset, whose images are measured against all of its dataset.
        metrics: registered metrics (`"fid"`, `"fd:resnet18"`).
        samples: images that the run drew before, to measure instead of drawing anew: a folder or an `.npz`.
        reference: a dataset, a folder, an `.npz`, a run (for what it was trained on), statistics that
            `export_reference` made, or `.npz` statistics of clean-fid and pytorch-fid (`mu`, `sigma`).
        num_samples: images to draw, as the run's recipe says by default, the same number of every class; of images that
            are there, how many to look at, chosen at random. Several numbers measure the first so many of one set,
            and with a metric whose bias is known to fall as 1 / N its limit.
        seeds: draw a set of images with each of them; values are means with Student's intervals.
        bootstrap: resamples of the images for an interval around each value; 0 for none.
        confidence: level of the intervals.
        num_inference_steps: network evaluations of an image; by default as the run's recipe says.
        guidance_scale: 1 + w; by default as the run's recipe says.
        sampler: a name the run's backend knows; by default as its recipe says.
        settings: of the metrics and of their encoders.
        weights: the encoders' weights: one path for all metrics, or a path for each metric that is named.
        split: split of the reference; by default the run's, or `"train"`. A surrogate learns the split of the run or of
            the coreset all the same.
        per_class: also measure within every class that has images enough.
        data_dir: where datasets lie.
        batch_size: images at a time; the result does not depend on it.
        num_workers: threads that decode images.
        device: where networks run.
        dtype: precision of drawing; features are always computed in float32.
        seed: image i depends on this and on i; also of the choice of `num_samples` and of the resamples.
        progress: for long work.

    Raises:
        OptionError: options that contradict each other, or a value out of range.
        UnknownName: an unknown metric, encoder, setting, sampler or dataset.
        MissingInput: a folder or file that is not there.
        ArtifactError: not a finished run, or statistics that do not fit.
        DatasetError: images that cannot be read, or none at all.
        WeightsError: weights that are missing or do not fit.
    """
    team = processes()
    progress = progress if progress is not None and team.is_main else SILENT
    named = create_metrics(metrics, settings or {}, weights)
    drawing = {"num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale, "sampler": sampler}
    numbers = _numbers(num_samples)
    trained = open_run(images) if images is not None and (Path(images) / RUN_FILE).is_file() else None
    _check_options(trained, images, samples, {**drawing, "seeds": tuple(seeds) or None}, batch_size)
    plan = _plan(numbers, seeds, bootstrap, confidence, seed)
    place = resolve_device(device)
    precision = resolve_dtype(dtype, place)
    subject = open_subject(trained, images if trained is None else samples, numbers, drawing, seed, precision, data_dir)
    real = _reference(trained, subject, reference, split, data_dir, [needs_reference(each.metric) for each in named])
    coreset = None if trained is None else _read_coreset(trained, progress)
    owner = _owner(trained, subject, real, data_dir)
    record = None if trained is None else str(trained.folder / RUN_FILE)
    config = {
        "input": None if images is None else str(images),
        "metric": list(metrics),
        "samples": None if samples is None else str(samples),
        "reference": None if reference is None else str(reference),
        "set": dict(settings or {}),
        "weights": _weight_options(weights),
        "num_samples": ",".join(map(str, numbers)) or None,
        "seeds": ",".join(map(str, seeds)) or None,
        "bootstrap": bootstrap or None,
        "confidence": confidence if bootstrap or seeds else None,
        **drawing,
        "no_per_class": not per_class,
        "split": split,
        "seed": seed,
    }
    made = provenance(
        "eval",
        config,
        seed=seed,
        inputs=[record, *_input_files(subject, real, reference)],
        device=place,
        dtype=precision,
    )
    # A surrogate is trained on real images, never on those that it is to judge.
    may_train = trained is not None or isinstance(real, RealImages)
    context = EncoderContext(
        owner.source, owner.identity.fingerprint, place, precision, _ENCODER_SEED, cache_dir(), progress, may_train
    )
    bench = Bench(named, context, batch_size, num_workers, team)
    values = _Evaluation(bench, named, plan, trained, real, per_class, made, data_dir).values(subject, coreset)
    return Metrics(
        dataset=trained.record.dataset if trained is not None else _identity(real) or subject.identity,
        metrics=values,
        run=None if record is None else formats.input_file(record),
        sampler=subject.description(plan),
        samples=subject.identity if isinstance(subject, Stored) else None,
        provenance=made,
    )


def export_reference(
    reference: StrPath,
    *,
    metrics: Sequence[str],
    settings: Mapping[str, Any] | None = None,
    weights: Weights = None,
    split: str | None = None,
    data_dir: Path | None = None,
    batch_size: int = BATCH_SIZE,
    num_workers: int = 2,
    device: str = "auto",
    progress: Progress | None = None,
) -> ReferenceStatistics:
    """What some metrics need to know of a dataset, so that it need not be there when images are compared with it.

    For Frechet distances that is the mean and covariance of its features, for other metrics all features and labels.

    Args:
        reference: a dataset, a folder, an `.npz` of images, or a run, for what it was trained on at its resolution.
        metrics: registered metrics.
        settings: of the metrics and of their encoders.
        weights: the encoders' weights, as in `evaluate`.
        split: split of the reference.
        data_dir: where datasets lie.
        batch_size: images at a time.
        num_workers: threads that decode images.
        device: where networks run.
        progress: for long work.

    Raises:
        OptionError: the reference consists of statistics already, or no metric needs one.
        UnknownName, MissingInput, DatasetError, WeightsError: as in `evaluate`.
    """
    team = processes()
    progress = progress if progress is not None and team.is_main else SILENT
    named = [each for each in create_metrics(metrics, settings or {}, weights) if needs_reference(each.metric)]
    if not named:
        raise OptionError(f"{', '.join(metrics)}: that needs no reference.")
    real = open_reference(reference, split, data_dir)
    if not isinstance(real, RealImages) or real.stored is not None:
        raise OptionError(f"{reference} holds statistics already, and can be a --reference as it is.")
    place = resolve_device(device)
    owner = real if real.run is None else RealImages.of_run(real.run, data_dir)
    context = EncoderContext(
        owner.source, owner.identity.fingerprint, place, torch.float32, _ENCODER_SEED, cache_dir(), progress
    )
    bench = Bench(named, context, batch_size, num_workers, team)
    config = {
        "metric": list(metrics),
        "reference": str(reference),
        "set": dict(settings or {}),
        "weights": _weight_options(weights),
        "split": split,
        "export_reference": "reference.safetensors",
    }
    made = provenance("eval", config, seed=0, device=place, dtype=torch.float32)
    needs = _needs(bench, named, per_class=False)
    spaces, protocol = real.spaces(bench, needs, made)
    kept = [
        spaces[each] if each in needs.with_features else replace(spaces[each], features=None)
        for each in needs.positions
    ]
    return real.statistics(kept, protocol, made)


# --- options ---------------------------------------------------------------------------------------------------------


def _numbers(num_samples: int | Sequence[int] | None) -> tuple[int, ...]:
    """Numbers of images, ascending."""
    given = () if num_samples is None else (num_samples,) if isinstance(num_samples, int) else tuple(num_samples)
    for number in given:
        if number < 2:
            raise OptionError(f"num_samples={number}: a metric needs at least 2 images.")
    return tuple(sorted(set(given)))


def _plan(numbers: tuple[int, ...], seeds: Sequence[int], bootstrap: int, confidence: float, seed: int) -> Plan:
    if seeds and (len(set(seeds)) != len(seeds) or len(seeds) < 2 or min(seeds) < 0):
        raise OptionError(f"seeds={list(seeds)}: name at least two different seeds, none below 0.")
    if seeds and bootstrap:
        raise OptionError("An interval is either over seeds or over resamples of one set: leave one of them out.")
    if bootstrap < 0 or not 0 < confidence < 1:
        raise OptionError(
            f"bootstrap={bootstrap}, confidence={confidence}: at least 0 resamples, and a level in (0, 1)."
        )
    return Plan(numbers if len(numbers) > 1 else (), tuple(seeds), bootstrap, confidence, seed)


def _check_options(
    run: TrainedRun | None,
    images: StrPath | None,
    samples: StrPath | None,
    drawing: Mapping[str, object],
    batch_size: int,
) -> None:
    if images is None:
        raise OptionError("Nothing to evaluate: give a run folder, or a folder or an .npz of images.")
    if run is None and samples is not None:
        raise OptionError(f"{images} is no run that could have drawn the samples: give the samples in its place.")
    given = [f"{name}={value}" for name, value in drawing.items() if value is not None]
    if given and (run is None or samples is not None):
        raise OptionError(f"{', '.join(given)}: that is for drawing images, and the images are there already.")
    if batch_size < 1:
        raise OptionError(f"batch_size={batch_size} is below 1.")


# --- what is compared -------------------------------------------------------------------------------------------------


def _reference(
    run: TrainedRun | None,
    subject: Drawn | Stored,
    reference: StrPath | None,
    split: str | None,
    data_dir: Path | None,
    needed: Sequence[bool],
) -> OpenReference | None:
    """What to compare with; None where no metric looks at it."""
    if not any(needed):
        return None
    if reference is not None:
        opened = open_reference(reference, split, data_dir)
        return replace(opened, run=run) if isinstance(opened, RealImages) and run is not None else opened
    if run is not None:
        return RealImages.of_run(run, data_dir, split)
    if isinstance(subject, Stored) and subject.coreset is not None:
        return RealImages.of(open_for(subject.coreset.dataset, data_dir=data_dir, split=split))
    raise OptionError(
        "Say what to compare the images with: --reference DATASET, a folder, an .npz, a run, or a file of statistics."
    )


def _owner(
    run: TrainedRun | None, subject: Drawn | Stored, real: OpenReference | None, data_dir: Path | None
) -> RealImages:
    """The dataset whose surrogate is the yardstick: what the run was trained on, else what the coreset was chosen from,
    else the reference, else the images themselves. So a surrogate never learns the test images that are the reference.
    """
    if run is not None:
        if isinstance(real, RealImages) and real.identity.fingerprint == run.record.dataset.fingerprint:
            return real
        return RealImages.of_run(run, data_dir)
    if isinstance(subject, Stored) and subject.coreset is not None:
        return RealImages.of(subject.source)
    if isinstance(real, RealImages):
        return real
    return RealImages(subject.source, _identity(real) or subject.identity)


def _identity(real: OpenReference | None) -> DatasetIdentity | None:
    if isinstance(real, RealImages):
        return real.identity
    return real.statistics.dataset if isinstance(real, StoredStatistics) else None


def _input_files(subject: Drawn | Stored, real: OpenReference | None, reference: StrPath | None) -> list[str]:
    """Artifacts and files of statistics that were read."""
    found = []
    if isinstance(subject, Stored) and subject.coreset is not None and subject.coreset.origin is not None:
        found.append(subject.coreset.origin)
    if isinstance(real, StoredStatistics | StoredMoments):
        found.append(str(reference))
    return found


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


@dataclass(frozen=True)
class _Evaluation:
    """Some metrics, the encoders that they need, and what they compare with."""

    bench: Bench
    named: Sequence[NamedMetric]
    plan: Plan
    run: TrainedRun | None
    real: OpenReference | None
    per_class: bool
    made: Provenance
    data_dir: Path | None

    def values(self, subject: Drawn | Stored, coreset: Coreset | None) -> tuple[MetricValue, ...]:
        """All values: of the images in question, then of the coreset's own."""
        sides, protocol = self._reference_sides()
        self._warn_about_sizes(subject, protocol)
        names = self._class_names(subject)
        sets = subject.sets(self.bench, names, self.plan)
        kept = None if coreset is None else self._coreset_features(coreset, sides)
        label = CORESET_IMAGES if isinstance(subject, Stored) and subject.coreset is not None else ""

        def measured() -> tuple[MetricValue, ...]:
            found = [self._measured(each, sets, sides, protocol, names, label) for each in self.named]
            if kept is not None:
                alone = replace(self, plan=replace(self.plan, numbers=(), seeds=()))
                found += [alone._measured(each, [kept], sides, protocol, (), CORESET_IMAGES) for each in self.named]
            return tuple(found)

        return by_main(self.bench.team, measured)

    def _measured(
        self,
        named: NamedMetric,
        sets: Sequence[Mapping[int, Features]],
        sides: Mapping[int, Reference],
        protocol: Mapping[str, Any],
        class_names: Sequence[str],
        label: str,
    ) -> MetricValue:
        position = self.bench.position(named)
        reference = sides.get(position)
        terms = protocol_of(self.bench.encoders[position].info)
        if reference is not None and needs_reference(named.metric):
            terms = {**terms, **protocol}
            if reference.from_elsewhere:
                terms["reference_moments_sha256"] = reference.sha256(named.metric)
        return measure(
            named,
            [each[position] for each in sets],
            reference,
            plan=self.plan,
            label=label,
            protocol=terms,
            class_names=class_names if self.per_class else (),
            progress=self.bench.context.progress,
        )

    def _reference_sides(self) -> tuple[dict[int, Reference], dict[str, Any]]:
        """The reference by position of the encoder, and the protocol of its images."""
        needs = _needs(self.bench, self.named, per_class=self.per_class)
        if isinstance(self.real, RealImages):
            spaces, protocol = self.real.spaces(self.bench, needs, self.made)
            return self.real.sides(spaces), protocol
        if self.real is None:
            return {}, {}
        sides = self.real.sides(self.bench, needs)
        for each in self.named:
            if needs_reference(each.metric):
                sides[self.bench.position(each)].for_metric(each.metric)
        return sides, dict(self.real.statistics.images) if isinstance(self.real, StoredStatistics) else {}

    def _class_names(self, subject: Drawn | Stored) -> tuple[str, ...]:
        if isinstance(self.real, RealImages | StoredStatistics):
            return self.real.class_names
        return subject.source.class_names if isinstance(subject, Stored) else subject.run.class_names

    def _warn_about_sizes(self, subject: Drawn | Stored, protocol: Mapping[str, Any]) -> None:
        size, expected = subject.size(), protocol.get("reference_size")
        # Encoders repeat a grey channel, so the number of channels makes no difference.
        if size is not None and expected is not None and size.rpartition("x")[0] != expected.rpartition("x")[0]:
            self.bench.context.progress.warn(
                f"The samples have {size} pixels and the reference has {expected}: the metrics see that difference."
            )

    def _coreset_features(self, coreset: Coreset, sides: Mapping[int, Reference]) -> dict[int, Features] | None:
        """Features of the coreset's own images, without labels."""
        if self.run is None or self.real is None:
            return None
        rows = np.array(coreset.indices, dtype=np.int64)
        same = isinstance(self.real, RealImages) and self.real.identity.fingerprint == coreset.dataset.fingerprint
        held = {each: side.features for each, side in sides.items() if same and side.features is not None}
        absent = tuple(each for each in range(len(self.bench.encoders)) if each not in held)
        found = {each: select_rows(features, rows) for each, features in held.items()}
        return found | self._trained_on(self.run, rows, absent) if absent else found

    def _trained_on(self, run: TrainedRun, rows: NDArray[np.int64], positions: tuple[int, ...]) -> dict[int, Features]:
        """Features of some images of a run's dataset; from the cache where it holds those of all."""
        own = RealImages.of_run(run, self.data_dir)
        images = own.images()
        cached = own.cached(self.bench, Needs(positions, frozenset(positions)), own.protocol(images))
        found = {
            each: Features(space.features[rows], None, space.encoder)
            for each, space in cached.items()
            if space.features is not None
        }
        absent = [each for each in positions if each not in found]
        return (
            found | self.bench.encode(images, rows, None, "encode the coreset", positions=absent) if absent else found
        )


def _needs(bench: Bench, named: Sequence[NamedMetric], *, per_class: bool) -> Needs:
    """Where a reference is needed, and where the moments would do unless values per class are wanted."""
    positions = [(bench.position(each), each.metric) for each in named if needs_reference(each.metric)]
    with_features = {
        position for position, metric in positions if per_class or not getattr(metric, "takes_moments", False)
    }
    return Needs(tuple(sorted({position for position, _ in positions})), frozenset(with_features))
