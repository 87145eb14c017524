"""`torch_subset`: a coreset for a torch `DataLoader`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch.utils.data import Dataset, Subset, WeightedRandomSampler

from dcprune import formats
from dcprune.api.exporting import open_samples, sample_weights
from dcprune.artifacts import ClassWeights, Coreset
from dcprune.errors import DatasetMismatch, OptionError
from dcprune.interfaces import DatasetSource
from dcprune.sources import open_for

StrPath = str | os.PathLike[str]


class TorchCoreset(NamedTuple):
    """A coreset for a torch `DataLoader`.

    Attributes:
        subset: the kept samples.
        sampler: draws positions of the subset with replacement, each in proportion to the weight of its class.
    """

    subset: Subset[Any]
    sampler: WeightedRandomSampler


def torch_subset(
    coreset: Coreset | StrPath,
    dataset: Dataset[Any] | None = None,
    *,
    class_weights: ClassWeights | StrPath | None = None,
    labels: ArrayLike | None = None,
    num_samples: int | None = None,
    seed: int = 0,
    data_dir: StrPath | None = None,
) -> TorchCoreset:
    """A coreset as a `torch.utils.data.Subset`, and a `WeightedRandomSampler` over it.

        subset, sampler = dcprune.torch_subset("coreset.json", class_weights="weights.json")
        loader = DataLoader(subset, batch_size=128, sampler=sampler)

    Without class weights every kept sample is as likely as any other; to see each once an epoch, leave the sampler out
    and pass `shuffle=True`.

    Args:
        coreset: the artifact, or its path.
        dataset: your own dataset with the samples of the coreset's in the same order; None opens the coreset's own,
            whose items are `(image uint8 [C, H, W], label)`, the label 0 for class-less data.
        class_weights: what the weights of the samples come from; the artifact, or its path.
        labels: int [N], labels of your own dataset in the coreset's numbering; by default its attribute `targets`, as
            torchvision's datasets have, or those of the coreset's dataset.
        num_samples: draws of an epoch; as many as there are kept samples by default.
        seed: of the sampler.
        data_dir: where datasets lie.

    Raises:
        MissingInput, ArtifactError: a file that is not there or damaged.
        OptionError: fewer than one draw.
        DatasetMismatch: the dataset, its labels or the class weights do not fit the coreset.
    """
    kept = coreset if isinstance(coreset, Coreset) else formats.read_coreset(coreset)
    weights = class_weights
    if weights is not None and not isinstance(weights, ClassWeights):
        weights = formats.read_class_weights(weights)
    if num_samples is not None and num_samples < 1:
        raise OptionError(f"num_samples={num_samples} is below 1.")
    if dataset is None:
        samples = open_samples(kept, weights, None, data_dir)
        dataset, drawn = TorchImages(samples.source), samples.weights
    else:
        drawn = _own_weights(kept, weights, dataset, labels, data_dir)
    subset: Subset[Any] = Subset(dataset, list(kept.indices))
    sampler = WeightedRandomSampler(
        drawn.tolist(),
        num_samples if num_samples is not None else len(drawn),
        generator=torch.Generator().manual_seed(seed),
    )
    return TorchCoreset(subset, sampler)


class TorchImages(Dataset[tuple[torch.Tensor, int]]):
    """A dataset as torch reads it: items are `(image uint8 [C, H, W], label)`, the label 0 for class-less data."""

    def __init__(self, source: DatasetSource) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image = torch.tensor(self.source.image(index))  # a copy: the dataset's may be read-only
        return image.permute(2, 0, 1).contiguous(), 0 if self.source.labels is None else int(self.source.labels[index])


def _own_weights(
    coreset: Coreset,
    weights: ClassWeights | None,
    dataset: Dataset[Any],
    labels: ArrayLike | None,
    data_dir: StrPath | None,
) -> NDArray[np.float64]:
    """Weights of the kept samples of a user's own dataset.

    Raises:
        DatasetMismatch: it has another number of samples or other labels than the coreset's, or the class weights are
            another dataset's.
    """
    identity = coreset.dataset
    count = len(dataset)  # type: ignore[arg-type]
    if count != identity.num_samples:
        raise DatasetMismatch(
            f"The coreset was chosen from the {identity.num_samples} samples of {identity.uri!r} ({identity.split}), "
            f"but the dataset has {count}. Pass the whole dataset, in the same order."
        )
    if weights is not None and weights.dataset.fingerprint != identity.fingerprint:
        raise DatasetMismatch(f"The class weights were made from {weights.dataset.uri!r}, the coreset was not.")
    found = labels if labels is not None else getattr(dataset, "targets", None)
    if (found is None and weights is None) or not identity.num_classes:
        return np.ones(coreset.num_selected)
    if found is None:
        found = open_for(identity, data_dir=None if data_dir is None else Path(data_dir)).labels
    numbers = np.asarray(found, dtype=np.int64)
    if numbers.shape != (count,) or numbers.min() < 0:
        raise DatasetMismatch(f"Labels of shape {numbers.shape} do not fit {count} samples, or are below 0.")
    kept = numbers[np.array(coreset.indices)]
    counts = np.bincount(kept, minlength=identity.num_classes).tolist()
    if counts != list(coreset.class_counts.values()):
        raise DatasetMismatch(
            "The labels of the dataset are not those that the coreset was chosen by: the kept samples would number "
            f"{counts} by class, not {list(coreset.class_counts.values())}. Pass `labels` in the coreset's numbering."
        )
    values = np.ones(identity.num_classes) if weights is None else np.array(list(weights.weights.values()))
    return sample_weights(values, kept)
