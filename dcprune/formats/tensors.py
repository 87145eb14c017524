"""Safetensors artifacts: embeddings (a file, or a folder of row shards), classes and scores.

The metadata is the one key `dcprune` holding JSON, because safetensors does not keep the order of several keys and the
same content must give the same bytes.
"""

from __future__ import annotations

import json
import re
import struct
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from safetensors import SafetensorError, safe_open

from dcprune.artifacts import (
    Classes,
    ClassesHeader,
    Embeddings,
    EmbeddingsHeader,
    Record,
    Rows,
    Scores,
    ScoresHeader,
    Sha256,
)
from dcprune.errors import ArtifactError
from dcprune.formats.costs import read_costs, write_costs
from dcprune.formats.documents import (
    MAKERS,
    check_format,
    parse_json,
    validated,
    with_restored_paths,
    with_stored_paths,
)
from dcprune.formats.files import StrPath, atomic_file, atomic_folder, check_input, sha256
from dcprune.formats.streaming import CODES, Blocks, write_tensors

INDEX_FILE = "embeddings.index.json"
INDEX_FORMAT = "dcprune.embeddings-index/1"
SHARD_ROWS = 100_000
_KEY = "dcprune"
_DTYPES = {CODES[name]: name for name in Rows.STORAGE}
_SHARD_NAME = re.compile(r"embeddings-\d{5}-of-\d{5}\.safetensors")
Header = TypeVar("Header", EmbeddingsHeader, ClassesHeader, ScoresHeader)


class Shard(Record):
    """One row shard: its file name, the half-open range of rows it holds, and its hash."""

    file: Annotated[str, Field(pattern=f"^{_SHARD_NAME.pattern}$")]
    rows: tuple[int, int]
    sha256: Sha256


class ShardIndex(Record):
    """`embeddings.index.json`."""

    format: Literal["dcprune.embeddings-index/1"] = "dcprune.embeddings-index/1"
    num_rows: Annotated[int, Field(gt=0)]
    shards: tuple[Shard, ...]


def _header_json(header: EmbeddingsHeader | ClassesHeader | ScoresHeader, folder: Path) -> str:
    return json.dumps(with_stored_paths(header.model_dump(mode="json"), folder), ensure_ascii=False)


def _id_tensors(ids: tuple[str, ...] | None) -> dict[str, NDArray[Any]]:
    if ids is None:
        return {}
    encoded = [each.encode() for each in ids]
    offsets = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
    return {"ids_data": np.frombuffer(b"".join(encoded), dtype=np.uint8), "ids_offsets": offsets}


def _ids(tensors: dict[str, NDArray[Any]], where: str) -> tuple[str, ...] | None:
    if "ids_offsets" not in tensors:
        return None
    data, offsets = tensors["ids_data"].tobytes(), tensors["ids_offsets"].tolist()
    try:
        return tuple(data[start:stop].decode() for start, stop in pairwise(offsets))
    except UnicodeDecodeError as error:
        raise ArtifactError(f"{where} is damaged at ids_data: {error.reason}.") from error


def _columns(
    labels: NDArray[np.int64] | None, indices: NDArray[np.int64], ids: tuple[str, ...] | None
) -> dict[str, NDArray[Any]]:
    columns: dict[str, NDArray[Any]] = {"indices": np.ascontiguousarray(indices), **_id_tensors(ids)}
    if labels is not None:
        columns["labels"] = np.ascontiguousarray(labels)
    return columns


def write_embeddings(
    embeddings: Embeddings, path: StrPath, *, overwrite: bool = False, shard_rows: int = SHARD_ROWS
) -> None:
    """Write embeddings: one file up to `shard_rows` rows, a folder of row shards beyond.

    Raises:
        OutputExists: `path` exists and `overwrite` is false.
    """
    rows = len(embeddings.embeddings)
    if rows <= shard_rows:
        with atomic_file(path, overwrite=overwrite) as temporary:
            _save_rows(embeddings, slice(0, rows), temporary, Path(path).parent)
        write_costs(embeddings.costs, path)
        return
    with atomic_folder(path, overwrite=overwrite) as folder:
        count = -(-rows // shard_rows)
        shards = []
        for number in range(count):
            part = slice(number * shard_rows, min((number + 1) * shard_rows, rows))
            file = folder / f"embeddings-{number:05d}-of-{count:05d}.safetensors"
            _save_rows(embeddings, part, file, Path(path))
            shards.append(Shard(file=file.name, rows=(part.start, part.stop), sha256=sha256(file)))
        index = ShardIndex(num_rows=rows, shards=tuple(shards))
        (folder / INDEX_FILE).write_text(index.model_dump_json(indent=1) + "\n")
    write_costs(embeddings.costs, path)


def _save_rows(embeddings: Embeddings, rows: slice, path: Path, folder: Path) -> None:
    matrix = embeddings.embeddings
    shape = rows.stop - rows.start, matrix.shape[1]
    labels = None if embeddings.labels is None else embeddings.labels[rows]
    ids = None if embeddings.ids is None else embeddings.ids[rows]
    tensors: dict[str, NDArray[Any] | Blocks] = {
        "embeddings": Blocks(matrix.dtype, shape, matrix.stored_blocks(rows)),
        **_columns(labels, embeddings.indices[rows], ids),
    }
    write_tensors(path, tensors, {_KEY: _header_json(embeddings.header, folder)})


def write_scores(scores: Scores, path: StrPath, *, overwrite: bool = False) -> None:
    """Write scores.

    Raises:
        OutputExists: `path` exists and `overwrite` is false.
    """
    with atomic_file(path, overwrite=overwrite) as temporary:
        tensors: dict[str, NDArray[Any] | Blocks] = {
            "scores": scores.scores,
            **_columns(scores.labels, scores.indices, scores.ids),
        }
        write_tensors(temporary, tensors, {_KEY: _header_json(scores.header, Path(path).parent)})
    write_costs(scores.costs, path)


def write_classes(classes: Classes, path: StrPath, *, overwrite: bool = False) -> None:
    """Write pseudo-classes.

    Raises:
        OutputExists: `path` exists and `overwrite` is false.
    """
    with atomic_file(path, overwrite=overwrite) as temporary:
        tensors: dict[str, NDArray[Any] | Blocks] = {"labels": classes.labels, "centroids": classes.centroids}
        write_tensors(temporary, tensors, {_KEY: _header_json(classes.header, Path(path).parent)})


def map_matrix(path: Path, name: str, where: str) -> tuple[NDArray[Any], str]:
    """One matrix of a safetensors file that `safe_open` has validated, memory-mapped; and its dtype."""
    values, dtype = map_tensor(path, name, where)
    if values.ndim != 2:
        raise ArtifactError(f"{where} is damaged at {name}: {dtype} of shape {list(values.shape)}.")
    return values, dtype


def is_whole(path: Path) -> bool:
    """Whether a file is there and has the length that its safetensors header says."""
    try:
        with safe_open(path, "numpy"):
            return True
    except (OSError, SafetensorError):
        return False


def map_tensor(path: Path, name: str, where: str) -> tuple[NDArray[Any], str]:
    """One tensor of a safetensors file that `safe_open` has validated, memory-mapped; and its dtype.

    Raises:
        ArtifactError: no floating dtype that `Rows` stores, or an empty tensor.
        KeyError: no such tensor.
    """
    with path.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        entry = json.loads(stream.read(length))[name]
    if entry["dtype"] not in _DTYPES or 0 in entry["shape"]:
        raise ArtifactError(f"{where} is damaged at {name}: {entry['dtype']} of shape {entry['shape']}.")
    start = 8 + length + entry["data_offsets"][0]
    storage = Rows.STORAGE[_DTYPES[entry["dtype"]]]
    values = np.memmap(path, dtype=storage, mode="r", offset=start, shape=tuple(entry["shape"]))
    return values, _DTYPES[entry["dtype"]]


def _read(path: Path, model: type[Header], matrix: str) -> tuple[Header, dict[str, NDArray[Any]]]:
    """Header and small tensors of a file; the tensor called `matrix` is left out.

    Raises:
        ArtifactError: not a safetensors file, or not that kind of artifact.
    """
    expected = str(model.model_fields["format"].default)
    where = str(path)
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys() if name != matrix}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ArtifactError(f"{where} is not a safetensors file, or is truncated or corrupt: {error}.") from error
    if _KEY not in metadata:
        raise ArtifactError(f"{where} is a safetensors file, but not a dcprune artifact.")
    document = parse_json(metadata[_KEY], where)
    check_format(document, expected, where)
    header = validated(model, with_restored_paths(document, path.parent), where)
    needed = {
        "indices": np.int64,
        "labels": np.int64,
        "ids_data": np.uint8,
        "ids_offsets": np.int64,
        "scores": np.float64,
    }
    for name, tensor in tensors.items():
        if name not in needed or tensor.dtype != needed[name] or tensor.ndim != 1:
            raise ArtifactError(f"{where} is damaged at {name}: {tensor.dtype} of shape {list(tensor.shape)}.")
    return header, tensors


def _column(tensors: dict[str, NDArray[Any]], name: str, path: Path) -> NDArray[Any]:
    if name not in tensors:
        raise ArtifactError(f"{path} is damaged: it has no {name}.")
    return tensors[name]


def read_embeddings(path: StrPath) -> Embeddings:
    """Read embeddings, a file or a folder of shards, memory-mapped.

    Raises:
        MissingInput: no such file.
        ArtifactError: wrong kind, newer version, damaged, or not finite.
    """
    path = check_input(path, "The embeddings file", f"`{MAKERS['embeddings']}` makes one.")
    files = [path] if path.is_file() else _shard_files(path)
    headers, tensors, parts, dtypes = [], [], [], []
    for file in files:
        header, columns = _read(file, EmbeddingsHeader, "embeddings")
        values, dtype = _matrix(file, "embeddings")
        _column(columns, "indices", file)
        headers.append(header)
        tensors.append(columns)
        parts.append(values)
        dtypes.append(dtype)
    if any(header != headers[0] for header in headers):
        raise ArtifactError(f"{path}: the shards come from different runs of embed. Make them again.")
    labels = [columns["labels"] for columns in tensors if "labels" in columns]
    ids = [_ids(columns, str(file)) for columns, file in zip(tensors, files, strict=True)]
    try:
        return Embeddings(
            embeddings=Rows(parts, dtypes[0]),
            labels=np.concatenate(labels) if labels else None,
            indices=np.concatenate([columns["indices"] for columns in tensors]),
            ids=None if None in ids else tuple(each for part in ids if part for each in part),
            encoder=headers[0].encoder,
            dataset=headers[0].dataset,
            provenance=headers[0].provenance,
            skipped=headers[0].skipped,
            origin=str(path),
            costs=read_costs(path),
        )
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error}") from error


def _matrix(file: Path, name: str) -> tuple[NDArray[Any], str]:
    try:
        return map_matrix(file, name, str(file))
    except KeyError as error:
        raise ArtifactError(f"{file} is damaged: it has no {name}.") from error


def read_shard_index(folder: Path) -> ShardIndex:
    """The index of a folder of embedding shards.

    Raises:
        ArtifactError: it is absent or damaged.
    """
    index_path = folder / INDEX_FILE
    if not index_path.is_file():
        raise ArtifactError(f"{folder} is a folder without {INDEX_FILE}: not sharded embeddings, or unfinished.")
    document = parse_json(index_path.read_bytes(), str(index_path))
    check_format(document, INDEX_FORMAT, str(index_path))
    index = validated(ShardIndex, document, str(index_path))
    ranges = [shard.rows for shard in index.shards]
    joined = [0, *(stop for _, stop in ranges)]
    if [start for start, _ in ranges] != joined[:-1] or joined[-1] != index.num_rows:
        raise ArtifactError(f"{index_path} is damaged at shards: their rows leave gaps or overlap.")
    return index


def _shard_files(folder: Path) -> list[Path]:
    files = [folder / shard.file for shard in read_shard_index(folder).shards]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise ArtifactError(f"{folder} lacks {', '.join(missing)}.")
    return files


def read_scores(path: StrPath) -> Scores:
    """Read scores.

    Raises:
        MissingInput: no such file.
        ArtifactError: wrong kind, newer version, damaged, or not finite.
    """
    path = check_input(path, "The scores file", f"`{MAKERS['scores']}` makes one.")
    if path.is_dir():
        raise ArtifactError(f"{path} is a folder, not a scores file.")
    header, tensors = _read(path, ScoresHeader, matrix="")
    try:
        return Scores(
            scores=_column(tensors, "scores", path),
            labels=tensors.get("labels"),
            indices=_column(tensors, "indices", path),
            ids=_ids(tensors, str(path)),
            scorer=header.scorer,
            keep=header.keep,
            ratio=header.ratio,
            dataset=header.dataset,
            provenance=header.provenance,
            origin=str(path),
            costs=read_costs(path),
        )
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error}") from error


def read_classes(path: StrPath) -> Classes:
    """Read pseudo-classes.

    Raises:
        MissingInput: no such file.
        ArtifactError: wrong kind, newer version or damaged.
    """
    path = check_input(path, "The file of pseudo-classes", f"`{MAKERS['classes']}` makes one.")
    if path.is_dir():
        raise ArtifactError(f"{path} is a folder, not a file of pseudo-classes.")
    header, tensors = _read(path, ClassesHeader, matrix="centroids")
    centroids, dtype = _matrix(path, "centroids")
    if dtype != "float32":
        raise ArtifactError(f"{path} is damaged at centroids: {dtype}, not float32.")
    try:
        return Classes(
            labels=_column(tensors, "labels", path),
            centroids=centroids,
            class_names=header.class_names,
            encoder=header.encoder,
            seed=header.seed,
            inertia=header.inertia,
            dataset=header.dataset,
            provenance=header.provenance,
            origin=str(path),
        )
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error}") from error
