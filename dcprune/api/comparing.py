"""`compare`: coresets of one dataset side by side, each against random choices of its size."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dcprune import formats
from dcprune.api.matching import rows_by_index
from dcprune.api.provenance import provenance
from dcprune.artifacts import ComparedCoreset, Comparison, Coreset, DatasetIdentity, Distances, Embeddings
from dcprune.coverage import Population
from dcprune.devices import resolve_device
from dcprune.errors import ArtifactError, DatasetMismatch, OptionError
from dcprune.interfaces import Progress
from dcprune.metrics.frechet import Moments, frechet_distance
from dcprune.progress import SILENT
from dcprune.report.collect import run_names
from dcprune.reweighting import normalised_entropy
from dcprune.selection import Scope, select_rows

StrPath = str | os.PathLike[str]
IntArray = NDArray[np.int64]
Matrix = tuple[tuple[float, ...], ...]


def compare(
    coresets: Sequence[Coreset | StrPath],
    *,
    embeddings: Embeddings | StrPath | None = None,
    seeds: int = 5,
    num_neighbours: int = 5,
    num_queries: int | None = None,
    device: str = "auto",
    seed: int = 0,
    progress: Progress | None = None,
) -> Comparison:
    """Compare coresets with each other and, in the space of an encoder, with all samples and with random choices.

    The random choice of seed s is uniform within the scope of the coreset: in every class its share of the budget, or
    over everything.

    Args:
        coresets: artifacts of one dataset, or their paths.
        embeddings: the space of the distances; the artifact, or its path. Without it there are none.
        seeds: random choices for each size and scope; 0 leaves them out.
        num_neighbours: k of precision, recall, density and coverage.
        num_queries: look at the neighbours of this many samples, drawn at random, instead of all: for large data.
        device: where the distances are computed.
        seed: of the draw of the queries.
        progress: for long work.

    Raises:
        OptionError: no coreset, one given twice, or a number out of range.
        MissingInput, ArtifactError: a file that is not there, damaged, or no coreset; embeddings without a kept sample.
        DatasetMismatch: artifacts of different datasets.
    """
    if not coresets:
        raise OptionError("Name at least one coreset to compare.")
    if seeds < 0:
        raise OptionError(f"--seeds {seeds} is below 0.")
    kept = [each if isinstance(each, Coreset) else formats.read_coreset(each) for each in coresets]
    names = _names(kept)
    for name, each in zip(names[1:], kept[1:], strict=True):
        _check_dataset(name, each.dataset, names[0], kept[0].dataset)
    measured: Sequence[tuple[Distances | None, tuple[Distances, ...]]] = [(None, ())] * len(kept)
    space = None
    if embeddings is not None:
        if not isinstance(embeddings, Embeddings):
            embeddings = formats.read_embeddings(embeddings)
        _check_dataset("the embeddings file", embeddings.dataset, names[0], kept[0].dataset)
        rows = [_rows(embeddings, name, each) for name, each in zip(names, kept, strict=True)]
        queries = _queries(len(embeddings.embeddings), num_queries, seed)
        space = _Space(embeddings, num_neighbours, queries, resolve_device(device), progress or SILENT)
        measured = _measured(space, kept, rows, seeds)
    origin = None if embeddings is None else embeddings.origin
    config = {
        "input": [each.origin for each in kept],
        "embeddings": origin,
        "seeds": seeds,
        "neighbours": num_neighbours,
        "queries": num_queries,
        "seed": seed,
    }
    jaccard, by_chance = _overlaps(kept)
    return Comparison(
        dataset=kept[0].dataset,
        coresets=tuple(
            ComparedCoreset(
                name=name,
                selection=each.selection,
                num_selected=each.num_selected,
                class_counts=each.class_counts,
                class_entropy=_class_entropy(each),
                distances=distances,
                random=random,
            )
            for name, each, (distances, random) in zip(names, kept, measured, strict=True)
        ),
        jaccard=jaccard,
        jaccard_by_chance=by_chance,
        encoder=None if embeddings is None else embeddings.encoder,
        num_neighbours=0 if space is None else num_neighbours,
        num_queries=0 if space is None else len(space.population.queries),
        provenance=provenance(
            "compare",
            config,
            seed=seed,
            inputs=[*(each.origin for each in kept), origin],
            device=None if space is None else space.population.device,
        ),
    )


def _names(coresets: Sequence[Coreset]) -> list[str]:
    """Distinct names: the files, with as many folders as it takes; a number for a coreset without a file.

    Raises:
        OptionError: a file is given twice.
    """
    origins = [each.origin or f"coreset {number}" for number, each in enumerate(coresets, 1)]
    twice = [origin for origin in origins if origins.count(origin) > 1]
    if twice:
        raise OptionError(f"{twice[0]} is given twice.")
    return run_names([Path(origin) for origin in origins])


def _check_dataset(what: str, dataset: DatasetIdentity, first: str, expected: DatasetIdentity) -> None:
    same = (dataset.fingerprint, dataset.fingerprint_method, dataset.class_names) == (
        expected.fingerprint,
        expected.fingerprint_method,
        expected.class_names,
    )
    if not same:
        raise DatasetMismatch(
            f"{what} was made from {dataset.uri!r} (split {dataset.split!r}, fingerprint {dataset.fingerprint[:12]}), "
            f"but {first} from {expected.uri!r} (split {expected.split!r}, fingerprint {expected.fingerprint[:12]}). "
            "Only artifacts of one dataset can be compared."
        )


def _class_entropy(coreset: Coreset) -> float | None:
    counts = np.array(list(coreset.class_counts.values()), dtype=np.float64)
    return normalised_entropy(counts) if len(counts) > 1 else None


def _overlaps(coresets: Sequence[Coreset]) -> tuple[Matrix, Matrix]:
    """Jaccard index of every pair, and what random choices of the same sizes are expected to have."""
    sets = [np.array(each.indices, dtype=np.int64) for each in coresets]
    count = coresets[0].dataset.num_samples
    jaccard, by_chance = [], []
    for one in sets:
        sizes = [(len(one) + len(other)) for other in sets]
        shared = [len(np.intersect1d(one, other, assume_unique=True)) for other in sets]
        jaccard.append(tuple(both / (size - both) for both, size in zip(shared, sizes, strict=True)))
        expected = [len(one) * len(other) / count for other in sets]
        by_chance.append(tuple(both / (size - both) for both, size in zip(expected, sizes, strict=True)))
    return tuple(jaccard), tuple(by_chance)


# --- distances --------------------------------------------------------------------------------------------------------


def _rows(embeddings: Embeddings, name: str, coreset: Coreset) -> IntArray:
    """Rows of the embeddings that hold the kept samples, ascending.

    Raises:
        ArtifactError: a kept sample has no embedding.
    """
    indices = np.array(coreset.indices, dtype=np.int64)
    rows = rows_by_index(embeddings.indices, embeddings.dataset.num_samples)[indices]
    if (rows < 0).any():
        raise ArtifactError(
            f"{name} keeps {int((rows < 0).sum())} samples without an embedding, the first is {indices[rows < 0][0]}. "
            "Name the embeddings that it was selected from."
        )
    return np.sort(rows)


def _queries(count: int, num_queries: int | None, seed: int) -> IntArray | None:
    if num_queries is None or num_queries >= count:
        return None
    if num_queries < 1:
        raise OptionError(f"--queries {num_queries} is below 1.")
    drawn: IntArray = np.random.default_rng(seed).choice(count, num_queries, replace=False)
    return np.sort(drawn)


class _Space:
    """All samples in the space of an encoder, and distances of choices to them."""

    def __init__(
        self,
        embeddings: Embeddings,
        num_neighbours: int,
        queries: IntArray | None,
        device: torch.device,
        progress: Progress,
    ) -> None:
        self.embeddings = embeddings
        self.progress = progress
        rows = embeddings.embeddings
        self.population = Population(rows, num_neighbours, queries=queries, device=device, progress=progress)
        self._mean, self._covariance = self._moments(None)

    def _moments(self, rows: IntArray | None) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        total = Moments(self.embeddings.embeddings.shape[1])
        for block in self.embeddings.embeddings.blocks(rows):
            total.update(block)
        return total.mean, total.covariance()

    def distances(self, rows: IntArray) -> Distances:
        """How far the ascending `rows` int64 [n] are from all samples.

        Raises:
            OptionError: no more of them than neighbours are looked at.
        """
        fit = self.population.fit(rows)
        frechet = frechet_distance(*self._moments(rows), self._mean, self._covariance)
        return Distances(frechet=frechet, **asdict(fit))

    def random_rows(self, total: int, scope: Scope, seed: int) -> IntArray:
        """Rows of a random choice, ascending."""
        columns = self.embeddings
        chosen = select_rows(
            np.zeros(len(columns.indices)),
            columns.labels,
            columns.indices,
            keep="random",
            scope=scope,
            total=total,
            seed=seed,
        )
        return np.sort(chosen)


def _measured(
    space: _Space, coresets: Sequence[Coreset], rows: Sequence[IntArray], seeds: int
) -> list[tuple[Distances, tuple[Distances, ...]]]:
    """Distances of every coreset, and of random choices of its size, which coresets of one size and scope share."""
    budgets = [(each.num_selected, each.selection.scope) for each in coresets]
    random: dict[tuple[int, Scope], tuple[Distances, ...]] = {}
    with space.progress.task("compare", len(rows) + seeds * len(set(budgets)), "choices") as task:
        for budget in budgets:
            if budget not in random:
                found = []
                for seed in range(seeds):
                    found.append(space.distances(space.random_rows(*budget, seed)))
                    task.advance()
                random[budget] = tuple(found)
        measured = []
        for chosen, budget in zip(rows, budgets, strict=True):
            measured.append((space.distances(chosen), random[budget]))
            task.advance()
    return measured
