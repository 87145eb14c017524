"""`inspect` and `verify`: what a file holds, and whether its hashes and its chain hold."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dcprune import formats
from dcprune.api.matching import coreset_problem
from dcprune.api.provenance import command_line
from dcprune.artifacts import (
    Classes,
    ClassWeights,
    Comparison,
    Coreset,
    DatasetIdentity,
    Embeddings,
    ExportRecord,
    InputFile,
    LatentsRecord,
    Metrics,
    MetricsComparison,
    ReferenceStatistics,
    RunRecord,
    Scores,
    SweepCell,
    SweepResults,
)
from dcprune.errors import ArtifactError, DatasetError, DatasetMismatch, DcpruneError, MissingInput
from dcprune.interfaces import DatasetSource

Artifact = (
    Embeddings
    | Classes
    | Scores
    | Coreset
    | ClassWeights
    | Metrics
    | Comparison
    | MetricsComparison
    | RunRecord
    | SweepResults
    | ExportRecord
    | LatentsRecord
    | ReferenceStatistics
)
StrPath = str | os.PathLike[str]


def describe(path: StrPath) -> dict[str, Any]:
    """What an artifact says about itself, as JSON values.

    Raises:
        MissingInput: nothing is there.
        ArtifactError: it is no artifact, or damaged.
    """
    kind = formats.artifact_kind(path)
    artifact: Artifact = formats.read_artifact(path)
    dataset = artifact.dataset
    return {
        "path": str(path),
        "kind": kind,
        **_own_facts(artifact),
        "dataset": f"{dataset.uri} ({dataset.split})",
        "num_samples": dataset.num_samples,
        "num_classes": dataset.num_classes,
        "fingerprint": dataset.fingerprint,
        "made_by": command_line(artifact.provenance),
        "dcprune_version": artifact.provenance.dcprune_version,
        "inputs": [each.model_dump() for each in artifact.provenance.inputs],
    }


def _own_facts(artifact: Artifact) -> dict[str, Any]:
    if isinstance(artifact, Embeddings):
        rows, dim = artifact.embeddings.shape
        return {
            "rows": rows,
            "dim": dim,
            "dtype": artifact.embeddings.dtype,
            "encoder": artifact.encoder.model_dump(),
            "skipped": [each.model_dump() for each in artifact.skipped],
        }
    if isinstance(artifact, Classes):
        counts = np.bincount(artifact.labels, minlength=len(artifact.class_names)).tolist()
        return {
            "class_counts": dict(zip(artifact.class_names, counts, strict=True)),
            "inertia": artifact.inertia,
            "encoder": artifact.encoder.model_dump(),
        }
    if isinstance(artifact, Scores):
        low, middle, high = np.quantile(artifact.scores, [0, 0.5, 1]).tolist()
        scorer = artifact.scorer.model_dump()
        return {"rows": len(artifact.scores), "scorer": scorer, "keep": artifact.keep, "range": [low, middle, high]}
    if isinstance(artifact, Coreset):
        return {
            "num_selected": artifact.num_selected,
            "selection": artifact.selection.model_dump(),
            "class_counts": artifact.class_counts,
        }
    if isinstance(artifact, ClassWeights):
        diagnostics = artifact.diagnostics
        return {
            "weights": artifact.weights,
            "objective": artifact.objective.model_dump(),
            "entropy": diagnostics.entropy,
            "fraction_clipped": diagnostics.fraction_clipped,
            "warnings": list(diagnostics.warnings),
        }
    if isinstance(artifact, Comparison):
        return {
            "coresets": [each.name for each in artifact.coresets],
            "jaccard": artifact.jaccard,
            "encoder": None if artifact.encoder is None else artifact.encoder.model_dump(),
        }
    if isinstance(artifact, LatentsRecord):
        return {
            "rows": artifact.num_rows,
            "autoencoder": f"{artifact.autoencoder} (sha256 {artifact.autoencoder_sha256[:12]})",
            "resolution": artifact.resolution,
            "flips": artifact.flips,
            "sample_shape": list(artifact.sample_shape),
            "shards": len(artifact.shards),
        }
    if isinstance(artifact, ExportRecord):
        return {"form": artifact.form, "num_exported": artifact.num_samples}
    if isinstance(artifact, MetricsComparison):
        return {
            "metrics": list(artifact.metrics),
            "values": {
                column.name: {name: value.value for name, value in column.values.items()} for column in artifact.columns
            },
        }
    if isinstance(artifact, ReferenceStatistics):
        return {
            "images": artifact.images,
            "encoders": [space.encoder.model_dump() for space in artifact.spaces],
            "with_features": [space.features is not None for space in artifact.spaces],
        }
    if isinstance(artifact, SweepResults):
        return {
            "cells": len(artifact.cells),
            "evaluated": sum(bool(cell.metrics) for cell in artifact.cells),
            "scorers": list(dict.fromkeys(cell.scorer for cell in artifact.cells if cell.scorer is not None)),
            "ratios": sorted({cell.ratio for cell in artifact.cells}),
            "seeds": sorted({cell.seed for cell in artifact.cells}),
        }
    if isinstance(artifact, Metrics):
        values = artifact.metrics
        intervals = {each.name: [each.interval.low, each.interval.high] for each in values if each.interval is not None}
        return {
            "metrics": {each.name: each.value for each in values},
            **({"intervals": intervals} if intervals else {}),
            "sampler": artifact.sampler,
        }
    return {
        "backend": artifact.backend,
        "preset": artifact.preset,
        "step": artifact.step,
        "total_steps": artifact.total_steps,
        "num_trained_samples": artifact.num_trained_samples,
        "ledger": [cost.model_dump() for cost in artifact.ledger],
    }


@dataclass(frozen=True)
class Check:
    """One thing that `verify` looked at.

    Attributes:
        subject: what.
        holds: whether it is as it was.
        detail: how it differs if it does not hold, else how it is.
        missing: it does not hold because it is not here.
    """

    subject: str
    holds: bool
    detail: str
    missing: bool = False


def verify(path: StrPath, *, data_dir: Path | None = None) -> list[Check]:
    """Check an artifact, everything it was made from, and the dataset at the end of the chain.

    Args:
        path: any artifact.
        data_dir: where datasets lie.

    Returns:
        One `Check` for every hash and link; a missing file or dataset is a check that does not hold.

    Raises:
        MissingInput: nothing is at `path`.
        ArtifactError: a file of the chain is no artifact, or damaged.
    """
    verification = _Verification(data_dir)
    verification.follow(Path(path))
    return verification.checks


class _Verification:
    """The checks of a chain; files and datasets that several links have in common are read once."""

    def __init__(self, data_dir: Path | None) -> None:
        self.checks: list[Check] = []
        self.data_dir = data_dir
        self.seen: set[Path] = set()
        self.sources: dict[DatasetIdentity, DatasetSource | DcpruneError] = {}

    def follow(self, path: Path) -> None:
        """Check an artifact, its dataset, and what it was made from.

        Raises:
            MissingInput: nothing is at `path`.
            ArtifactError: it is no artifact, or damaged.
        """
        if path.resolve() in self.seen:
            return
        self.seen.add(path.resolve())
        artifact: Artifact = formats.read_artifact(path)
        self.checks.append(Check(str(path), True, "is valid"))
        self.checks += [_hash_check(each) for each in _parts(path, artifact)]
        self.checks.append(self._dataset_check(path, artifact))
        if isinstance(artifact, SweepResults):
            self.checks += [_cell_check(cell) for cell in artifact.cells if Path(cell.run.path).exists()]
        for reference in _references(artifact):
            check = _hash_check(reference)
            self.checks.append(check)
            if check.holds and _is_artifact(Path(reference.path)):
                self.follow(Path(reference.path))

    def _dataset_check(self, path: Path, artifact: Artifact) -> Check:
        identity = artifact.dataset
        subject = f"{path}: dataset {identity.uri} ({identity.split})"
        if identity not in self.sources:
            self.sources[identity] = _opened(identity, self.data_dir)
        source = self.sources[identity]
        if isinstance(source, DatasetMismatch):
            return Check(subject, False, f"differs: {source}")
        if isinstance(source, DcpruneError):
            return Check(subject, False, f"cannot be opened: {source}", missing=True)
        if isinstance(artifact, Coreset):
            problem = coreset_problem(artifact, source)
            if problem:
                return Check(subject, False, problem)
        return Check(subject, True, f"has fingerprint {identity.fingerprint[:12]}")


def _opened(identity: DatasetIdentity, data_dir: Path | None) -> DatasetSource | DcpruneError:
    from dcprune.sources import open_for

    try:
        return open_for(identity, data_dir=data_dir, download=False)
    except (DatasetError, DatasetMismatch, MissingInput) as error:
        return error


def _parts(path: Path, artifact: Artifact) -> list[InputFile]:
    """Files that belong to an artifact, with the hashes that it knows of them."""
    folder = path if path.is_dir() else path.parent
    if isinstance(artifact, LatentsRecord):
        return [InputFile(path=str(folder / each.file), sha256=each.sha256) for each in artifact.shards]
    if isinstance(artifact, Embeddings) and path.is_dir():
        shards = formats.read_shard_index(path).shards
        return [InputFile(path=str(path / shard.file), sha256=shard.sha256) for shard in shards]
    if isinstance(artifact, RunRecord) and artifact.model_sha256 is not None:
        return [InputFile(path=str(folder / "model"), sha256=artifact.model_sha256)]
    return []


def _references(artifact: Artifact) -> list[InputFile]:
    own: list[InputFile | None] = []
    if isinstance(artifact, RunRecord):
        own = [artifact.coreset, artifact.class_weights]
    if isinstance(artifact, Metrics):
        own = [artifact.run]
    if isinstance(artifact, SweepResults):
        own = [each for cell in artifact.cells for each in (cell.run, *cell.metrics)]
    found = {each.path: each for each in (*artifact.provenance.inputs, *own) if each is not None}
    return list(found.values())


def _cell_check(cell: SweepCell) -> Check:
    """Whether a cell of a sweep is called what its run and its coreset say; its encoder is a name of the sweep's own.

    Raises:
        ArtifactError: the run or the coreset is damaged.
    """
    run = formats.read_run(Path(cell.run.path).parent)
    made: dict[str, Any] = {
        "weights": run.class_weights is not None,
        "anneal": run.training.get("anneal"),
        "dynamic": run.training.get("dynamic"),
        "seed": run.provenance.seed,
    }
    if run.coreset is None:
        made["scorer"] = None
    elif Path(run.coreset.path).exists():
        selection = formats.read_coreset(run.coreset.path).selection
        made |= {"scorer": selection.scorer, **({} if selection.ratio is None else {"ratio": selection.ratio})}
    subject = f"the cell of {cell.run.path}"
    wrong = [f"{name} {value!r}" for name, value in made.items() if getattr(cell, name) != value]
    if wrong:
        return Check(subject, False, f"is labelled otherwise than its run was made: with {', '.join(wrong)}")
    return Check(subject, True, "is labelled as its run was made")


def _is_artifact(path: Path) -> bool:
    """Whether a file of the chain has a chain of its own; model weights have none."""
    try:
        formats.artifact_kind(path)
    except ArtifactError:
        return False
    return True


def _hash_check(reference: InputFile) -> Check:
    try:
        found = formats.sha256(reference.path)
    except MissingInput:
        return Check(reference.path, False, "is not here", missing=True)
    if found != reference.sha256:
        return Check(reference.path, False, f"has sha256 {found[:12]}, but {reference.sha256[:12]} was used")
    return Check(reference.path, True, f"has sha256 {found[:12]}")
