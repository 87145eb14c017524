"""Datasets of Hugging Face: from the hub, saved to disk, or as parquet files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dcprune.datasets.columns import class_names_of, find_column, find_split, label_name, labels_of, require_column
from dcprune.datasets.decode import decode
from dcprune.datasets.inside import Inside, is_tidy
from dcprune.datasets.tables import EXTRA
from dcprune.errors import DatasetError, MissingInput, OptionError
from dcprune.interfaces import DatasetRequest

if TYPE_CHECKING:
    import datasets
    import pyarrow

# What `datasets` may read a folder or repository with. Its other readers make no images, or have a source of their own.
_BUILDERS = ("arrow", "imagefolder", "parquet")
_LABEL_TYPES = ("bool", "string", "large_string", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32")
_TEXT_TYPES = ("string", "large_string")


class HuggingFace:
    """`hf:ORG/NAME`, `hf:ORG/NAME/CONFIG`, with `@REVISION` behind either; or `hf:PATH` of what lies on this machine: a
    folder that `save_to_disk` wrote, a folder or repository of parquet files, Arrow files or images, or one parquet
    file (the split `train`).

    The column of images is the only one of that type, labels are the only `ClassLabel`, else a column that is called
    `label`, `class` or alike, captions are the texts in `caption`, `text` or alike; a user says so otherwise.

    - ids: the file names that are stored with the images, where all are there, distinct, and such as may lie in a
      folder (an export makes files of them), else none.
    - labels and classes: those of a `ClassLabel` in its order; of other values the distinct ones of all splits, sorted,
      as numbers where all are integers. No classes where no sample of the split has one.
    - captions: read when asked for; an absent one is an empty caption.
    - access: in any order, from memory-mapped Arrow files. `datasets` keeps them in its cache (`HF_DATASETS_CACHE`),
      into which parquet files are unpacked first. Images are stored bytes until they are asked for.

    Scripts that come with a dataset are never run: `datasets` refuses them since version 4. An image that is a path
    must lie in the folder of the dataset.

    Raises:
        MissingInput: no such path.
        OptionError: several columns may be meant.
        DatasetError: `datasets` is not installed; it cannot be fetched or read; no such split; no images; a label is
            missing; a path leads out of the folder.
    """

    takes_columns = ("image", "label", "caption")
    array = None
    encoded = True
    streaming = False

    def __init__(self, request: DatasetRequest) -> None:
        self.uri = f"hf:{request.location}{request.query}"
        self.split = request.split
        splits, folder = _open(request, self.uri)
        name = find_split(request.split, splits, repr(self.uri))
        data = splits[name]
        if len(data) == 0:
            raise DatasetError(f"The split {name!r} of {self.uri!r} holds no images.")
        image = _image_column(data.features, request.columns, repr(self.uri))
        label = _label_column(data.features, request.columns, repr(self.uri))
        texts = [
            column
            for column, feature in data.features.items()
            if column not in (image, label) and getattr(feature, "dtype", None) in _TEXT_TYPES
        ]
        caption = find_column("caption", texts, request.columns, repr(self.uri))
        self.captions = None if caption is None else TextColumn(data.data.column(caption))
        self.labels, self.class_names = _classes(splits, name, label, self.uri)
        self.table = data
        self._images = _images(data, image, self.uri)
        self._files = _Files.of(self._images, folder, self.uri)
        self.sizes = self._files.sizes
        self.ids = self._files.ids

    def __len__(self) -> int:
        return len(self._images)

    def image(self, index: int) -> NDArray[np.uint8]:
        """uint8 [H, W, 3]; see `dcprune.datasets.decode.decode`."""
        return decode(self.content(index), self._name(index))

    def content(self, index: int) -> bytes:
        """The stored bytes of an image file.

        Raises:
            DatasetError: there are none, or its file cannot be read.
        """
        content = self._images[index]["bytes"].as_py()
        if content is not None:
            found: bytes = content
            return found
        path = self._files.paths.get(index)
        if path is None:
            raise DatasetError(
                f"The image {self._name(index)!r} of {self.uri!r} is empty: it has no bytes and no path."
            )
        try:
            return path.read_bytes()
        except OSError as error:
            raise DatasetError(f"Cannot read {str(path)!r}: {error.strerror}.") from error

    def _name(self, index: int) -> str:
        return str(index) if self.ids is None else self.ids[index]


class TextColumn(Sequence[str]):
    """Texts of an Arrow column, read when asked for; null is an empty text."""

    def __init__(self, column: pyarrow.ChunkedArray) -> None:
        self.column = column

    def __len__(self) -> int:
        return len(self.column)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return TextColumn(self.column[index])
        return self.column[int(index)].as_py() or ""


class _Files(NamedTuple):
    """Names, sizes and, where the bytes are not stored with them, paths of N images."""

    ids: tuple[str, ...] | None
    sizes: NDArray[np.int64]
    paths: Mapping[int, Path]

    @classmethod
    def of(cls, images: pyarrow.ChunkedArray, folder: Path, uri: str) -> _Files:
        """Look at what is stored beside the bytes.

        Raises:
            DatasetError: a path leads out of the folder, or to no file.
        """
        import pyarrow.compute as pc

        stored = pc.binary_length(pc.struct_field(images, "bytes"))
        sizes = pc.fill_null(stored, 0).to_numpy().astype(np.int64)
        names = pc.struct_field(images, "path").to_pylist()
        inside = Inside(folder)
        paths = {}
        for row in np.flatnonzero(pc.is_null(stored).to_numpy()).tolist():
            if names[row] is None:
                continue
            try:
                names[row] = inside.name(names[row])
                size = inside.size(names[row])
            except DatasetError as error:
                raise DatasetError(f"{uri!r} row {row + 1}: {error}.") from error
            if size is None:
                raise DatasetError(f"{uri!r} row {row + 1}: the file {str(folder / names[row])!r} is not there.")
            paths[row], sizes[row] = folder / names[row], size
        usable = all(name and is_tidy(name) for name in names) and len(set(names)) == len(names)
        return cls(tuple(names) if usable else None, sizes, paths)


def _open(request: DatasetRequest, uri: str) -> tuple[Mapping[str, datasets.Dataset], Path]:
    """All splits, and the folder in which their files lie."""
    try:
        import datasets  # noqa: F401 - is it there?
    except ImportError as error:
        raise DatasetError(f"{uri!r} needs the package datasets: {EXTRA}.") from error
    path = Path(request.location).expanduser()
    local = path.exists()
    if not local and (request.location.startswith((".", "/", "~")) or path.suffix in (".parquet", ".arrow")):
        raise MissingInput(f"{request.location!r} does not exist.")
    if local and any((path / name).is_file() for name in ("state.json", "dataset_dict.json")):
        with _explained(request, local):
            return _saved(path, request.split), path
    with _explained(request, local):
        builder = _local_builder(path) if local else _hub_builder(request)
        _check_builder(builder, path if local else None)
    if builder.config.data_files:
        find_split(request.split, [str(each) for each in builder.config.data_files], repr(uri))
    with _explained(request, local):
        if not local and not request.download and not Path(builder.cache_dir).is_dir():
            raise DatasetError("it is not in the cache, and nothing is downloaded for this command")
        builder.download_and_prepare()
        splits: Mapping[str, datasets.Dataset] = builder.as_dataset()
    return splits, _folder(path) if local else _fetched_to(builder)


@contextmanager
def _explained(request: DatasetRequest, local: bool) -> Iterator[None]:
    """Turn whatever is raised into an error that names the dataset and the fix."""
    try:
        yield
    except Exception as error:  # datasets, huggingface_hub, pyarrow and httpx share no base
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        fix = "" if local else _by_hand(request)
        raise DatasetError(f"'hf:{request.location}' cannot be opened: {reason}.{fix}") from error


def _folder(path: Path) -> Path:
    return path if path.is_dir() else path.parent


def _fetched_to(builder: datasets.DatasetBuilder) -> Path:
    """Where the images of a repository lie: as they were fetched, or unpacked from an archive."""
    import datasets
    from huggingface_hub.constants import HF_HUB_CACHE

    unpacked = Path(datasets.config.EXTRACTED_DATASETS_PATH)
    files = (Path(str(file)) for each in (builder.config.data_files or {}).values() for file in each)
    return unpacked if any(file.is_relative_to(unpacked) for file in files) else Path(HF_HUB_CACHE)


def _by_hand(request: DatasetRequest) -> str:
    repo, _, revision = request.location.partition("@")
    name = "/".join(repo.split("/")[:2])
    chosen = f" --revision {revision}" if revision else ""
    return (
        f" Without a network (or with HF_HUB_OFFLINE): fetch it elsewhere with 'hf download {name} --repo-type dataset"
        f"{chosen} --local-dir FOLDER', bring that folder here, and name it 'hf:FOLDER'."
    )


def _saved(path: Path, split: str) -> Mapping[str, datasets.Dataset]:
    """What `save_to_disk` wrote; a dataset without splits stands for its own, or for `train`."""
    import datasets

    for state in path.rglob("state.json"):
        for file in json.loads(state.read_text(encoding="utf-8"))["_data_files"]:
            Inside(path).name(str((state.parent / file["filename"]).absolute()))
    found = datasets.load_from_disk(str(path), keep_in_memory=False)
    if isinstance(found, datasets.DatasetDict):
        splits: Mapping[str, datasets.Dataset] = found
        return splits
    return {split if str(found.split) == split else "train": found}


def _local_builder(path: Path) -> datasets.DatasetBuilder:
    import datasets

    if path.is_dir():
        return datasets.load_dataset_builder(str(path.absolute()))
    if path.suffix.lower() != ".parquet":
        raise DatasetError("it is a file, but no .parquet")
    return datasets.load_dataset_builder("parquet", data_files={"train": str(path.absolute())})


def _hub_builder(request: DatasetRequest) -> datasets.DatasetBuilder:
    import datasets

    repo, _, revision = request.location.partition("@")
    parts = repo.split("/")
    if len(parts) > 3 or not all(parts):
        raise DatasetError("a dataset on the hub is called ORG/NAME, ORG/NAME/CONFIG or ORG/NAME@REVISION")
    config = parts[2] if len(parts) == 3 else None
    return datasets.load_dataset_builder("/".join(parts[:2]), config, revision=revision or None)


def _check_builder(builder: datasets.DatasetBuilder, path: Path | None) -> None:
    kind = type(builder).__module__.rpartition(".")[2]
    if kind not in _BUILDERS:
        known = ", ".join(_BUILDERS)
        raise DatasetError(f"its files are of the kind {kind!r}, not {known} (tar archives are opened as wds:)")
    if path is not None:
        inside = Inside(_folder(path))
        for files in (builder.config.data_files or {}).values():
            for file in files:
                inside.name(str(file))


def _image_column(features: Mapping[str, Any], given: Mapping[str, str], uri: str) -> str:
    import datasets

    typed = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    if "image" not in given and len(typed) == 1:
        return typed[0]
    return require_column("image", list(features) if "image" in given else typed or list(features), given, uri)


def _label_column(features: Mapping[str, Any], given: Mapping[str, str], uri: str) -> str | None:
    import datasets

    if "label" in given:
        return find_column("label", list(features), given, uri)
    typed = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    if len(typed) == 1:
        return typed[0]
    plain = [name for name, feature in features.items() if getattr(feature, "dtype", None) in _LABEL_TYPES]
    found = find_column("label", typed or plain, {}, uri)
    if typed and found is None:
        raise OptionError(f"{uri} has several columns of labels: {', '.join(typed)}. Choose one with --label-column.")
    return found


def _images(data: datasets.Dataset, column: str, uri: str) -> pyarrow.ChunkedArray:
    """The column as struct<bytes: binary, path: string>, still memory-mapped."""
    import datasets

    try:
        data = data.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    except Exception as error:  # pyarrow raises several kinds
        raise DatasetError(f"The column {column!r} of {uri!r} holds {data.features[column]}, no images.") from error
    return data.data.column(column)


def _classes(
    splits: Mapping[str, datasets.Dataset], name: str, column: str | None, uri: str
) -> tuple[NDArray[np.int64] | None, tuple[str, ...]]:
    import datasets
    import pyarrow.compute as pc

    if column is None:
        return None, ()
    feature = splits[name].features[column]
    if isinstance(feature, datasets.ClassLabel):
        labels = pc.fill_null(splits[name].data.column(column), -1).to_numpy().astype(np.int64)
        if (labels < 0).all():
            return None, ()
        _check_labelled(labels < 0, column, uri)
        return labels, tuple(feature.names)
    if getattr(feature, "dtype", None) not in _LABEL_TYPES:
        raise DatasetError(f"The column {column!r} of {uri!r} holds {feature}, no labels.")
    every = [
        value for each in splits.values() if column in each.features for value in pc.unique(each.data.column(column))
    ]
    names = {label_name(value.as_py()) for value in every}
    found = [label_name(value) for value in splits[name].data.column(column).to_pylist()]
    _check_labelled(np.array([each is None for each in found]), column, uri)
    class_names = class_names_of(each for each in names if each is not None)
    return labels_of([each for each in found if each is not None], class_names), class_names


def _check_labelled(absent: NDArray[np.bool_], column: str, uri: str) -> None:
    rows = np.flatnonzero(absent)
    if len(rows):
        raise DatasetError(f"{len(rows)} samples of {uri!r} have no {column}, the first in row {rows[0] + 1}.")
