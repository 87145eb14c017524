"""Opens datasets by name or path, and tells whether one is the dataset that an artifact was made from."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final
from urllib.parse import parse_qsl

from dcprune.artifacts import DatasetIdentity, FingerprintMethod
from dcprune.datasets.decode import IMAGE_SUFFIXES
from dcprune.datasets.stand_in import StandIn
from dcprune.devices import cache_dir
from dcprune.errors import DatasetError, DatasetMismatch, DatasetMissing, MissingInput, OptionError, UnknownName
from dcprune.interfaces import COLUMNS, DatasetRequest, DatasetSource, Progress
from dcprune.plugins import registry
from dcprune.progress import SILENT

METHOD: Final[FingerprintMethod] = "index-id-label-size/1"
CONTENT_METHOD: Final[FingerprintMethod] = "content/1"
MANIFEST_SUFFIXES: Final = (".csv", ".parquet", ".tsv")
NPZ_SUFFIX: Final = ".npz"

_QUERY = re.compile(r"\?(\w+=[^&?]*)(&\w+=[^&?]*)*$")


def default_data_dir() -> Path:
    """Where datasets lie unless a caller says otherwise: `DCPRUNE_DATA_DIR`, else the user cache."""
    folder = os.environ.get("DCPRUNE_DATA_DIR")
    return Path(folder).expanduser() if folder else cache_dir() / "data"


def open_dataset(
    uri: str | Path,
    *,
    split: str = "train",
    data_dir: str | Path | None = None,
    columns: Mapping[str, str] | None = None,
    download: bool = True,
) -> DatasetSource:
    """Open a dataset.

    Args:
        uri: a registered name, `name:location`, the path of an image folder, of a manifest (.csv, .tsv, .parquet) or of
            a NumPy archive (.npz). A registered name wins over a folder that is called the same; `./name` is the
            folder. It may end in columns, as the URI of a dataset does that was opened with some:
            `photos.csv?image=file&label=kind`.
        split: the split.
        data_dir: where datasets lie; `default_data_dir()` by default.
        columns: which columns of a table hold what: `image`, `label` and `caption` to column names.
        download: whether what is missing may be fetched.

    Raises:
        UnknownName: neither a registered name nor a path; or a column that is not there.
        MissingInput: a path that is not there.
        OptionError: columns of a dataset that has none.
        DatasetError: the dataset cannot be read.
    """
    name, asked = _without_columns(str(uri))
    asked |= columns or {}
    _check_columns(asked)
    if isinstance(uri, Path) or not _is_registered(name):
        name = _with_scheme(name, is_path=isinstance(uri, Path) or _is_path(name))
    item, location = registry().get("dataset", name)
    if item.name in ("folder", "manifest") and _is_registered(location):
        location = f"./{location}"  # without it, the URI would be that of the registered dataset
    opened = item.load()
    refused = sorted(asked.keys() - set(getattr(opened, "takes_columns", ())))
    if refused:
        raise OptionError(f"{name!r} takes no {refused[0]} column: leave --{refused[0]}-column out.")
    folder = Path(data_dir).expanduser() if data_dir is not None else default_data_dir()
    source: DatasetSource = opened(DatasetRequest(item.name, location, split, folder, download, asked))
    return source


def open_or_imagine(uri: str, *, split: str = "train", data_dir: str | Path | None = None) -> DatasetSource:
    """A dataset without fetching it; where it is not here, noise of its size, if its size is known.

    Raises:
        DatasetMissing: it is not here, and nothing says how large it is.
        UnknownName, MissingInput, OptionError, DatasetError: see `open_dataset`.
    """
    try:
        return open_dataset(uri, split=split, data_dir=data_dir, download=False)
    except DatasetMissing:
        outline = getattr(registry().get("dataset", uri)[0].load(), "outline", None)
        if outline is None:
            raise
        return StandIn(uri, split, outline)


def _with_scheme(name: str, *, is_path: bool) -> str:
    path = Path(name).expanduser()
    if path.is_file() and path.suffix.lower() in MANIFEST_SUFFIXES:
        return f"manifest:{name}"
    if path.is_file() and path.suffix.lower() == NPZ_SUFFIX:
        return f"npz:{name}"
    if path.exists():
        return f"folder:{name}"
    if is_path or path.suffix.lower() in (*MANIFEST_SUFFIXES, NPZ_SUFFIX):
        raise MissingInput(f"The image folder or manifest {name!r} does not exist.")
    return name


def _without_columns(uri: str) -> tuple[str, dict[str, str]]:
    """A URI without the columns that it may end in, and them."""
    found = _QUERY.search(uri)
    if found is None or Path(uri).expanduser().exists():
        return uri, {}
    return uri[: found.start()], dict(parse_qsl(found.group()[1:], keep_blank_values=True))


def _check_columns(columns: Mapping[str, str]) -> None:
    for role, column in columns.items():
        if role not in COLUMNS:
            raise UnknownName("kind of column", role, COLUMNS)
        if not column:
            raise OptionError(f"The name of the {role} column is empty.")


def _is_registered(name: str) -> bool:
    return bool({name, name.partition(":")[0]}.intersection(registry().names("dataset")))


def _has_scheme(name: str) -> bool:
    return re.match(r"[a-z][a-z0-9-]+:", name) is not None


def _is_path(name: str) -> bool:
    return not _has_scheme(name) and ("/" in name or os.sep in name or name.startswith((".", "~")))


def identify(source: DatasetSource, *, content: bool = False, progress: Progress | None = None) -> DatasetIdentity:
    """Name, classes and fingerprint of a dataset.

    The fingerprint is the sha256 of one JSON line `[index,"id",label,bytes]` per sample, as `json.dumps` writes it
    without spaces: the id is the index where the dataset has no ids, the label `null` where it has none.

    Args:
        source: the dataset.
        content: append the sha256 of the stored bytes to every line (method `content/1`), which reads all data.
        progress: for long work.

    Raises:
        DatasetError: no samples, or a source whose columns do not go together.
    """
    count = len(source)
    columns = [column for column in (source.labels, source.ids, source.sizes) if column is not None]
    if count == 0 or any(len(column) != count for column in columns):
        raise DatasetError(
            f"The dataset {source.uri!r} has {count} samples but {[len(c) for c in columns]} labels, ids, sizes."
        )
    digest = hashlib.sha256()
    with (progress or SILENT).task("fingerprint", count, "samples") as task:
        for line in _lines(source, content):
            digest.update(line)
            if content:
                task.advance()
    return DatasetIdentity(
        uri=source.uri,
        split=source.split,
        num_samples=count,
        num_classes=len(source.class_names),
        class_names=tuple(source.class_names),
        fingerprint=digest.hexdigest(),
        fingerprint_method=CONTENT_METHOD if content else METHOD,
    )


def sample_id(source: DatasetSource, index: int) -> str:
    """The id of a sample; its index where the dataset has no ids."""
    return str(index) if source.ids is None else source.ids[index]


def _lines(source: DatasetSource, content: bool) -> Iterator[bytes]:
    labels: list[int] | None = None if source.labels is None else source.labels.tolist()
    for index, size in enumerate(source.sizes.tolist()):
        line = [index, sample_id(source, index), labels[index] if labels is not None else None, size]
        if content:
            line.append(hashlib.sha256(source.content(index)).hexdigest())
        yield json.dumps(line, separators=(",", ":")).encode() + b"\n"


def open_for(
    identity: DatasetIdentity,
    *,
    data_dir: str | Path | None = None,
    split: str | None = None,
    columns: Mapping[str, str] | None = None,
    download: bool = True,
) -> DatasetSource:
    """Open the dataset that an artifact was made from.

    Args:
        identity: the artifact's `dataset`.
        data_dir: where datasets lie. A folder or manifest that is not where it was is looked for by its path and by its
            name in `data_dir`, and then `data_dir` is taken to be that folder.
        split: another split of the same dataset, of which only the classes can be checked.
        columns: columns of a table besides those that the artifact names (captions, say), or instead of them.
        download: whether what is missing may be fetched.

    Raises:
        MissingInput: the folder is nowhere to be found.
        DatasetMismatch: what is there is another dataset.
        DatasetError: it cannot be read.
    """
    uri, stored = _found(identity, data_dir)
    asked = {**stored, **(columns or {})}
    source = open_dataset(uri, split=split or identity.split, data_dir=data_dir, columns=asked, download=download)
    different = _differences(identity, source)
    if different:
        folder = data_dir if data_dir is not None else default_data_dir()
        where = f"in {str(folder)!r}" if _is_registered(identity.uri) else f"at {str(Path(uri).absolute())!r}"
        raise DatasetMismatch(
            f"The dataset {identity.uri!r} (split {source.split!r}) {where} is not the one that the artifact was made "
            f"from: {different}. Say where that one lies with --data-dir, or make the artifact again from this one."
        )
    return source


def _found(identity: DatasetIdentity, data_dir: str | Path | None) -> tuple[str | Path, dict[str, str]]:
    """The URI, or where its data has moved to, and the columns."""
    uri, columns = _without_columns(identity.uri)
    if _is_registered(uri) or _has_scheme(uri) or Path(uri).expanduser().exists():
        return uri, columns
    folder = Path(data_dir).expanduser() if data_dir is not None else default_data_dir()
    for place in (folder / uri, folder / Path(uri).name):
        if place.exists():
            return place, columns
    if folder.is_dir() and _may_be(identity, folder):
        return folder, columns
    raise MissingInput(
        f"The dataset {uri!r} of the artifact is not here, nor in {str(folder)!r}. Say where it lies with --data-dir."
    )


def _may_be(identity: DatasetIdentity, folder: Path) -> bool:
    """Whether `folder` itself looks like the dataset, rather than like a place where many datasets lie."""
    for root in (folder, folder / identity.split):
        if identity.class_names and all((root / name).is_dir() for name in identity.class_names):
            return True
        flat = not identity.class_names and root.is_dir()
        if flat and any(path.suffix.lower() in IMAGE_SUFFIXES for path in root.iterdir()):
            return True
    return False


def _differences(identity: DatasetIdentity, source: DatasetSource) -> str:
    """What sets `source` apart from `identity`, in words; empty when nothing does."""
    found: list[str] = []
    names = tuple(source.class_names)
    if names != identity.class_names:
        found.append(f"its classes are {_listed(names)}, not {_listed(identity.class_names)}")
    if source.split != identity.split:
        return "; ".join(found)
    if len(source) != identity.num_samples:
        found.append(f"it has {len(source):,} samples, not {identity.num_samples:,}")
    if not found:
        now = identify(source, content=identity.fingerprint_method == CONTENT_METHOD)
        if now.fingerprint != identity.fingerprint:
            what = "contents" if now.fingerprint_method == CONTENT_METHOD else "ids, labels or file sizes"
            found.append(f"its {what} differ (fingerprint {now.fingerprint[:12]}, not {identity.fingerprint[:12]})")
    return "; ".join(found)


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names[:6]) + (f", ... ({len(names)})" if len(names) > 6 else "") if names else "none"
