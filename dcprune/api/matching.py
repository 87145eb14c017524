"""The dataset and the artifacts that a run is made from, and whether they belong together."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dcprune import formats
from dcprune.artifacts import ClassWeights, Coreset, DatasetIdentity
from dcprune.errors import DatasetMismatch, OptionError
from dcprune.interfaces import DatasetSource
from dcprune.sources import CONTENT_METHOD, identify, open_dataset, open_for

StrPath = str | os.PathLike[str]


@dataclass(frozen=True)
class Inputs:
    """What a run learns from.

    Attributes:
        source: the whole dataset.
        identity: what it is.
        coreset: the samples to keep; None keeps all.
        class_weights: None weighs all classes alike.
    """

    source: DatasetSource
    identity: DatasetIdentity
    coreset: Coreset | None
    class_weights: ClassWeights | None

    @property
    def kept(self) -> NDArray[np.int64]:
        """Rows of the dataset that are kept, int64 [n], ascending."""
        if self.coreset is None:
            return np.arange(len(self.source), dtype=np.int64)
        return np.array(self.coreset.indices, dtype=np.int64)

    @property
    def labels(self) -> NDArray[np.int64]:
        """Labels of the whole dataset, int64 [N]; zeros for class-less data."""
        labels = self.source.labels
        return np.zeros(len(self.source), dtype=np.int64) if labels is None else np.asarray(labels, dtype=np.int64)

    @property
    def weights(self) -> NDArray[np.float64]:
        """Class weights in label order, float64 [K]; one 1 for class-less data."""
        if self.class_weights is None:
            return np.ones(max(1, self.identity.num_classes))
        return np.array(list(self.class_weights.weights.values()))


def open_inputs(
    dataset: str | Path | DatasetSource | None,
    coreset: Coreset | StrPath | None,
    class_weights: ClassWeights | StrPath | None,
    *,
    split: str,
    data_dir: StrPath | None,
    download: bool = True,
) -> Inputs:
    """Read the artifacts, open the dataset, and make sure that they belong together.

    Raises:
        OptionError: nothing says which dataset to use.
        MissingInput, ArtifactError: a file is not there, or damaged.
        DatasetMismatch: an artifact was made from another dataset.
    """
    kept = coreset if coreset is None or isinstance(coreset, Coreset) else formats.read_coreset(coreset)
    weights = (
        class_weights
        if class_weights is None or isinstance(class_weights, ClassWeights)
        else formats.read_class_weights(class_weights)
    )
    artifacts = [(name, each) for name, each in (("the coreset", kept), ("the class weights", weights)) if each]
    folder = None if data_dir is None else Path(data_dir)
    if dataset is not None:
        if isinstance(dataset, str | Path):
            dataset = open_dataset(dataset, split=split, data_dir=folder, download=download)
        source = dataset
        identity = identify(source)
    elif artifacts:
        identity = artifacts[0][1].dataset
        source = open_for(identity, data_dir=folder, download=download)
    else:
        raise OptionError("Say what to train on: a dataset, a coreset or class weights.")
    for name, artifact in artifacts:
        check_same_dataset(name, artifact.dataset, identity, source)
    return Inputs(source, identity, kept, weights)


def check_same_dataset(what: str, made_from: DatasetIdentity, identity: DatasetIdentity, source: DatasetSource) -> None:
    """Refuse an artifact that was made from another dataset than the one at hand.

    Args:
        what: the artifact in words, for the message (`"the coreset"`).
        made_from: the artifact's `dataset`.
        identity: the dataset at hand.
        source: the same, opened, for the case that the two fingerprints were made by different methods.

    Raises:
        DatasetMismatch: the fingerprints or the classes differ.
    """
    known = identity
    if made_from.fingerprint_method != identity.fingerprint_method:
        known = identify(source, content=made_from.fingerprint_method == CONTENT_METHOD)
    if made_from.fingerprint != known.fingerprint or made_from.class_names != known.class_names:
        raise DatasetMismatch(
            f"{what[0].upper()}{what[1:]} {'were' if what.endswith('s') else 'was'} made from {made_from.uri!r} "
            f"(split {made_from.split!r}, fingerprint {made_from.fingerprint[:12]}), not from {known.uri!r} "
            f"(split {known.split!r}, fingerprint {known.fingerprint[:12]}). Use the dataset it was made from, or make "
            "the artifact again."
        )


def rows_by_index(indices: NDArray[np.int64], num_samples: int) -> NDArray[np.int64]:
    """Row of every sample of a dataset, int64 [num_samples], in a table whose row r is the sample `indices[r]`.

    It is -1 for samples that the table lacks.
    """
    rows = np.full(num_samples, -1, dtype=np.int64)
    rows[indices] = np.arange(len(indices))
    return rows


def coreset_problem(coreset: Coreset, source: DatasetSource) -> str:
    """How the ids or classes of a coreset contradict its dataset, in words; empty when they do not."""
    rows = np.array(coreset.indices)
    if coreset.ids is not None and (source.ids is None or [source.ids[row] for row in rows] != list(coreset.ids)):
        return "ids of the coreset are not those of the dataset"
    if source.labels is not None:
        counts = np.bincount(source.labels[rows], minlength=len(source.class_names)).tolist()
        if counts != list(coreset.class_counts.values()):
            return "class_counts of the coreset are not those of the dataset"
    return ""
