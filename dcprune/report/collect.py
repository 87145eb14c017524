"""Finds everything a page shows, starting from run folders and following what the artifacts say they were made from."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from dcprune import formats, sources
from dcprune.artifacts import (
    ClassWeights,
    Coreset,
    DatasetIdentity,
    Embeddings,
    InputFile,
    Metrics,
    RunRecord,
    ScorerInfo,
    Scores,
)
from dcprune.devices import resolve_device
from dcprune.errors import DatasetMismatch, DcpruneError, InputError, OptionError
from dcprune.interfaces import DatasetSource, Progress, ScoringContext, TrainedRun
from dcprune.lineage import traced
from dcprune.plugins import registry
from dcprune.progress import SILENT

T = TypeVar("T", Coreset, ClassWeights, Metrics, Scores, Embeddings)


@dataclass(frozen=True)
class Losses:
    """`metrics.jsonl` of a run.

    Attributes:
        steps: int64 [n].
        values: training losses float64 [n].
        classes: losses of every class float64 [n, K], NaN where a class had no samples; None when there are none.
    """

    steps: NDArray[np.int64]
    values: NDArray[np.float64]
    classes: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class RunData:
    """One run folder with what it points to; a part that is not there is None."""

    name: str
    folder: Path
    record: RunRecord
    losses: Losses | None
    metrics: Metrics | None
    samples: Path | None
    coreset: Coreset | None
    class_weights: ClassWeights | None

    @property
    def is_full(self) -> bool:
        """Whether it was trained on the whole dataset."""
        return self.record.coreset is None


@dataclass(frozen=True)
class Overrides:
    """Files that a user named for the first run, instead of those its artifacts point to."""

    coreset: Path | None = None
    class_weights: Path | None = None
    scores: Path | None = None
    embeddings: Path | None = None


@dataclass(frozen=True)
class Material:
    """All that a page is made of.

    Attributes:
        runs: the headline run first.
        scores, embeddings: of the headline's coreset.
        scores_recomputed: whether `scores` were computed again because selection kept no file of them.
        source: the dataset's images, or None when it cannot be opened.
        hashes: sha256 of every file that was read, by the artifact's origin.
        notes: what was missing or has changed, as sentences.
    """

    runs: tuple[RunData, ...]
    embeddings: Embeddings | None
    scores: Scores | None
    scores_recomputed: bool
    source: DatasetSource | None
    hashes: Mapping[str, str]
    notes: tuple[str, ...]

    @property
    def headline(self) -> RunData:
        return self.runs[0]

    @property
    def dataset(self) -> DatasetIdentity:
        return self.runs[0].record.dataset

    def labels(self) -> NDArray[np.int64] | None:
        """int64 [N] of every sample of the dataset, as far as some input knows all of them."""
        if self.source is not None:
            return self.source.labels
        for table in (self.scores, self.embeddings):
            if table is not None and table.labels is not None and len(table.labels) == self.dataset.num_samples:
                labels = np.empty_like(table.labels)
                labels[table.indices] = table.labels
                return labels
        return None


class _Reader:
    """Reads files that may have moved, changed or broken since, and writes down what it met."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.notes: list[str] = []
        self.hashes: dict[str, str] = {}

    def sha256(self, path: Path) -> str:
        """Hash of a file; embeddings can be large, so each is hashed once."""
        if str(path) not in self.hashes:
            self.hashes[str(path)] = formats.sha256(path)
        return self.hashes[str(path)]

    def note(self, message: str) -> None:
        if message not in self.notes:
            self.notes.append(message)
            self.progress.warn(message)

    def locate(self, what: str, recorded: InputFile | None, override: Path | None = None) -> Path | None:
        """Where a recorded file lies, or the file that the user named in its place.

        Raises:
            MissingInput: the user named a file that does not exist.
        """
        if override is not None:
            path = formats.check_input(override, f"The {what} file")
        elif recorded is None:
            return None
        else:
            path = Path(recorded.path)
        if not path.exists():
            self.note(f"The {what} file {path} is not there any more, so the page lacks what it would show.")
            return None
        if recorded is not None and self.sha256(path) != recorded.sha256:
            self.note(f"The {what} file {path} has changed since it was used; the page shows it as it is now.")
        return path

    def read(self, what: str, path: Path | None, reader: Callable[[Path], T], dataset: DatasetIdentity) -> T | None:
        """A file's artifact, or None with a note when it cannot be used."""
        if path is None:
            return None
        try:
            artifact = reader(path)
        except DcpruneError as error:
            self.note(f"The {what} file cannot be read: {error}")
            return None
        if artifact.dataset.fingerprint != dataset.fingerprint:
            self.note(f"The {what} file {path} belongs to another dataset ({artifact.dataset.uri}) and is left out.")
            return None
        self.sha256(path)
        return artifact


def collect(folders: Sequence[Path], *, overrides: Overrides, data_dir: Path | None, progress: Progress) -> Material:
    """Everything about the runs in `folders`.

    Raises:
        OptionError: no run at all.
        MissingInput: a run folder, or a file of `overrides`, does not exist.
        ArtifactError: a folder is not a run, or a file of `overrides` is not what it should be.
        DatasetMismatch: a file of `overrides` belongs to another dataset than the first run.
    """
    if not folders:
        raise OptionError("A report needs at least one run folder.")
    records = [formats.read_run(folder) for folder in folders]
    check_overrides(overrides, records[0].dataset)
    reader = _Reader(progress)
    names = run_names(folders)
    runs = tuple(
        _run(reader, name, folder, record, overrides if position == 0 else Overrides())
        for position, (name, folder, record) in enumerate(zip(names, folders, records, strict=True))
    )
    for run in runs[1:]:
        if run.record.dataset.fingerprint != records[0].dataset.fingerprint:
            reader.note(f"Run {run.name} was trained on another dataset ({run.record.dataset.uri}).")
    scores, embeddings = _upstream(reader, runs[0], overrides)
    recomputed = None
    if scores is None and embeddings is not None and runs[0].coreset is not None:
        recomputed = _recomputed_scores(reader, embeddings, runs[0].coreset, data_dir)
    return Material(
        runs=runs,
        embeddings=embeddings,
        scores=scores or recomputed,
        scores_recomputed=recomputed is not None,
        source=_source(reader, records[0].dataset, data_dir) if runs[0].coreset is not None else None,
        hashes=reader.hashes,
        notes=tuple(reader.notes),
    )


def check_overrides(overrides: Overrides, dataset: DatasetIdentity) -> None:
    """Fail early on files that a user named: unlike files that were found, they must be right.

    Raises:
        MissingInput: one does not exist.
        ArtifactError: one is not the artifact that it should be.
        DatasetMismatch: one belongs to another dataset.
    """
    readers: tuple[tuple[Path | None, Callable[[Path], Coreset | ClassWeights | Scores | Embeddings]], ...] = (
        (overrides.coreset, formats.read_coreset),
        (overrides.class_weights, formats.read_class_weights),
        (overrides.scores, formats.read_scores),
        (overrides.embeddings, formats.read_embeddings),
    )
    for path, read in readers:
        if path is not None and (found := read(path).dataset).fingerprint != dataset.fingerprint:
            raise DatasetMismatch(
                f"{path} was made from {found.uri!r} ({found.split}), but the first run was trained on "
                f"{dataset.uri!r} ({dataset.split}). Name a file of the same chain."
            )


def run_names(folders: Sequence[Path]) -> list[str]:
    """The runs' folder names, with as many parent folders as make them distinct."""
    parts = [folder.absolute().parts for folder in folders]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(each[-depth:]) for each in parts]
        if len(set(names)) == len({*parts}):
            break
    return names


def _run(reader: _Reader, name: str, folder: Path, record: RunRecord, overrides: Overrides) -> RunData:
    coreset_path = reader.locate(f"coreset of run {name}", record.coreset, overrides.coreset)
    weights_path = reader.locate(f"class-weights of run {name}", record.class_weights, overrides.class_weights)
    metrics_path = folder / "metrics.json"
    found = metrics_path if metrics_path.exists() else None
    metrics = reader.read("metrics", found, formats.read_metrics, record.dataset)
    _check_metrics(reader, name, folder, metrics)
    samples = sorted((folder / "samples").glob("step-*.png"))
    dataset = record.dataset
    return RunData(
        name=name,
        folder=folder,
        record=record,
        losses=_losses(reader, folder / "metrics.jsonl"),
        metrics=metrics,
        samples=samples[-1] if samples else None,
        coreset=reader.read("coreset", coreset_path, formats.read_coreset, dataset),
        class_weights=reader.read("class-weights", weights_path, formats.read_class_weights, dataset),
    )


def _check_metrics(reader: _Reader, name: str, folder: Path, metrics: Metrics | None) -> None:
    """Say so when a run went on after it was evaluated."""
    measured = metrics.run if metrics is not None else None
    if measured is not None and measured.sha256 != formats.sha256(folder / "run.json"):
        reader.note(f"The metrics of run {name} are of an earlier state of it: `dcprune eval` measures it again.")


def _losses(reader: _Reader, path: Path) -> Losses | None:
    """The training losses of `metrics.jsonl`; a half-written last line is left out."""
    if not path.exists():
        return None
    steps, values, classes = [], [], []
    for line in path.read_text().splitlines():
        try:
            row = json.loads(line)
            step, loss = int(row["step"]), float(row["loss"])
            by_class = [np.nan if each is None else float(each) for each in row.get("class_losses", ())]
        except (ValueError, KeyError, TypeError):
            reader.note(f"{path} has a line that is not a training record; it is left out.")
            continue
        if np.isfinite(loss):
            steps.append(step)
            values.append(loss)
            classes.append(by_class)
    if not steps:
        return None
    complete = len(classes[0]) > 0 and all(len(each) == len(classes[0]) for each in classes)
    return Losses(
        np.asarray(steps, dtype=np.int64),
        np.asarray(values, dtype=np.float64),
        np.asarray(classes, dtype=np.float64) if complete else None,
    )


def _upstream(reader: _Reader, run: RunData, overrides: Overrides) -> tuple[Scores | None, Embeddings | None]:
    """Scores and embeddings that the run's coreset was made from."""
    dataset = run.record.dataset
    scores, embeddings = None, None
    if overrides.scores is not None:
        scores = reader.read("scores", overrides.scores, formats.read_scores, dataset)
    if overrides.embeddings is not None:
        embeddings = reader.read("embeddings", overrides.embeddings, formats.read_embeddings, dataset)
    inputs = run.coreset.provenance.inputs if run.coreset is not None else ()
    return traced(inputs, scores, embeddings, lambda recorded: _scores_or_embeddings(reader, recorded, dataset))


def _scores_or_embeddings(reader: _Reader, recorded: InputFile, dataset: DatasetIdentity) -> Scores | Embeddings | None:
    """An input of `select`, of which only the file itself says what it is."""
    path = reader.locate("scores or embeddings", recorded)
    if path is None:
        return None
    try:
        kind = formats.artifact_kind(path)
    except DcpruneError as error:
        reader.note(f"The scores or embeddings file cannot be read: {error}")
        return None
    if kind == "scores":
        return reader.read(kind, path, formats.read_scores, dataset)
    return reader.read("embeddings", path, formats.read_embeddings, dataset)


def _recomputed_scores(
    reader: _Reader, embeddings: Embeddings, coreset: Coreset, data_dir: Path | None
) -> Scores | None:
    """The scores of a coreset that was selected without a scores file."""
    selection = coreset.selection
    context = ScoringContext(
        seed=selection.seed,
        device=resolve_device("cpu"),
        ratio=selection.ratio or selection.budget / len(embeddings.embeddings),
        progress=SILENT,
        open_dataset=partial(sources.open_for, embeddings.dataset, data_dir=data_dir, download=False),
        open_run=_no_run,
    )
    try:
        scorer = registry().create("scorer", selection.scorer, selection.params)
        values = scorer.score(embeddings, context)
    except DcpruneError as error:
        reader.note(f"The scores cannot be computed again: {error}")
        return None
    return Scores(
        scores=values,
        labels=embeddings.labels,
        indices=embeddings.indices,
        ids=embeddings.ids,
        scorer=ScorerInfo(name=selection.scorer, params=selection.params),
        keep=selection.keep,
        dataset=embeddings.dataset,
        provenance=coreset.provenance,
    )


def _no_run(folder: Path) -> TrainedRun:
    raise OptionError(f"They come from the run {folder}, which a page does not run again. Pass its scores file.")


def _source(reader: _Reader, dataset: DatasetIdentity, data_dir: Path | None) -> DatasetSource | None:
    try:
        return sources.open_for(dataset, data_dir=data_dir, download=False)
    except InputError as error:
        reader.note(f"The page has no images, because the dataset cannot be opened: {error}")
        return None
