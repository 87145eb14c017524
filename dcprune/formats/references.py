"""Reference statistics: dcprune's own files (safetensors), and mean and covariance as clean-fid and pytorch-fid keep
them (`mu` and `sigma` in an `.npz`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from dcprune.artifacts import EncodedReference, ReferenceHeader, ReferenceStatistics
from dcprune.datasets.npz import STATISTICS, read_arrays
from dcprune.errors import ArtifactError, DatasetError
from dcprune.formats.documents import check_format, parse_json, validated, with_restored_paths, with_stored_paths
from dcprune.formats.files import StrPath, atomic_file, check_input
from dcprune.formats.streaming import Blocks, write_tensors
from dcprune.formats.tensors import map_matrix

_KEY = "dcprune"
_FORMAT = str(ReferenceHeader.model_fields["format"].default)


def write_reference(reference: ReferenceStatistics, path: StrPath, *, overwrite: bool = False) -> None:
    """Write reference statistics: `labels`, and `0.mean`, `0.covariance`, `0.features` of the first encoder, and so on.

    Raises:
        OutputExists: `path` exists and `overwrite` is false.
    """
    tensors: dict[str, NDArray[Any] | Blocks] = {}
    if reference.labels is not None:
        tensors["labels"] = np.ascontiguousarray(reference.labels)
    for number, space in enumerate(reference.spaces):
        tensors[f"{number}.mean"] = space.mean
        tensors[f"{number}.covariance"] = space.covariance
        if space.features is not None:
            tensors[f"{number}.features"] = space.features
    with atomic_file(path, overwrite=overwrite) as temporary:
        header = with_stored_paths(reference.header.model_dump(mode="json"), Path(path).parent)
        write_tensors(temporary, tensors, {_KEY: json.dumps(header, ensure_ascii=False)})


def read_reference(path: StrPath) -> ReferenceStatistics:
    """Read reference statistics; features are memory-mapped.

    Raises:
        MissingInput: no such file.
        ArtifactError: wrong kind, newer version or damaged.
    """
    path = check_input(path, "The file of reference statistics", "`dcprune eval --export-reference` makes one.")
    where = str(path)
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            names = set(file.keys())
            small = {name: file.get_tensor(name) for name in names if not name.endswith(".features")}
    except (SafetensorError, OSError) as error:
        raise ArtifactError(f"{where} is not a safetensors file, or is truncated or corrupt: {error}.") from error
    if _KEY not in metadata:
        raise ArtifactError(f"{where} is a safetensors file, but not a dcprune artifact.")
    document = parse_json(metadata[_KEY], where)
    check_format(document, _FORMAT, where)
    header = validated(ReferenceHeader, with_restored_paths(document, path.parent), where)
    spaces = []
    for number, encoder in enumerate(header.encoders):
        moments = [_checked(small, f"{number}.{name}", np.float64, where) for name in ("mean", "covariance")]
        features = f"{number}.features"
        mapped = map_matrix(path, features, where)[0] if features in names else None
        if mapped is not None and mapped.dtype != np.float32:
            raise ArtifactError(f"{where} is damaged at {features}: {mapped.dtype}, not float32.")
        spaces.append(EncodedReference(encoder, moments[0], moments[1], mapped))
    labels = _checked(small, "labels", np.int64, where) if "labels" in small else None
    try:
        return ReferenceStatistics(header.dataset, header.images, labels, tuple(spaces), header.provenance, where)
    except ArtifactError as error:
        raise ArtifactError(f"{where}: {error}") from error


def read_moments(path: StrPath) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean [D] and covariance [D, D], as float64, of a file of clean-fid, pytorch-fid or ADM; nothing is unpickled.

    Raises:
        MissingInput: no such file.
        ArtifactError: it is no such file, or damaged.
    """
    path = check_input(path, "The file of statistics")
    try:
        mean, covariance = read_arrays(path, *STATISTICS)
    except DatasetError as error:
        raise ArtifactError(f"{path} is not a NumPy archive of mu and sigma, or is damaged: {error}") from error
    if mean is None or covariance is None:
        raise ArtifactError(f"{path} has no {STATISTICS[mean is not None]}: statistics are mu and sigma.")
    mean, covariance = np.atleast_1d(mean), np.atleast_2d(covariance)
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise ArtifactError(f"{path}: mu has shape {mean.shape} and sigma {covariance.shape}, not [D] and [D, D].")
    if not all(np.issubdtype(each.dtype, np.floating) and np.isfinite(each).all() for each in (mean, covariance)):
        raise ArtifactError(f"{path}: mu or sigma holds NaN, infinity, or no floating-point numbers.")
    return mean.astype(np.float64), covariance.astype(np.float64)


def _checked(tensors: dict[str, NDArray[Any]], name: str, dtype: type[np.generic], where: str) -> NDArray[Any]:
    if name not in tensors:
        raise ArtifactError(f"{where} is damaged: it has no {name}.")
    if tensors[name].dtype != dtype:
        raise ArtifactError(f"{where} is damaged at {name}: {tensors[name].dtype}, not {dtype.__name__}.")
    return tensors[name]
