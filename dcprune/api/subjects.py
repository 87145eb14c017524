"""The images that an evaluation is about: drawn from a run, or there already."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dcprune import formats
from dcprune.api.generation import TrainedRun, balanced_labels, generate, image_seeds, resolve_sampling
from dcprune.api.measuring import Bench, Images
from dcprune.api.references import image_size
from dcprune.artifacts import Coreset, DatasetIdentity
from dcprune.datasets.npz import NpzBatch
from dcprune.devices import dtype_name
from dcprune.embedding import loader
from dcprune.errors import DatasetError, OptionError
from dcprune.evaluation import Plan, aligned_labels, select_rows
from dcprune.exporters.names import folder_names
from dcprune.interfaces import DatasetSource, Features, Sampling
from dcprune.sources import identify, open_dataset, open_for

StrPath = str | os.PathLike[str]


@dataclass(frozen=True)
class Drawn:
    """Images that a run draws, the same number of every class."""

    run: TrainedRun
    sampling: Sampling
    count: int
    seed: int
    dtype: torch.dtype
    data_dir: Path | None

    def features(self, bench: Bench, class_names: Sequence[str], seed: int) -> dict[int, Features]:
        """One set of features per encoder, with labels in the order of `class_names`."""
        own_names = self.run.class_names
        labels = balanced_labels(self.count, len(own_names))
        seeds = image_seeds(seed, self.count)

        def draw(rows: NDArray[np.int64]) -> Iterator[Images]:
            batches = generate(
                self.run,
                labels[rows],
                [seeds[row] for row in rows],
                self.sampling,
                batch_size=bench.batch_size,
                device=bench.context.device,
                dtype=self.dtype,
                progress=bench.context.progress,
            )
            for batch in batches:
                yield batch.permute(0, 2, 3, 1).numpy()

        return bench.encode_drawn(
            draw, self.count, aligned_labels(labels if own_names else None, own_names, class_names)
        )

    def sets(self, bench: Bench, class_names: Sequence[str], plan: Plan) -> list[dict[int, Features]]:
        return [self.features(bench, class_names, seed) for seed in plan.seeds or (self.seed,)]

    def description(self, plan: Plan) -> dict[str, Any]:
        return {
            **asdict(self.sampling),
            **({"seeds": list(plan.seeds)} if plan.seeds else {"seed": self.seed}),
            "labels": "balanced" if self.run.class_names else "none",
            "weights": "EMA",
            "step": self.run.record.step,
            "dtype": dtype_name(self.dtype),
        }

    @property
    def identity(self) -> DatasetIdentity:
        """Of what the run was trained on."""
        return self.run.record.dataset

    @property
    def source(self) -> DatasetSource:
        """What the run was trained on."""
        return open_for(self.run.record.dataset, data_dir=self.data_dir)

    def size(self) -> str | None:
        """Width, height and channels of an image, where that is known before any is drawn."""
        return None


@dataclass(frozen=True)
class Stored:
    """Images that are there already.

    Attributes:
        rows: int64 [n], which of them, in the order in which numbers of images are counted; None for all.
        coreset: the coreset that they are.
    """

    source: DatasetSource
    rows: NDArray[np.int64] | None = None
    coreset: Coreset | None = None

    def sets(self, bench: Bench, class_names: Sequence[str], plan: Plan) -> list[dict[int, Features]]:
        """One set of features per encoder, with labels in the order of `class_names`."""
        source = self.source
        rows = np.arange(len(source)) if self.rows is None else np.sort(self.rows)
        labels = _labels_in_order(source, class_names)
        found = bench.encode(
            loader(source, torch.device("cpu")), rows, None if labels is None else labels[rows], f"encode {source.uri}"
        )
        if self.rows is None:
            return [found]
        order = np.argsort(np.argsort(self.rows, kind="stable"), kind="stable")
        return [{position: select_rows(each, order) for position, each in found.items()}]

    def description(self, plan: Plan) -> dict[str, Any]:
        return {}

    @cached_property
    def identity(self) -> DatasetIdentity:
        return identify(self.source, content=isinstance(self.source, NpzBatch))

    def size(self) -> str | None:
        """Width, height and channels of the first image."""
        return image_size(loader(self.source, torch.device("cpu")))


def _labels_in_order(source: DatasetSource, class_names: Sequence[str]) -> NDArray[np.int64] | None:
    """Labels of a source in the order of other names: by its names, by those that `sample` makes folders of, or, where
    its names are numbers as in an `.npz`, by number.
    """
    for names in (class_names, folder_names(class_names)):
        labels = aligned_labels(source.labels, source.class_names, names)
        if labels is not None:
            return labels
    numbers = [str(number) for number in range(len(class_names))]
    return aligned_labels(source.labels, source.class_names, numbers)


def open_subject(
    run: TrainedRun | None,
    images: StrPath | None,
    numbers: tuple[int, ...],
    drawing: Mapping[str, Any],
    seed: int,
    dtype: torch.dtype,
    data_dir: Path | None,
) -> Drawn | Stored:
    """The images to evaluate: `images` where they are given, else those that `run` draws."""
    if images is None:
        if run is None:
            raise OptionError("Nothing to evaluate.")
        count = numbers[-1] if numbers else run.num_samples
        return Drawn(run, resolve_sampling(run, **drawing), count, seed, dtype, data_dir)
    if Path(images).suffix == ".json":
        coreset = formats.read_coreset(images)
        source = open_for(coreset.dataset, data_dir=data_dir)
        return Stored(source, _chosen(np.array(coreset.indices, dtype=np.int64), numbers, seed, images), coreset)
    source = open_dataset(images if isinstance(images, Path) else str(images), data_dir=data_dir)
    if len(source) < 2:
        raise DatasetError(f"{source.uri!r} has {len(source)} images; a metric needs at least 2.")
    if not numbers:
        return Stored(source)
    return Stored(source, _chosen(np.arange(len(source)), numbers, seed, images))


def _chosen(rows: NDArray[np.int64], numbers: tuple[int, ...], seed: int, images: StrPath) -> NDArray[np.int64]:
    """As many of the rows as are asked for, in random order; all as they are when no number is."""
    if not numbers:
        return rows
    if numbers[-1] > len(rows):
        raise OptionError(f"num_samples={numbers[-1]}: {images} has {len(rows)} images.")
    shuffled: NDArray[np.int64] = np.random.default_rng(seed).permutation(rows)[: numbers[-1]]
    return shuffled
