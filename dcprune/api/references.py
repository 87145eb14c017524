"""What images are compared with: a dataset, whose features are cached, or statistics from a file."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dcprune import formats
from dcprune.api.generation import TrainedRun, open_run
from dcprune.api.measuring import Bench, LoadedEncoder
from dcprune.artifacts import DatasetIdentity, EncodedReference, EncoderInfo, Provenance, ReferenceStatistics
from dcprune.datasets.npz import IMAGES, STATISTICS, NpzBatch, read_arrays
from dcprune.embedding import Loader, loader
from dcprune.embedding.loading import Images
from dcprune.errors import ArtifactError, DatasetError
from dcprune.evaluation import Reference
from dcprune.formats.documents import RUN_FILE
from dcprune.interfaces import DatasetSource, Features, FilesOnDisk, Gaussian
from dcprune.moments import moments
from dcprune.sources import NPZ_SUFFIX, identify, open_dataset, open_for

StrPath = str | os.PathLike[str]

_CACHE_VERSION = 1
_LARGEST_CACHED = 2 << 30  # bytes of features; of more only the moments are kept
_ROWS = 1024
STATISTICS_SUFFIX = ".safetensors"
# ADM's reference batches carry the statistics of more images than they hold, by TensorFlow's own graph.
_ADM_SETTINGS = {"mode": "legacy_tensorflow", "layer": "pool3"}


@dataclass(frozen=True)
class RealImages:
    """A dataset of real images, at the resolution of a run where there is one.

    Attributes:
        run: prepares the images as its backend does.
        stored: mean and covariance that came with the images, as in ADM's reference batches.
    """

    source: DatasetSource
    identity: DatasetIdentity
    run: TrainedRun | None = None
    stored: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None

    @classmethod
    def of(cls, source: DatasetSource, run: TrainedRun | None = None) -> RealImages:
        """A dataset by its fingerprint; that of a NumPy archive, whose samples have no names, is of its content.

        Raises:
            DatasetError: fewer than two images.
        """
        if len(source) < 2:
            raise DatasetError(f"The reference {source.uri!r} has {len(source)} images; a metric needs at least 2.")
        if not isinstance(source, NpzBatch):
            return cls(source, identify(source), run)
        path = Path(source.uri).expanduser()
        holds_moments = all(each is not None for each in read_arrays(path, *STATISTICS))
        return cls(source, identify(source, content=True), run, formats.read_moments(path) if holds_moments else None)

    @classmethod
    def of_run(cls, run: TrainedRun, data_dir: Path | None, split: str | None = None) -> RealImages:
        """What the run was trained on, or another split of it."""
        return cls.of(open_for(run.record.dataset, data_dir=data_dir, split=split), run)

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.source.class_names

    def images(self) -> Loader:
        """How the images are read."""
        if self.run is None:
            return loader(self.source, torch.device("cpu"))
        # Not `prepare`, with which a latent backend would encode every image.
        stored, to_resolution = loader(self.source, torch.device("cpu")), self.run.backend.to_resolution

        def resized(images: torch.Tensor) -> torch.Tensor:
            return to_resolution(images.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

        def decode(found: Any) -> Images:
            images = stored.decode(found)
            if isinstance(images, torch.Tensor):
                return resized(images)
            return [each if isinstance(each, DatasetError) else resized(each[None])[0] for each in images]

        return Loader(decode, stored.read)

    def protocol(self, images: Loader) -> dict[str, Any]:
        """The part of a protocol that is about these images."""
        return {
            "reference_fingerprint": self.identity.fingerprint,
            "reference_split": self.identity.split,
            "reference_size": image_size(images),
            "reference_prepared_by": "nothing" if self.run is None else self.run.record.backend,
            "reference_mirrored": False,
        }

    def spaces(
        self, bench: Bench, needs: Needs, provenance: Provenance
    ) -> tuple[dict[int, EncodedReference], dict[str, Any]]:
        """The images by position of the encoder, from the cache where they are there; and their protocol.

        Args:
            bench: the encoders.
            needs: which of them.
            provenance: of what is put into the cache.

        Raises:
            DatasetError: an image cannot be read.
        """
        images = self.images()
        protocol = self.protocol(images)
        spaces = self.cached(bench, needs, protocol)
        absent = [each for each in needs.positions if each not in spaces]
        if absent:
            rows = np.arange(len(self.source))
            encoded = bench.encode(images, rows, self.source.labels, "encode the reference", positions=absent)
            for each in absent:
                spaces[each] = _space(encoded[each])
                path = self._cache_path(bench, bench.encoders[each], protocol)
                self._store(bench, path, spaces[each], protocol, provenance)
        return spaces, protocol

    def cached(self, bench: Bench, needs: Needs, protocol: Mapping[str, Any]) -> dict[int, EncodedReference]:
        """What the caches of all processes hold of the images, by position of the encoder.

        Args:
            bench: the encoders.
            needs: which of them.
            protocol: of the images.
        """
        paths = {each: self._cache_path(bench, bench.encoders[each], protocol) for each in needs.positions}
        found = {each: _cached(path, each in needs.with_features) for each, path in paths.items()}
        everywhere = {each: all(bench.team.gather(space is not None)) for each, space in found.items()}
        return {each: space for each, space in found.items() if space is not None and everywhere[each]}

    def sides(self, spaces: Mapping[int, EncodedReference]) -> dict[int, Reference]:
        """What metrics take, by position of the encoder."""
        return {each: self._side(space) for each, space in spaces.items()}

    def _side(self, space: EncodedReference) -> Reference:
        count = len(self.source)
        side = _side(space, self.source.labels, count)
        if self.stored is None or space.encoder.name != "inceptionv3-fid" or space.encoder.settings != _ADM_SETTINGS:
            return side
        return Reference(side.features, Gaussian(*self.stored, 0), from_elsewhere=True)

    def statistics(
        self, spaces: Sequence[EncodedReference], protocol: Mapping[str, Any], provenance: Provenance
    ) -> ReferenceStatistics:
        """These images as an artifact."""
        return ReferenceStatistics(self.identity, dict(protocol), self.source.labels, tuple(spaces), provenance)

    def _cache_path(self, bench: Bench, loaded: LoadedEncoder, protocol: Mapping[str, Any]) -> Path:
        key = [
            _CACHE_VERSION,
            protocol,
            self.identity.fingerprint_method,
            _content_state(self.source),
            None if self.run is None else self.run.record.model,
            loaded.info.model_dump(mode="json", exclude={"details", "weights"}),
        ]
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        return bench.context.cache_dir / "reference" / f"{digest}{STATISTICS_SUFFIX}"

    def _store(
        self, bench: Bench, path: Path, space: EncodedReference, protocol: Mapping[str, Any], provenance: Provenance
    ) -> None:
        if not bench.team.is_main:
            return
        kept = space
        if space.features is not None and space.features.nbytes > _LARGEST_CACHED:
            kept = EncodedReference(space.encoder, space.mean, space.covariance, None)
        formats.write_reference(self.statistics([kept], protocol, provenance), path, overwrite=True)


@dataclass(frozen=True)
class StoredStatistics:
    """A file that `export_reference` wrote."""

    statistics: ReferenceStatistics

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.statistics.dataset.class_names

    def sides(self, bench: Bench, needs: Needs) -> dict[int, Reference]:
        """What metrics take, by position of the encoder.

        Raises:
            ArtifactError: the file holds no statistics of one of the encoders.
        """
        count = self.statistics.dataset.num_samples
        return {
            each: _side(self._space(bench.encoders[each].info), self.statistics.labels, count)
            for each in needs.positions
        }

    def _space(self, info: EncoderInfo) -> EncodedReference:
        wanted = _identity(info)
        for space in self.statistics.spaces:
            if _identity(space.encoder) == wanted:
                return space
        there = []
        for space in self.statistics.spaces:
            own = _identity(space.encoder)
            unlike = [name for name, value in wanted.items() if own[name] != value]
            there.append(f"{space.encoder.name} ({'; '.join(f'{each} {own[each]!r}' for each in unlike)})")
        raise ArtifactError(
            f"{self.statistics.origin} holds no statistics of {info.name} with "
            f"{', '.join(f'{name} {value!r}' for name, value in wanted.items() if name != 'name')}, only of "
            f"{', '.join(there)}."
        )


@dataclass(frozen=True)
class StoredMoments:
    """An `.npz` with `mu` and `sigma`, as pytorch-fid and clean-fid keep them; it does not say of what."""

    path: Path
    gaussian: Gaussian

    def sides(self, bench: Bench, needs: Needs) -> dict[int, Reference]:
        """What metrics take, by position of the encoder.

        Raises:
            ArtifactError: the statistics have another width than an encoder.
        """
        dim = len(self.gaussian.mean)
        for each in needs.positions:
            info = bench.encoders[each].info
            if info.dim != dim:
                raise ArtifactError(f"{self.path} has {dim} dimensions, and {info.name} has {info.dim}.")
            bench.context.progress.warn(
                f"{self.path} does not say by which network and resizing it was made; it is taken to be of {info.name} "
                f"with {info.settings}."
            )
        return {each: Reference(gaussian=self.gaussian, from_elsewhere=True) for each in needs.positions}


@dataclass(frozen=True)
class Needs:
    """Encoders that a reference is needed in, by position.

    Attributes:
        positions: all of them.
        with_features: those in which the moments alone would not do.
    """

    positions: tuple[int, ...]
    with_features: frozenset[int]


def open_reference(
    reference: StrPath, split: str | None, data_dir: Path | None
) -> RealImages | StoredStatistics | StoredMoments:
    """A dataset, a file of `export_reference`, statistics of clean-fid or pytorch-fid, or what a run was trained on.

    Raises:
        MissingInput, DatasetError, UnknownName: no such images.
        ArtifactError: a damaged file.
    """
    path = Path(reference).expanduser()
    if path.suffix.lower() == STATISTICS_SUFFIX:
        return StoredStatistics(formats.read_reference(path))
    if path.is_file() and path.suffix.lower() == NPZ_SUFFIX and read_arrays(path, IMAGES)[0] is None:
        return StoredMoments(path, Gaussian(*formats.read_moments(path), 0))
    if (path / RUN_FILE).is_file():
        return RealImages.of_run(open_run(path), data_dir, split)
    return RealImages.of(open_dataset(str(reference), split=split or "train", data_dir=data_dir))


def image_size(images: Loader) -> str:
    """Width, height and channels of the first image.

    Raises:
        DatasetError: it cannot be read.
    """
    row = np.zeros(1, dtype=np.int64)
    first = images.decode(row if images.read is None else images.read(row))[0]
    if isinstance(first, DatasetError):
        raise first
    height, width, channels = first.shape
    return f"{width}x{height}x{channels}"


def _identity(info: EncoderInfo) -> dict[str, Any]:
    """What makes two encoders give the same vectors."""
    names = ("name", "weights_sha256", "layer", "settings", "preprocessing")
    dumped: dict[str, Any] = json.loads(json.dumps(info.model_dump(mode="json")))
    return {name: dumped[name] for name in names}


def _space(features: Features) -> EncodedReference:
    mean, covariance, _ = moments(features.features)
    return EncodedReference(features.encoder, mean, covariance, features.features)


def _side(space: EncodedReference, labels: NDArray[np.int64] | None, count: int) -> Reference:
    features = None if space.features is None else Features(space.features, labels, space.encoder)
    return Reference(features, Gaussian(space.mean, space.covariance, count))


def _cached(path: Path, with_features: bool) -> EncodedReference | None:
    """What the cache holds, if that is enough; a damaged file is as good as none."""
    if not path.is_file():
        return None
    try:
        (space,) = formats.read_reference(path).spaces
    except (ArtifactError, ValueError):
        return None
    return None if with_features and space.features is None else space


def _content_state(source: DatasetSource) -> str:
    """What changes when images are replaced by others of the same names and sizes: their bytes, or times of files."""
    digest = hashlib.sha256()
    if source.array is not None:
        for start in range(0, len(source), _ROWS):
            digest.update(np.ascontiguousarray(source.array[start : start + _ROWS]).data)
    elif isinstance(source, FilesOnDisk):
        for index in range(len(source)):
            digest.update(str(source.path(index).stat().st_mtime_ns).encode())
    return digest.hexdigest()
