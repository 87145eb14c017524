"""The things that the commands hand to each other: frozen, validated on construction, without I/O.

JSON artifacts (`Coreset`, `ClassWeights`, `Metrics`, `RunRecord`, ...) are pydantic models, from which the shipped JSON
Schemas are generated. `Embeddings`, `Classes` and `Scores` hold arrays: dataclasses around a pydantic header.
`dcprune.formats` reads and writes all of them.
"""

from __future__ import annotations

import math
import mmap
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, model_validator

from dcprune.errors import ArtifactError

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
FingerprintMethod = Literal["index-id-label-size/1", "content/1"]

_BLOCK_BYTES = 32 << 20
_READ_AHEAD_BYTES = 256 << 20
# Rows from all over a mapped file that are read before their pages are given back: the system may map 2 MiB for each.
_SCATTERED_ROWS = 128


class Record(BaseModel):
    """Base of every JSON record: frozen, unknown keys refused, NaN and infinity refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class DatasetIdentity(Record):
    """Which dataset an artifact belongs to.

    Attributes:
        uri: registered name, folder or scheme URI, as it was given.
        split: name of the split.
        num_samples: number of samples N.
        num_classes: number of classes K; 0 for class-less data.
        class_names: K distinct names in label order.
        fingerprint: sha256 over all samples, by `fingerprint_method`.
    """

    uri: str
    split: str
    num_samples: Annotated[int, Field(gt=0)]
    num_classes: Count
    class_names: tuple[str, ...]
    fingerprint: Sha256
    fingerprint_method: FingerprintMethod = "index-id-label-size/1"

    @model_validator(mode="after")
    def _names_match(self) -> Self:
        if len(self.class_names) != self.num_classes:
            raise ValueError(f"num_classes is {self.num_classes} but there are {len(self.class_names)} class_names")
        if len(set(self.class_names)) != self.num_classes:
            raise ValueError("class_names are not distinct")
        return self


class InputFile(Record):
    """A file that an artifact was made from; a relative `path` counts from the folder of that artifact."""

    path: str
    sha256: Sha256


class PluginVersion(Record):
    """A third-party package that took part."""

    name: str
    version: str


class Environment(Record):
    """Where an artifact was made."""

    python: str
    torch: str
    device: str
    dtype: str


class Provenance(Record):
    """How an artifact was made; holds no wall-clock time, so the same inputs give the same bytes."""

    dcprune_version: str
    command: str
    config: dict[str, Any]
    seed: int
    inputs: tuple[InputFile, ...] = ()
    plugins: tuple[PluginVersion, ...] = ()
    environment: Environment


class StageCost(Record):
    """Cost of one stage of the chain.

    Attributes:
        stage: `surrogate`, `embed`, `score`, `encode` (latents), `reference`, `proxy` or `train`.
        images_seen: images that went through a network, counted every time.
        updates: optimizer steps.
        flops: floating-point operations of networks (convolutions and matrix products, forward and backward); None
            where nothing counted them.
        device_seconds: wall-clock time that devices were held, times their number; None where nothing measured it.
    """

    stage: str
    images_seen: Count
    updates: Count
    flops: Count | None = None
    device_seconds: Annotated[float, Field(ge=0)] | None


class CostRecord(Record):
    """`*.cost` beside an artifact: what it and everything before it cost.

    Attributes:
        artifact: which file they are the costs of, see `dcprune.formats.costs`.
        ledger: the stages, in order.
    """

    format: Literal["dcprune.costs/1"] = "dcprune.costs/1"
    artifact: str
    ledger: tuple[StageCost, ...]


def joined_costs(*ledgers: Sequence[StageCost]) -> tuple[StageCost, ...]:
    """Ledgers one after the other; a stage that several of them share counts once."""
    return tuple(dict.fromkeys(cost for ledger in ledgers for cost in ledger))


class EncoderInfo(Record):
    """The network that made embeddings.

    Attributes:
        name: registered name.
        dim: width D of an embedding.
        weights: where the weights came from, in words (`"surrogate"`, `"imagenet"`, a path).
        weights_sha256: hash of the weights, when there are any.
        layer: the layer whose output is taken.
        preprocessing: resize, crop, interpolation, mean and std, in words and numbers.
        settings: every resolved setting of the encoder.
        details: what else is known, such as a surrogate's held-out accuracy.
    """

    name: str
    dim: Annotated[int, Field(gt=0)]
    weights: str
    weights_sha256: Sha256 | None
    layer: str
    preprocessing: dict[str, Any]
    settings: dict[str, Any] = {}
    details: dict[str, Any] = {}


class ScorerInfo(Record):
    """The criterion that made scores."""

    name: str
    params: dict[str, Any]


class SkippedSample(Record):
    """A sample that could not be read and has no embedding; `id` is the index where the dataset has no ids."""

    index: Count
    id: str
    reason: str


class EmbeddingsHeader(Record):
    """What an embeddings file says about itself beside its tensors.

    Attributes:
        skipped: samples that are left out, ascending.
    """

    format: Literal["dcprune.embeddings/1"] = "dcprune.embeddings/1"
    dataset: DatasetIdentity
    encoder: EncoderInfo
    skipped: tuple[SkippedSample, ...] = ()
    provenance: Provenance


class ClassesHeader(Record):
    """What a file of pseudo-classes says about itself beside its tensors.

    Attributes:
        dataset: the dataset whose classes are replaced.
        class_names: K names of the clusters.
        encoder: the space that was clustered.
        seed: of k-means.
        inertia: sum of squared distances to the nearest centroid.
    """

    format: Literal["dcprune.classes/1"] = "dcprune.classes/1"
    dataset: DatasetIdentity
    class_names: tuple[str, ...]
    encoder: EncoderInfo
    seed: int
    inertia: Annotated[float, Field(ge=0)]
    provenance: Provenance


class ScoresHeader(Record):
    """What a scores file says about itself beside its tensors."""

    format: Literal["dcprune.scores/1"] = "dcprune.scores/1"
    dataset: DatasetIdentity
    scorer: ScorerInfo
    keep: str
    ratio: Annotated[float, Field(gt=0, le=1)] = 1.0
    provenance: Provenance


class Rows:
    """A matrix [N, D] that may lie in several memory-mapped parts; it is read in blocks, never as a whole.

    Args:
        parts: matrices [n_i, D] of one dtype: float32, float16, or uint16 holding bfloat16 bits.
        dtype: a key of `STORAGE`, which says as what it is stored.

    Raises:
        ArtifactError: parts of unlike width or dtype, or none at all.
    """

    STORAGE: ClassVar[dict[str, type[np.generic]]] = {
        "float32": np.float32,
        "float16": np.float16,
        "bfloat16": np.uint16,
    }

    def __init__(self, parts: Sequence[NDArray[Any]], dtype: str = "float32") -> None:
        if dtype not in self.STORAGE:
            raise ArtifactError(f"Embeddings of dtype {dtype!r}; known: {', '.join(self.STORAGE)}.")
        if not parts or any(part.ndim != 2 or part.shape[1] != parts[0].shape[1] for part in parts):
            raise ArtifactError("Embeddings must be one or more matrices of one width.")
        if any(part.dtype != self.STORAGE[dtype] for part in parts):
            raise ArtifactError(f"Embeddings declared as {dtype} are stored as {parts[0].dtype}.")
        self.parts = tuple(parts)
        self.dtype = dtype
        self._starts = np.cumsum([0, *(len(part) for part in parts)])
        self._finite = False

    @property
    def shape(self) -> tuple[int, int]:
        return int(self._starts[-1]), int(self.parts[0].shape[1])

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def row_bytes(self) -> int:
        """Bytes of a row as it is stored."""
        return self.shape[1] * self.parts[0].itemsize

    def __getitem__(self, rows: slice | NDArray[np.integer[Any]]) -> NDArray[np.float32]:
        """Rows as float32 [n, D]: a contiguous slice, or an index array in any order."""
        return self.float32(self.stored(rows))

    def float32(self, values: NDArray[Any]) -> NDArray[np.float32]:
        """Values of the storage dtype as float32, the same object where they are float32 already."""
        if self.dtype == "bfloat16":
            return (values.astype(np.uint32) << 16).view(np.float32)
        return np.asarray(values, dtype=np.float32)

    def stored(self, rows: slice | NDArray[np.integer[Any]]) -> NDArray[Any]:
        """Like `[]`, in the storage dtype (bfloat16 as uint16 bits); a slice of one part is a view."""
        if isinstance(rows, slice):
            start, stop, _ = rows.indices(len(self))
            pieces = [
                part[max(0, start - first) : max(0, stop - first)]
                for part, first in zip(self.parts, self._starts[:-1].tolist(), strict=True)
                if first < stop and first + len(part) > start
            ]
            return pieces[0] if len(pieces) == 1 else np.concatenate(pieces or [self.parts[0][:0]])
        index = np.asarray(rows, dtype=np.int64)
        if len(self.parts) == 1 and _mapping(self.parts[0]) is None:
            return self.parts[0][index]
        out: NDArray[Any] = np.empty((len(index), self.shape[1]), dtype=self.STORAGE[self.dtype])
        owner = np.searchsorted(self._starts, index, side="right") - 1
        for number in np.unique(owner):
            part, places = self.parts[number], np.flatnonzero(owner == number)
            for start in range(0, len(places), _SCATTERED_ROWS):
                some = places[start : start + _SCATTERED_ROWS]
                out[some] = part[index[some] - self._starts[number]]
                _give_back(part)
        return out

    def stored_blocks(self, rows: slice | NDArray[np.integer[Any]] | None = None) -> Iterator[NDArray[Any]]:
        """The rows (all, a contiguous slice, or those of an index array) in blocks in the storage dtype, in order.

        A block has as many rows as fill 32 MiB in float32. It lasts until the next one is asked for: then pages of
        memory-mapped files that were read are given back, so that a pass over a large file stays small.
        """
        index = np.arange(0) if rows is None or isinstance(rows, slice) else np.asarray(rows, dtype=np.int64)
        whole = rows if isinstance(rows, slice) else slice(0, len(self)) if rows is None else _as_slice(index)
        start, stop, _ = whole.indices(len(self)) if whole is not None else (0, len(index), 1)
        step = max(1, _BLOCK_BYTES // (4 * self.shape[1]))
        for row in range(start, stop, step):
            part = slice(row, min(row + step, stop))
            yield self.stored(part if whole is not None else index[part])
            self.release()

    def blocks(self, rows: NDArray[np.integer[Any]] | None = None) -> Iterator[NDArray[np.float32]]:
        """The rows (all, or those of an index array) as float32 blocks of about 32 MiB, in order."""
        for block in self.stored_blocks(rows):
            yield self.float32(block)

    def release(self) -> None:
        """Give back the pages of memory-mapped files; they are read again when they are needed."""
        for part in self.parts:
            _give_back(part)

    def take(self, rows: NDArray[np.int64]) -> Rows:
        """Some of the rows, in the order given, without reading them."""
        return _TakenRows(self, rows)

    def first_not_finite(self) -> int | None:
        """The first row that holds a NaN or an infinity; None when there is none, which is looked up only once."""
        if self._finite:
            return None
        row = 0
        for block in self.stored_blocks():
            if not self._all_finite(block):
                return row + int(np.argmin(np.isfinite(self.float32(block)).all(axis=1)))
            row += len(block)
        self._finite = True
        return None

    def _all_finite(self, block: NDArray[Any]) -> bool:
        """Quicker than np.isfinite: 16-bit floats by their exponent bits, float32 by a sum, which infects."""
        if self.dtype == "float32":
            with np.errstate(over="ignore", invalid="ignore"):
                total = block.sum()
            return bool(np.isfinite(total) or np.isfinite(block).all())
        infinity = np.uint16(0x7C00 if self.dtype == "float16" else 0x7F80)
        return bool((block.view(np.uint16) & np.uint16(0x7FFF)).max() < infinity)


class _TakenRows(Rows):
    """Some rows of another matrix; see `Rows.take`."""

    def __init__(self, source: Rows, rows: NDArray[np.int64]) -> None:
        super().__init__(source.parts, source.dtype)
        self._finite = source._finite
        self._source = source
        self._taken = rows

    @property
    def shape(self) -> tuple[int, int]:
        return len(self._taken), self._source.shape[1]

    def stored(self, rows: slice | NDArray[np.integer[Any]]) -> NDArray[Any]:
        """See `Rows.stored`."""
        taken = self._taken[rows]
        whole = _as_slice(taken)
        return self._source.stored(taken if whole is None else whole)


def _mapping(part: NDArray[Any]) -> mmap.mmap | None:
    """The file behind a part that is mapped into memory to be read; None where there is none."""
    mapping = getattr(part, "_mmap", None)
    return mapping if getattr(part, "mode", "") == "r" and hasattr(mmap, "MADV_DONTNEED") else None


def _give_back(part: NDArray[Any]) -> None:
    mapping = _mapping(part)
    if mapping is not None:
        mapping.madvise(mmap.MADV_DONTNEED)


def _as_slice(rows: NDArray[np.int64]) -> slice | None:
    """The slice that selects the same rows, None when there is none: reading it needs no gathering."""
    if len(rows) == 0 or rows[-1] - rows[0] != len(rows) - 1 or (np.diff(rows) != 1).any():
        return None
    return slice(int(rows[0]), int(rows[-1]) + 1)


@dataclass(frozen=True, eq=False)
class ClassRows:
    """The embeddings of one class, in the order of their dataset index.

    Attributes:
        label: the class; 0 for class-less data.
        rows: int64 [n], row numbers within `Embeddings`.
    """

    label: int
    rows: NDArray[np.int64]
    _source: Rows
    _held: NDArray[Any] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def dim(self) -> int:
        return self._source.shape[1]

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        """Blocks float32 [b, D] of about 32 MiB."""
        if self._held is None:
            yield from self._source.blocks(self.rows)
            return
        step = max(1, _BLOCK_BYTES // (4 * self._held.shape[1]))
        for start in range(0, len(self._held), step):
            yield self._source.float32(self._held[start : start + step])

    def in_memory(self) -> ClassRows:
        """The same class, read once for all passes over it, where it fills no more than 32 MiB."""
        if self._held is not None or len(self.rows) * self._source.row_bytes > _BLOCK_BYTES:
            return self
        return replace(self, _held=self._source.stored(self.rows))

    def some(self, places: NDArray[np.int64]) -> NDArray[np.float32]:
        """Those at `places` within the class, float32 [k, D]."""
        held = self._source.stored(self.rows[places]) if self._held is None else self._held[places]
        return self._source.float32(held)

    def matrix(self) -> NDArray[np.float32]:
        """All of them as a float32 [n, D] that the caller owns."""
        matrix = np.empty((len(self.rows), self._source.shape[1]), dtype=np.float32)
        row = 0
        for block in self.blocks():
            matrix[row : row + len(block)] = block
            row += len(block)
        return matrix


def _first_repeated(indices: NDArray[np.int64]) -> np.int64 | None:
    """The smallest value that is there more than once."""
    if (indices[1:] > indices[:-1]).all():
        return None
    ordered = np.sort(indices)
    repeated = ordered[1:][ordered[1:] == ordered[:-1]]
    return repeated[0] if len(repeated) else None


def _check_columns(
    kind: str,
    num_rows: int,
    dataset: DatasetIdentity,
    labels: NDArray[np.int64] | None,
    indices: NDArray[np.int64],
    ids: tuple[str, ...] | None,
) -> None:
    """Shared checks of the per-sample columns; raises ArtifactError."""
    for name, column in (("labels", labels), ("indices", indices), ("ids", ids)):
        if column is not None and len(column) != num_rows:
            raise ArtifactError(f"{kind}: {num_rows} rows but {len(column)} {name}.")
    if num_rows == 0:
        raise ArtifactError(f"{kind}: no rows.")
    if indices.min() < 0 or indices.max() >= dataset.num_samples:
        raise ArtifactError(f"{kind}: indices reach outside the dataset's {dataset.num_samples} samples.")
    twice = _first_repeated(indices)
    if twice is not None:
        raise ArtifactError(f"{kind}: duplicate indices; {int(twice)} is there more than once.")
    if ids is not None and len(set(ids)) != num_rows:
        name = next(name for name, count in Counter(ids).items() if count > 1)
        raise ArtifactError(f"{kind}: duplicate ids; {name!r} is there more than once.")
    if (labels is None) != (dataset.num_classes == 0):
        raise ArtifactError(f"{kind}: labels and the dataset's {dataset.num_classes} classes do not agree.")
    if labels is not None and (labels.min() < 0 or labels.max() >= dataset.num_classes):
        raise ArtifactError(f"{kind}: labels reach outside the dataset's {dataset.num_classes} classes.")


@dataclass(frozen=True, eq=False)
class Embeddings:
    """One vector per sample.

    Attributes:
        embeddings: `Rows` [N, D]; every value finite.
        labels: int64 [N], or None for class-less data.
        indices: int64 [N], distinct rows of the dataset.
        ids: N sample ids, or None when the id is the index.
        skipped: samples of the dataset that have no embedding because they could not be read.
        origin: the path it was read from, if any.
        costs: what they and everything before them cost, as far as that is known; no part of the artifact.
    """

    embeddings: Rows
    labels: NDArray[np.int64] | None
    indices: NDArray[np.int64]
    ids: tuple[str, ...] | None
    encoder: EncoderInfo
    dataset: DatasetIdentity
    provenance: Provenance
    skipped: tuple[SkippedSample, ...] = ()
    origin: str | None = field(default=None)
    costs: tuple[StageCost, ...] = ()

    def __post_init__(self) -> None:
        _check_columns("embeddings", len(self.embeddings), self.dataset, self.labels, self.indices, self.ids)
        if self.embeddings.shape[1] != self.encoder.dim:
            raise ArtifactError(
                f"embeddings: width {self.embeddings.shape[1]}, but the encoder says {self.encoder.dim}."
            )
        row = self.embeddings.first_not_finite()
        if row is not None:
            limit = " or beyond float16, which ends at 65504" if self.embeddings.dtype == "float16" else ""
            raise ArtifactError(
                f"embeddings: sample {int(self.indices[row])} (row {row}) is not finite: NaN, infinity{limit}."
            )

    @property
    def header(self) -> EmbeddingsHeader:
        return EmbeddingsHeader(
            dataset=self.dataset, encoder=self.encoder, skipped=self.skipped, provenance=self.provenance
        )

    def classes(self) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """Each class that has samples, as `(label, row numbers)`, in the order of the dataset's indices.

        Class-less data is the one class 0. A scorer that goes through the rows in this order gives the same result
        for any order and any sharding of the rows.
        """
        for label, rows in group_by_class(self.labels, len(self.embeddings)):
            indices = self.indices[rows]
            ascending = bool((indices[1:] > indices[:-1]).all())
            yield label, rows if ascending else rows[np.argsort(indices, kind="stable")]

    def by_class(self) -> Iterator[ClassRows]:
        """Each class that has samples, ready to be read.

        Classes whose rows lie scattered in a file are read together, as many as fit in 256 MiB, so that a pass over
        many of them is a few passes over the file and not one for every class.
        """
        scattered: list[tuple[int, NDArray[np.int64]]] = []
        room = max(1, _READ_AHEAD_BYTES // self.embeddings.row_bytes)
        in_memory = not any(isinstance(part, np.memmap) for part in self.embeddings.parts)
        for label, rows in self.classes():
            alone = in_memory or len(rows) > room or _as_slice(rows) is not None
            if alone or sum(len(each) for _, each in scattered) + len(rows) > room:
                yield from self._read_together(scattered)
                scattered = []
            if alone:
                yield ClassRows(label, rows, self.embeddings)
            else:
                scattered.append((label, rows))
        yield from self._read_together(scattered)

    def _read_together(self, classes: Sequence[tuple[int, NDArray[np.int64]]]) -> Iterator[ClassRows]:
        if not classes:
            return
        rows = np.concatenate([each for _, each in classes])
        order = np.argsort(rows)
        held = np.empty((len(rows), self.embeddings.shape[1]), dtype=self.embeddings.parts[0].dtype)
        done = 0
        for block in self.embeddings.stored_blocks(rows[order]):  # which gives pages back as it goes
            held[order[done : done + len(block)]] = block
            done += len(block)
        start = 0
        for label, each in classes:
            yield ClassRows(label, each, self.embeddings, held[start : start + len(each)])
            start += len(each)

    def take(self, rows: NDArray[np.int64]) -> Embeddings:
        """Some of the rows, int64 [n] in any order, without reading or checking them again."""
        return replace(
            self,
            embeddings=self.embeddings.take(rows),
            labels=None if self.labels is None else self.labels[rows],
            indices=self.indices[rows],
            ids=None if self.ids is None else tuple(self.ids[row] for row in rows),
        )


@dataclass(frozen=True, eq=False)
class Scores:
    """One number per sample.

    Attributes:
        scores: float64 [N], finite; what a high value means is the scorer's affair.
        labels, indices, ids: as in `Embeddings`.
        scorer: the criterion and its parameters.
        keep: the scorer's own keep policy.
        ratio: largest kept fraction that the scores were made for; a greedy order means nothing beyond it.
        costs: as in `Embeddings`.
    """

    scores: NDArray[np.float64]
    labels: NDArray[np.int64] | None
    indices: NDArray[np.int64]
    ids: tuple[str, ...] | None
    scorer: ScorerInfo
    keep: str
    dataset: DatasetIdentity
    provenance: Provenance
    ratio: float = 1.0
    origin: str | None = field(default=None)
    costs: tuple[StageCost, ...] = ()

    def __post_init__(self) -> None:
        _check_columns("scores", len(self.scores), self.dataset, self.labels, self.indices, self.ids)
        if not np.isfinite(self.scores).all():
            bad = int(self.indices[int(np.argmin(np.isfinite(self.scores)))])
            raise ArtifactError(f"scores: sample {bad} is not finite (NaN or infinity).")

    @property
    def header(self) -> ScoresHeader:
        return ScoresHeader(
            dataset=self.dataset, scorer=self.scorer, keep=self.keep, ratio=self.ratio, provenance=self.provenance
        )


@dataclass(frozen=True, eq=False)
class Classes:
    """Clusters of the embeddings that stand in for classes.

    Attributes:
        labels: int64 [N] in [0, K) for every sample of the dataset; a sample without an embedding is in cluster 0.
        centroids: float32 [K, D].
        dataset, class_names, encoder, seed, inertia: see `ClassesHeader`.
    """

    labels: NDArray[np.int64]
    centroids: NDArray[np.float32]
    class_names: tuple[str, ...]
    encoder: EncoderInfo
    seed: int
    inertia: float
    dataset: DatasetIdentity
    provenance: Provenance
    origin: str | None = field(default=None)

    def __post_init__(self) -> None:
        count = len(self.class_names)
        if self.labels.shape != (self.dataset.num_samples,):
            raise ArtifactError(f"classes: {self.dataset.num_samples} samples but labels {self.labels.shape}.")
        if self.labels.min() < 0 or self.labels.max() >= count or len(set(self.class_names)) != count:
            raise ArtifactError(f"classes: labels reach outside the {count} classes, or their names are not distinct.")
        if self.centroids.shape != (count, self.encoder.dim) or not np.isfinite(self.centroids).all():
            raise ArtifactError(f"classes: centroids {self.centroids.shape}, not finite {(count, self.encoder.dim)}.")

    @property
    def header(self) -> ClassesHeader:
        return ClassesHeader(
            dataset=self.dataset,
            class_names=self.class_names,
            encoder=self.encoder,
            seed=self.seed,
            inertia=self.inertia,
            provenance=self.provenance,
        )


class ReferenceHeader(Record):
    """What a file of reference statistics says about itself beside its tensors; see `ReferenceStatistics`."""

    format: Literal["dcprune.reference/1"] = "dcprune.reference/1"
    dataset: DatasetIdentity
    images: dict[str, Any]
    encoders: tuple[EncoderInfo, ...]
    provenance: Provenance


@dataclass(frozen=True, eq=False)
class EncodedReference:
    """The reference images in the space of one encoder.

    Attributes:
        encoder: the network.
        mean: float64 [D].
        covariance: float64 [D, D], divided by N - 1.
        features: float32 [N, D], perhaps memory-mapped; None where only the moments are kept.
    """

    encoder: EncoderInfo
    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]
    features: NDArray[np.float32] | None


@dataclass(frozen=True, eq=False)
class ReferenceStatistics:
    """What metrics need to know of the images that others are compared with.

    Attributes:
        dataset: the images.
        images: the part of a metric's protocol that is about them.
        labels: int64 [N], None for class-less data.
        spaces: one for every encoder.
        origin: path that it was read from.
    """

    dataset: DatasetIdentity
    images: dict[str, Any]
    labels: NDArray[np.int64] | None
    spaces: tuple[EncodedReference, ...]
    provenance: Provenance
    origin: str | None = field(default=None)

    def __post_init__(self) -> None:
        count = self.dataset.num_samples
        if self.labels is not None and self.labels.shape != (count,):
            raise ArtifactError(f"reference: {count} images but labels {self.labels.shape}.")
        for space in self.spaces:
            dim = space.encoder.dim
            if space.mean.shape != (dim,) or space.covariance.shape != (dim, dim):
                raise ArtifactError(f"reference: moments of {space.encoder.name} do not have {dim} dimensions.")
            if not (np.isfinite(space.mean).all() and np.isfinite(space.covariance).all()):
                raise ArtifactError(f"reference: moments of {space.encoder.name} are not finite (NaN or infinity).")
            if space.features is not None and space.features.shape != (count, dim):
                raise ArtifactError(f"reference: features {space.features.shape}, not {(count, dim)}.")

    @property
    def header(self) -> ReferenceHeader:
        return ReferenceHeader(
            dataset=self.dataset,
            images=self.images,
            encoders=tuple(space.encoder for space in self.spaces),
            provenance=self.provenance,
        )


def group_by_class(labels: NDArray[np.int64] | None, num_rows: int) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Row numbers of every class that has samples, ascending in class and in row; None is one class 0."""
    if labels is None:
        yield 0, np.arange(num_rows, dtype=np.int64)
        return
    order = np.argsort(labels, kind="stable")
    present, starts = np.unique(labels[order], return_index=True)
    for label, rows in zip(present, np.split(order, starts[1:]), strict=True):
        yield int(label), rows


class JsonArtifact(Record):
    """Base of the artifacts that are JSON files.

    The path that one was read from, `origin`, and what it and everything before it cost, `costs`, are no part of it:
    two artifacts of the same content are equal.
    """

    dataset: DatasetIdentity
    provenance: Provenance
    _origin: str | None = PrivateAttr(default=None)
    _costs: tuple[StageCost, ...] = PrivateAttr(default=())

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.__dict__ == other.__dict__

    @property
    def origin(self) -> str | None:
        return self._origin

    @property
    def costs(self) -> tuple[StageCost, ...]:
        return self._costs

    def with_costs(self, costs: tuple[StageCost, ...]) -> Self:
        copy = self.model_copy()
        copy._costs = costs
        return copy

    def with_origin(self, origin: str | None) -> Self:
        copy = self.model_copy()
        copy._origin = origin
        return copy


class Selection(Record):
    """How a coreset was chosen.

    Attributes:
        ratio: kept fraction in (0, 1], as it was asked for; None when a number was.
        budget: number of samples that were asked for.
    """

    scorer: str
    params: dict[str, Any]
    keep: str
    scope: Literal["class", "global"]
    ratio: Annotated[float, Field(gt=0, le=1)] | None
    budget: Annotated[int, Field(gt=0)]
    tie_break: Literal["index"] = "index"
    seed: int


class Coreset(JsonArtifact):
    """The samples that are kept.

    Attributes:
        class_counts: kept samples of every class, in label order; empty for class-less data.
        indices: dataset rows, strictly ascending.
        ids: their ids in the same order, when the dataset has string ids.
    """

    format: Literal["dcprune.coreset/1"] = "dcprune.coreset/1"
    selection: Selection
    num_selected: Annotated[int, Field(gt=0)]
    class_counts: dict[str, Count]
    indices: tuple[Count, ...]
    ids: tuple[str, ...] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(self.indices) != self.num_selected:
            raise ValueError(f"num_selected is {self.num_selected} but there are {len(self.indices)} indices")
        if any(a >= b for a, b in zip(self.indices, self.indices[1:], strict=False)):
            raise ValueError("indices are not strictly ascending (unsorted or duplicate)")
        if self.indices[-1] >= self.dataset.num_samples:
            raise ValueError(f"index {self.indices[-1]} is outside the dataset's {self.dataset.num_samples} samples")
        if self.ids is not None and len(self.ids) != self.num_selected:
            raise ValueError(f"{self.num_selected} indices but {len(self.ids)} ids")
        if tuple(self.class_counts) != self.dataset.class_names:
            raise ValueError("class_counts does not name the dataset's classes in label order")
        if self.class_counts and sum(self.class_counts.values()) != self.num_selected:
            raise ValueError("class_counts do not add up to num_selected")
        return self


class Objective(Record):
    """What class weights were learned with.

    Attributes:
        eta, smoothing, excess_decay: see `dcprune.reweighting`.
        clip: whether a sample's excess loss is never below 0.
        steps: updates of the proxy.
        reference_sha256: hash of the reference model's weights.
        held_out: whether the excess was measured on samples that are not in the coreset.
        shared_dropout: whether proxy and reference were scored under dropout, the same in both.
        stratified: whether timesteps were spread evenly within every class.
    """

    eta: Annotated[float, Field(gt=0)]
    smoothing: Annotated[float, Field(ge=0, lt=1)]
    clip: bool
    steps: Annotated[int, Field(gt=0)]
    backend: str
    reference_sha256: Sha256
    held_out: bool = False
    shared_dropout: bool = False
    excess_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    stratified: bool = False


class Diagnostics(Record):
    """How the class weights came about.

    Attributes:
        trajectory: `(step, weights on the simplex)` pairs.
        entropy: entropy of the mean weights divided by ln K, in [0, 1].
        fraction_clipped: share of samples whose loss was below the reference's.
        final_excess: clipped excess loss of every class at the end.
    """

    trajectory: tuple[tuple[int, tuple[float, ...]], ...]
    entropy: Annotated[float, Field(ge=0, le=1 + 1e-9)]
    fraction_clipped: Annotated[float, Field(ge=0, le=1)]
    final_excess: tuple[float, ...]
    warnings: tuple[str, ...] = ()


class ClassWeights(JsonArtifact):
    """Loss weight of every class, with mean 1 over the classes (K times the mean simplex weights)."""

    format: Literal["dcprune.class-weights/1"] = "dcprune.class-weights/1"
    weights: dict[str, Annotated[float, Field(gt=0)]]
    objective: Objective
    diagnostics: Diagnostics

    @model_validator(mode="after")
    def _normalised(self) -> Self:
        if tuple(self.weights) != self.dataset.class_names:
            raise ValueError("weights do not name the dataset's classes in label order")
        mean = math.fsum(self.weights.values()) / max(1, len(self.weights))
        if abs(mean - 1) > 1e-6:
            raise ValueError(f"weights have mean {mean:.6g} over the classes, not 1")
        return self


class Interval(Record):
    """A confidence interval of the value that it belongs to, for what the same measurement gives on average.

    Attributes:
        low, high: its ends.
        level: its confidence, in (0, 1).
        method: `bootstrap` over the generated images, the reference being fixed; or `seeds`, Student's interval for the
            mean over sets of images that were drawn with different seeds.
        num_resamples: of a bootstrap; None over seeds.
        seeds: of the sets of images; none in a bootstrap.
    """

    low: float
    high: float
    level: Annotated[float, Field(gt=0, lt=1)]
    method: Literal["bootstrap", "seeds"]
    num_resamples: Annotated[int, Field(gt=0)] | None = None
    seeds: tuple[Count, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"the interval [{self.low:.6g}, {self.high:.6g}] ends before it starts")
        if (self.method == "bootstrap") != (self.num_resamples is not None):
            raise ValueError("a bootstrap has num_resamples, and nothing else has")
        if (self.method == "seeds") != (len(self.seeds) > 1):
            raise ValueError("an interval over seeds has at least two of them, and nothing else has any")
        return self


class SweepValue(Record):
    """A metric at one of several numbers of generated images: that of the first `num_generated`."""

    num_generated: Annotated[int, Field(gt=0)]
    value: float
    interval: Interval | None = None


class Extrapolation(Record):
    """The limit of a metric for ever more generated images, from the line `value + slope / N` through a sweep."""

    value: float
    slope: float
    interval: Interval | None = None


class MetricValue(Record):
    """One number about generated images, with everything that makes it comparable.

    Attributes:
        value: the number; with several seeds the mean over them.
        num_generated: images that it is about; of each seed.
        num_reference: images that they were compared with; 0 for a metric that needs none, and where a file of
            statistics does not say.
        protocol: extractor, its weights' sha256, resize, reference, and whatever else must agree before two
            values may be compared.
        per_class: the same metric within each class, when it was computed.
        std: standard deviation over the splits or subsets that the metric itself is a mean over (`isc`, `kid`).
        interval: when it was asked for.
        seed_values: the value with every seed, in the order of `interval.seeds`.
        sweep: the value at several numbers of images, ascending; the last is `num_generated`.
        extrapolated: the limit for ever more images, of a sweep of a metric that has one.
        reference_sha256: hash of the reference's features, or of its statistics. It is no part of the protocol: the
            features of the same images differ by rounding from device to device.
    """

    name: str
    value: float
    num_generated: Annotated[int, Field(gt=0)]
    num_reference: Count
    protocol: dict[str, Any]
    per_class: dict[str, float] | None = None
    std: Annotated[float, Field(ge=0)] | None = None
    interval: Interval | None = None
    seed_values: tuple[float, ...] = ()
    sweep: tuple[SweepValue, ...] = ()
    extrapolated: Extrapolation | None = None
    reference_sha256: Sha256 | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        numbers = [each.num_generated for each in self.sweep]
        if numbers and (numbers != sorted(set(numbers)) or numbers[-1] != self.num_generated):
            raise ValueError(f"the sweep over {numbers} images does not ascend to num_generated={self.num_generated}")
        seeds = self.interval.seeds if self.interval is not None else ()
        if len(self.seed_values) != len(seeds):
            raise ValueError(f"{len(self.seed_values)} seed_values of {len(seeds)} seeds")
        return self


class Metrics(JsonArtifact):
    """What `eval` found out about a run, or about images that were there already.

    Attributes:
        dataset: the dataset of the run, else the reference; where that is a file of statistics which names no dataset,
            the images themselves.
        samples: the images that were there already; None for those that a run drew.
        run: `run.json` of the run.
        sampler: how it drew the images.
    """

    format: Literal["dcprune.metrics/1"] = "dcprune.metrics/1"
    metrics: tuple[MetricValue, ...]
    run: InputFile | None
    sampler: dict[str, Any]
    samples: DatasetIdentity | None = None


class Distances(Record):
    """How far a choice of samples is from all of them, in the space of an encoder.

    Attributes:
        frechet: Frechet distance of the two Gaussians.
        precision, recall, density, coverage: shares by k nearest neighbours; see `dcprune.coverage`.
        mean_radius, max_radius: distance of a sample to the nearest chosen one, over all samples.
    """

    frechet: float
    precision: Share
    recall: Share
    density: Annotated[float, Field(ge=0)]
    coverage: Share
    mean_radius: Annotated[float, Field(ge=0)]
    max_radius: Annotated[float, Field(ge=0)]


class ComparedCoreset(Record):
    """One coreset of a comparison.

    Attributes:
        name: the coreset's file, with as many folders as tell it from the others.
        class_entropy: entropy of the kept classes divided by ln K, 1 for equal counts; None with fewer than 2 classes.
        distances: to all samples, when embeddings were given.
        random: the same of random choices of the same size, one for every seed 0, 1, ...
    """

    name: str
    selection: Selection
    num_selected: Annotated[int, Field(gt=0)]
    class_counts: dict[str, Count]
    class_entropy: Annotated[float, Field(ge=0, le=1 + 1e-9)] | None
    distances: Distances | None
    random: tuple[Distances, ...] = ()


class Comparison(JsonArtifact):
    """Coresets of one dataset side by side.

    Attributes:
        jaccard: shared samples over samples in either, for every pair of coresets.
        jaccard_by_chance: what two random choices of the same sizes are expected to have, m1 m2 / N of them shared.
        encoder: the space of the distances.
        num_neighbours: k of precision, recall, density and coverage.
        num_queries: samples whose neighbours were looked at; N unless fewer were asked for.
    """

    format: Literal["dcprune.comparison/1"] = "dcprune.comparison/1"
    coresets: tuple[ComparedCoreset, ...]
    jaccard: tuple[tuple[Share, ...], ...]
    jaccard_by_chance: tuple[tuple[Share, ...], ...]
    encoder: EncoderInfo | None
    num_neighbours: Count
    num_queries: Count

    @model_validator(mode="after")
    def _square(self) -> Self:
        count = len(self.coresets)
        for name, matrix in (("jaccard", self.jaccard), ("jaccard_by_chance", self.jaccard_by_chance)):
            if len(matrix) != count or any(len(row) != count for row in matrix):
                raise ValueError(f"{name} is not a matrix of {count} x {count} coresets")
        return self


class LatentShard(Record):
    """One file of latents: its name, the half-open range of rows it holds, and its hash."""

    file: Annotated[str, Field(pattern=r"^latents-\d{5}-of-\d{5}\.safetensors$")]
    rows: tuple[Count, Count]
    sha256: Sha256


class LatentsRecord(JsonArtifact):
    """`latents.json` of a folder of latents: what was encoded, by what, and into which files.

    A file holds `mean` and `std` of the posterior, float16 [n, F, C, h, w], of images (F = 1) or of images and their
    mirror images (F = 2); unscaled.

    Attributes:
        autoencoder: what it was loaded by.
        autoencoder_sha256: hash of its weights, its scale and its shift.
        scaling_factor, shift_factor: training sees (z - shift) * scale.
        resolution: side of the square images in pixels.
        flips: whether mirror images are there.
        sample_shape: (C, h, w).
        num_rows: encoded samples.
        rows_sha256: hash of their indices, int64; None where they are all of the dataset.
        shards: the files, in order.
    """

    format: Literal["dcprune.latents/1"] = "dcprune.latents/1"
    autoencoder: str
    autoencoder_sha256: Sha256
    scaling_factor: float
    shift_factor: float
    resolution: Annotated[int, Field(gt=0)]
    flips: bool
    sample_shape: tuple[int, int, int]
    num_rows: Annotated[int, Field(gt=0)]
    rows_sha256: Sha256 | None
    shards: Annotated[tuple[LatentShard, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _without_gaps(self) -> Self:
        edges = [0, *(shard.rows[1] for shard in self.shards)]
        if [shard.rows[0] for shard in self.shards] != edges[:-1] or edges[-1] != self.num_rows:
            raise ValueError("the rows of the shards leave gaps or overlap")
        return self


class ComparedMetrics(Record):
    """One file of a comparison of metrics.

    Attributes:
        name: the file's folder, with as many folders as tell it from the others.
        values: by name of the metric.
    """

    name: str
    values: dict[str, MetricValue]


class MetricsComparison(JsonArtifact):
    """Values of the same metrics side by side, all of each measured alike.

    Attributes:
        metrics: their names, in the order in which they first appear.
        columns: the files.
    """

    format: Literal["dcprune.metrics-comparison/1"] = "dcprune.metrics-comparison/1"
    metrics: tuple[str, ...]
    columns: tuple[ComparedMetrics, ...]


class ExportRecord(JsonArtifact):
    """What lies beside the samples of an exported folder: the form that they have, and how many there are."""

    format: Literal["dcprune.export/1"] = "dcprune.export/1"
    form: str
    num_samples: Annotated[int, Field(gt=0)]


class SweepCell(Record):
    """One run of a sweep: what makes it differ from the others, and where its results lie.

    Attributes:
        encoder: registered name; None where the choice needs no embeddings.
        scorer, params: the criterion and its settings; None for a run on the full data.
        ratio: kept fraction, 1 for the full data. Dynamic pruning without a scorer has that of the coreset whose number
            of updates, annealed, it was given.
        weights: whether it was trained with learned class weights.
        anneal, dynamic: see `dcprune.training.config.TrainingConfig`.
        seed: cells that differ in nothing else are repetitions of one another.
        run: its `run.json`.
        metrics: the metrics files that measure it; empty while nothing does.
        cost: what the run and everything before it cost.
    """

    encoder: str | None
    scorer: str | None
    params: dict[str, Any] = {}
    ratio: Annotated[float, Field(gt=0, le=1)]
    weights: bool = False
    anneal: Annotated[float, Field(gt=0, lt=1)] | None = None
    dynamic: str | None = None
    seed: int
    run: InputFile
    metrics: tuple[InputFile, ...] = ()
    cost: tuple[StageCost, ...] = ()

    @model_validator(mode="after")
    def _full_data_keeps_all(self) -> Self:
        if self.scorer is None and self.dynamic is None and self.ratio != 1:
            raise ValueError(f"a cell without a scorer is of the full data, but its ratio is {self.ratio}")
        return self


class SweepResults(JsonArtifact):
    """`results.json` of a sweep: runs on one dataset that differ in how the training set was chosen."""

    format: Literal["dcprune.sweep/1"] = "dcprune.sweep/1"
    cells: tuple[SweepCell, ...]


class RunRecord(JsonArtifact):
    """`run.json` of a run folder: what was trained, on what, and what it cost."""

    format: Literal["dcprune.run/1"] = "dcprune.run/1"
    backend: str
    preset: str | None
    model: dict[str, Any]
    training: dict[str, Any]
    sampling: dict[str, Any]
    num_trained_samples: Annotated[int, Field(gt=0)]
    coreset: InputFile | None
    class_weights: InputFile | None
    step: Count
    total_steps: Annotated[int, Field(gt=0)]
    model_sha256: Sha256 | None
    ledger: tuple[StageCost, ...]
