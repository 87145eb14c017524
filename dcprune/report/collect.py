"""Finds everything a page shows, starting from run folders and following what the artifacts say they were made from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dcprune import formats, sources
from dcprune.artifacts import (
    ClassWeights,
    Coreset,
    DatasetIdentity,
    Embeddings,
    Metrics,
    RunRecord,
    Scores,
    SweepCell,
    SweepResults,
)
from dcprune.errors import DatasetMismatch, InputError
from dcprune.formats.documents import RUN_FILE
from dcprune.interfaces import DatasetSource, Progress
from dcprune.report.entries import Entry, cell_names, entries
from dcprune.report.losses import Losses, read_losses
from dcprune.report.reader import Reader
from dcprune.report.upstream import encoder_name, recomputed_scores, upstream


@dataclass(frozen=True)
class RunData:
    """One run folder with what it points to; a part that is not there is None.

    Attributes:
        encoder: registered name of the encoder whose embeddings the coreset was chosen from, as far as that is known.
        cell: what a sweep says it is, if it is a part of one.
    """

    name: str
    folder: Path
    record: RunRecord
    losses: Losses | None
    metrics: Metrics | None
    samples: Path | None
    coreset: Coreset | None
    class_weights: ClassWeights | None
    encoder: str | None = None
    cell: SweepCell | None = None

    @property
    def has_coreset(self) -> bool:
        """Whether images were left out before the training began."""
        return self.record.coreset is not None

    @property
    def is_dynamic(self) -> bool:
        """Whether images are left out while it trains."""
        return self.record.training.get("dynamic") is not None

    @property
    def is_full(self) -> bool:
        """Whether every image of the dataset was seen equally often."""
        return not self.has_coreset and not self.is_dynamic


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
        sweeps: the sweeps that some of the runs are cells of.
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
    sweeps: tuple[SweepResults, ...] = ()

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


def collect(paths: Sequence[Path], *, overrides: Overrides, data_dir: Path | None, progress: Progress) -> Material:
    """Everything about the runs at `paths`, run folders or sweeps.

    Raises:
        OptionError: no run at all.
        MissingInput: a run folder, or a file of `overrides`, does not exist.
        ArtifactError: a path is neither a run nor a sweep, or a file of `overrides` is not what it should be.
        DatasetMismatch: a file of `overrides` belongs to another dataset than the first run.
    """
    reader = Reader(progress)
    found, sweeps = entries(paths, reader.note)
    records = [formats.read_run(entry.folder) for entry in found]
    check_overrides(overrides, records[0].dataset)
    folders = [entry.folder for entry in found]
    names = cell_names(found) or run_names(folders)
    runs = tuple(
        _run(reader, name, entry, record, overrides if position == 0 else Overrides())
        for position, (name, entry, record) in enumerate(zip(names, found, records, strict=True))
    )
    for run in runs[1:]:
        if run.record.dataset.fingerprint != records[0].dataset.fingerprint:
            reader.note(f"Run {run.name} was trained on another dataset ({run.record.dataset.uri}).")
    scores, embeddings = upstream(
        reader,
        runs[0].coreset,
        reader.read("scores", overrides.scores, formats.read_scores, records[0].dataset),
        reader.read("embeddings", overrides.embeddings, formats.read_embeddings, records[0].dataset),
    )
    recomputed = None
    if scores is None and embeddings is not None and runs[0].coreset is not None:
        recomputed = recomputed_scores(reader, embeddings, runs[0].coreset, data_dir)
    return Material(
        runs=runs,
        embeddings=embeddings,
        scores=scores or recomputed,
        scores_recomputed=recomputed is not None,
        source=_source(reader, records[0].dataset, data_dir) if runs[0].coreset is not None else None,
        hashes=reader.hashes,
        notes=tuple(reader.notes),
        sweeps=tuple(sweeps),
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


def _run(reader: Reader, name: str, entry: Entry, record: RunRecord, overrides: Overrides) -> RunData:
    folder, dataset = entry.folder, record.dataset
    coreset_path = reader.locate("coreset", record.coreset, overrides.coreset)
    weights_path = reader.locate("class-weights", record.class_weights, overrides.class_weights)
    coreset = reader.read("coreset", coreset_path, formats.read_coreset, dataset)
    samples = sorted((folder / "samples").glob("step-*.png"))
    return RunData(
        name=name,
        folder=folder,
        record=record,
        losses=read_losses(folder / "metrics.jsonl", reader.note),
        metrics=_metrics(reader, name, entry, dataset),
        samples=samples[-1] if samples else None,
        coreset=coreset,
        class_weights=reader.read("class-weights", weights_path, formats.read_class_weights, dataset),
        encoder=encoder_name(reader, coreset) if entry.cell is None else entry.cell.encoder,
        cell=entry.cell,
    )


def _metrics(reader: Reader, name: str, entry: Entry, dataset: DatasetIdentity) -> Metrics | None:
    """What was measured of a run, from all of its metrics files; a note where it went on after that."""
    named = [] if entry.cell is None else [Path(each.path) for each in entry.cell.metrics]
    paths = named or [entry.folder / "metrics.json"]
    read = [reader.read("metrics", path, formats.read_metrics, dataset) for path in paths if path.exists()]
    found = [each for each in read if each is not None]
    if not found:
        return None
    state = formats.sha256(entry.folder / RUN_FILE)
    if any(each.run is not None and each.run.sha256 != state for each in found):
        reader.note(f"The metrics of run {name} are of an earlier state of it: `dcprune eval` measures it again.")
    if len(found) == 1:
        return found[0]
    return found[0].model_copy(update={"metrics": tuple(value for each in found for value in each.metrics)})


def _source(reader: Reader, dataset: DatasetIdentity, data_dir: Path | None) -> DatasetSource | None:
    try:
        return sources.open_for(dataset, data_dir=data_dir, download=False)
    except InputError as error:
        reader.note(f"The page has no images, because the dataset cannot be opened: {error}")
        return None
