"""`explain`: why samples were kept or dropped."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dcprune import formats
from dcprune.api.coresets import score
from dcprune.api.matching import rows_by_index
from dcprune.artifacts import Coreset, DatasetIdentity, Embeddings, InputFile, Scores, Selection
from dcprune.devices import resolve_device
from dcprune.errors import ArtifactError, DatasetMismatch, DcpruneError, OptionError
from dcprune.interfaces import Progress
from dcprune.lineage import traced
from dcprune.neighbours import nearest_neighbours
from dcprune.progress import SILENT
from dcprune.selection import select_rows

StrPath = str | os.PathLike[str]
IntArray = NDArray[np.int64]

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
EVERYTHING = "all samples"
_MOST_GUESSED = 200_000  # ids that are searched for one that is spelled like a wrong one


@dataclass(frozen=True)
class Neighbour:
    """A sample near another; `distance` is Euclidean in the space of the embeddings."""

    index: int
    id: str
    class_name: str | None
    distance: float


@dataclass(frozen=True)
class Rank:
    """Where a score stands in a group of samples: 1 is the lowest, equal scores go by index."""

    rank: int
    of: int


@dataclass(frozen=True)
class Group:
    """The samples among which a choice was made: those of a class, or all.

    Attributes:
        mean, std: of their scores, the latter dividing by n.
        quantiles: of their scores, by `QUANTILES`.
        kept_low, kept_high: lowest and highest score that was kept; None when nothing was.
        dropped_between: dropped samples whose score lies between those two, included.
    """

    name: str
    num_samples: int
    num_kept: int
    mean: float
    std: float
    quantiles: Mapping[str, float]
    kept_low: float | None
    kept_high: float | None
    dropped_between: int


@dataclass(frozen=True)
class Standing:
    """A sample's score and where it stands.

    Attributes:
        in_class: rank among its class; None for class-less data.
        overall: rank among all samples.
        group: among which samples the choice was made.
    """

    score: float
    in_class: Rank | None
    overall: Rank
    group: Group


@dataclass(frozen=True)
class SampleExplanation:
    """Why one sample was kept or dropped; what is not known is None.

    Attributes:
        reason: the verdict in words.
        standing: None without a score.
        nearest_kept, nearest_dropped: the nearest first; None without an embedding.
    """

    index: int
    id: str
    class_name: str | None
    kept: bool
    reason: str
    standing: Standing | None
    nearest_kept: tuple[Neighbour, ...] | None
    nearest_dropped: tuple[Neighbour, ...] | None


@dataclass(frozen=True)
class Explanation:
    """Samples of a coreset's dataset, explained.

    Attributes:
        scorer: whose scores they are; None without scores.
        reproduced: whether these scores and the coreset's policy give this very coreset; None where that is not known.
    """

    dataset: DatasetIdentity
    selection: Selection
    scorer: str | None
    reproduced: bool | None
    samples: tuple[SampleExplanation, ...]


def explain(
    samples: Sequence[str | int],
    coreset: Coreset | StrPath,
    *,
    scores: Scores | StrPath | None = None,
    embeddings: Embeddings | StrPath | None = None,
    num_neighbours: int = 5,
    data_dir: StrPath | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> Explanation:
    """Say why samples were kept or dropped.

    Scores and embeddings that are not given are those the coreset records as its origin, as long as they have not
    changed; scores that were never stored are computed again.

    Args:
        samples: ids or indices; what is an id is not taken for an index.
        coreset: the artifact, or its path.
        scores: what the coreset was selected by; the artifact, or its path.
        embeddings: the space of the neighbours; the artifact, or its path.
        num_neighbours: kept and dropped neighbours of each sample.
        data_dir: where datasets lie, for scorers that look at the images.
        device: where distances, and scores, are computed.
        progress: for long work, and for what could not be found.

    Raises:
        OptionError: no sample, one that does not exist, or a number out of range.
        MissingInput, ArtifactError: a file that is not there or damaged.
        DatasetMismatch: artifacts of different datasets.
    """
    if not samples:
        raise OptionError("Name at least one sample, by its id or its index.")
    if num_neighbours < 1:
        raise OptionError(f"--neighbours {num_neighbours} is below 1.")
    progress = progress or SILENT
    kept = coreset if isinstance(coreset, Coreset) else formats.read_coreset(coreset)
    found = scores if scores is None or isinstance(scores, Scores) else formats.read_scores(scores)
    space = (
        embeddings if embeddings is None or isinstance(embeddings, Embeddings) else formats.read_embeddings(embeddings)
    )
    found, space = _completed(kept, found, space, progress)
    if found is None and space is not None:
        found = _scored_again(kept, space, data_dir, device, progress)
    for what, each in (("scores", found), ("embeddings", space)):
        if each is not None:
            _check_dataset(what, each.dataset, kept.dataset)
    roll = _Roll(kept, found, space)
    indices = [roll.index_of(sample) for sample in samples]
    board = None if found is None else _Board(kept, found)
    nearby = None if space is None else _neighbours(kept, space, roll, indices, num_neighbours, device)
    return Explanation(
        dataset=kept.dataset,
        selection=kept.selection,
        scorer=None if found is None else found.scorer.name,
        reproduced=None if found is None else _reproduced(kept, found),
        samples=tuple(_explained(index, roll, board, nearby) for index in indices),
    )


# --- what the coreset was made from -----------------------------------------------------------------------------------


def _completed(
    coreset: Coreset, scores: Scores | None, embeddings: Embeddings | None, progress: Progress
) -> tuple[Scores | None, Embeddings | None]:
    """Scores and embeddings, those that are missing taken from what the artifacts were made from."""
    inputs = coreset.provenance.inputs if scores is None else scores.provenance.inputs
    return traced(inputs, scores, embeddings, lambda recorded: _unchanged(recorded, progress))


def _unchanged(recorded: InputFile, progress: Progress) -> Scores | Embeddings | None:
    """An input that is still what it was; otherwise None, with a warning."""
    path = Path(recorded.path)
    advice = "Name the right file with --scores or --embeddings."
    if not path.exists():
        progress.warn(f"{path}, which the coreset was made from, is not there any more. {advice}")
        return None
    if formats.sha256(path) != recorded.sha256:
        progress.warn(f"{path} has changed since the coreset was made from it, and is left out. {advice}")
        return None
    try:
        artifact = formats.read_artifact(path)
    except ArtifactError as error:
        progress.warn(f"{error} {advice}")
        return None
    return artifact if isinstance(artifact, Scores | Embeddings) else None


def _scored_again(
    coreset: Coreset, embeddings: Embeddings, data_dir: StrPath | None, device: str, progress: Progress
) -> Scores | None:
    """The scores of a selection that stored none."""
    selection = coreset.selection
    try:
        return score(
            embeddings,
            selection.scorer,
            settings=selection.params,
            ratio=selection.ratio or min(1.0, selection.budget / len(embeddings.embeddings)),
            data_dir=data_dir,
            device=device,
            seed=selection.seed,
            progress=progress,
        )
    except DcpruneError as error:
        progress.warn(f"The scores cannot be computed again, so there are none: {error}")
        return None


def _check_dataset(what: str, dataset: DatasetIdentity, expected: DatasetIdentity) -> None:
    if dataset.fingerprint != expected.fingerprint or dataset.class_names != expected.class_names:
        raise DatasetMismatch(
            f"The {what} were made from {dataset.uri!r} (fingerprint {dataset.fingerprint[:12]}), the coreset from "
            f"{expected.uri!r} (fingerprint {expected.fingerprint[:12]}). Name files of one chain."
        )


def _reproduced(coreset: Coreset, scores: Scores) -> bool | None:
    selection = coreset.selection
    try:
        rows = select_rows(
            scores.scores,
            scores.labels,
            scores.indices,
            keep=selection.keep,
            scope=selection.scope,
            total=selection.budget,
            seed=selection.seed,
        )
    except DcpruneError:
        return None
    return tuple(scores.indices[rows].tolist()) == coreset.indices


# --- samples ----------------------------------------------------------------------------------------------------------


class _Roll:
    """The samples of a dataset by id and index, as far as the artifacts know them."""

    def __init__(self, coreset: Coreset, scores: Scores | None, embeddings: Embeddings | None) -> None:
        self.dataset = coreset.dataset
        self.kept = np.zeros(coreset.dataset.num_samples, dtype=bool)
        self.kept[list(coreset.indices)] = True
        table = embeddings if scores is None else scores
        self.indices = np.array(coreset.indices, dtype=np.int64) if table is None else table.indices
        self.ids = coreset.ids if table is None else table.ids
        self.labels = None if table is None else table.labels
        self._rows = rows_by_index(self.indices, self.dataset.num_samples)

    def id(self, index: int) -> str:
        row = self._rows[index]
        return str(index) if self.ids is None or row < 0 else self.ids[row]

    def class_name(self, index: int) -> str | None:
        row = self._rows[index]
        return None if self.labels is None or row < 0 else self.dataset.class_names[self.labels[row]]

    def index_of(self, sample: str | int) -> int:
        """Index of a sample.

        Raises:
            OptionError: there is none of that id or index.
        """
        if isinstance(sample, str) and self.ids is not None and sample in self.ids:
            return int(self.indices[self.ids.index(sample)])
        most = self.dataset.num_samples - 1
        if isinstance(sample, int) or sample.isdecimal():
            index = int(sample)
            if not 0 <= index <= most:
                raise OptionError(f"There is no sample {index}: the indices of {self.dataset.uri!r} are 0 to {most}.")
            return index
        known = self.ids or ()
        close = get_close_matches(sample, known, n=3) if len(known) <= _MOST_GUESSED else []
        guess = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
        raise OptionError(
            f"No sample that is known here has the id {sample!r}.{guess} An index, 0 to {most}, names any sample."
        )


class _Board:
    """Scores with their ranks and groups."""

    def __init__(self, coreset: Coreset, scores: Scores) -> None:
        self.coreset = coreset
        self.scores = scores
        self._rows = rows_by_index(scores.indices, scores.dataset.num_samples)
        self.kept = np.isin(scores.indices, coreset.indices)
        self._groups: dict[int | None, Group] = {}

    def standing(self, index: int) -> Standing | None:
        """Where the sample stands; None when it has no score."""
        row = int(self._rows[index])
        if row < 0:
            return None
        label = None if self.scores.labels is None else int(self.scores.labels[row])
        chosen_among = label if self.coreset.selection.scope == "class" else None
        if chosen_among not in self._groups:
            self._groups[chosen_among] = self._described(chosen_among)
        return Standing(
            score=float(self.scores.scores[row]),
            in_class=None if label is None else self._rank(row, label),
            overall=self._rank(row, None),
            group=self._groups[chosen_among],
        )

    def _rank(self, row: int, label: int | None) -> Rank:
        scores, indices = self.scores.scores, self.scores.indices
        mine = self._members(label)
        equal = (scores == scores[row]) & (indices < indices[row])
        return Rank(1 + int(((scores < scores[row]) | equal)[mine].sum()), int(mine.sum()))

    def _members(self, label: int | None) -> NDArray[np.bool_]:
        if label is None or self.scores.labels is None:
            return np.ones(len(self.scores.scores), dtype=bool)
        mine: NDArray[np.bool_] = self.scores.labels == label
        return mine

    def _described(self, label: int | None) -> Group:
        mine = self._members(label)
        values, kept = self.scores.scores[mine], self.kept[mine]
        low, high = (float(values[kept].min()), float(values[kept].max())) if kept.any() else (None, None)
        between = 0 if low is None or high is None else int(((values >= low) & (values <= high) & ~kept).sum())
        return Group(
            name=EVERYTHING if label is None else self.coreset.dataset.class_names[label],
            num_samples=len(values),
            num_kept=int(kept.sum()),
            mean=float(values.mean()),
            std=float(values.std()),
            quantiles={f"{share:g}": float(np.quantile(values, share)) for share in QUANTILES},
            kept_low=low,
            kept_high=high,
            dropped_between=between,
        )


_Nearby = Mapping[int, tuple[tuple[Neighbour, ...], tuple[Neighbour, ...]]]


def _neighbours(
    coreset: Coreset, embeddings: Embeddings, roll: _Roll, indices: Sequence[int], count: int, device: str
) -> _Nearby:
    """Nearest kept and nearest dropped samples of those of `indices` that have an embedding."""
    rows_of = rows_by_index(embeddings.indices, embeddings.dataset.num_samples)
    known = [index for index in dict.fromkeys(indices) if rows_of[index] >= 0]
    queries = rows_of[known] if known else np.empty(0, dtype=np.int64)
    kept = np.isin(embeddings.indices, coreset.indices)
    sides = []
    for rows in (np.flatnonzero(kept), np.flatnonzero(~kept)):
        lists: list[tuple[Neighbour, ...]] = [()] * len(known)
        if len(rows) and len(known):
            found = nearest_neighbours(
                embeddings.embeddings, count, row_index=rows, queries=queries, device=resolve_device(device)
            )
            places = embeddings.indices[rows[found.positions]].tolist()
            lists = [
                tuple(
                    Neighbour(index, roll.id(index), roll.class_name(index), distance)
                    for index, distance in zip(near, distances, strict=True)
                )
                for near, distances in zip(places, found.distances.tolist(), strict=True)
            ]
        sides.append(lists)
    return {index: (sides[0][position], sides[1][position]) for position, index in enumerate(known)}


def _explained(index: int, roll: _Roll, board: _Board | None, nearby: _Nearby | None) -> SampleExplanation:
    kept = bool(roll.kept[index])
    standing = None if board is None else board.standing(index)
    near = None if nearby is None else nearby.get(index)
    return SampleExplanation(
        index=index,
        id=roll.id(index),
        class_name=roll.class_name(index),
        kept=kept,
        reason=_reason(kept, standing),
        standing=standing,
        nearest_kept=None if near is None else near[0],
        nearest_dropped=None if near is None else near[1],
    )


def _reason(kept: bool, standing: Standing | None) -> str:
    """The verdict, by where the score lies in what was kept of its group."""
    verdict = "kept" if kept else "dropped"
    if standing is None:
        return f"{verdict}; its score is not known"
    group, value = standing.group, standing.score
    where = group.name if group.name == EVERYTHING else f"class {group.name}"
    if group.kept_low is None or group.kept_high is None:
        return f"{verdict}: nothing is kept of {where}"
    score, low, high = told_apart([value, group.kept_low, group.kept_high], digits=6)
    among = f"what is kept of {where}, scores from {low} to {high}"
    if value < group.kept_low:
        return f"{verdict}: its score {score} is below {among}"
    if value > group.kept_high:
        return f"{verdict}: its score {score} is above {among}"
    reason = f"{verdict}: its score {score} is within {among}"
    if group.dropped_between:
        reason += f", where {group.dropped_between} samples are dropped"
    if not kept and value in (group.kept_low, group.kept_high):
        reason += "; equal scores go by index"
    return reason


def told_apart(values: Sequence[float], digits: int = 4) -> list[str]:
    """Numbers in words of at least so many significant digits, and as many more as unlike numbers need to look it."""
    for precision in range(digits, 17):
        words = [f"{value:.{precision}g}" for value in values]
        if len(set(words)) == len(set(values)):
            return words
    return [repr(float(value)) for value in values]
