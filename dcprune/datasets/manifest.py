"""A table that lists image files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dcprune.datasets.columns import class_names_of, find_column, find_split, label_name, labels_of, require_column
from dcprune.datasets.folder import FileSource, ImageFiles
from dcprune.datasets.inside import Inside
from dcprune.datasets.tables import Table, read_table
from dcprune.errors import DatasetError, MissingInput
from dcprune.interfaces import DatasetRequest

SUFFIXES = (".csv", ".tsv", ".parquet")
_SPLIT = "split"
_LISTED = 3


class Manifest(FileSource):
    """A .csv, .tsv or .parquet file with one row for every image, in its order.

    The column of paths is the one that is called `image`, `path`, `file_name` or alike; labels stand in `label`,
    `class` or alike, captions in `caption`, `text` or alike. Where several are there, or other names are used, a user
    says which. A column `split` divides the rows; without one, all of them are the split `train`.

    - ids: the paths as they are written, tidied (`./a/../b.png` is `b.png`); None where one is listed twice.
    - labels and classes: the distinct labels of the whole table (so that all its splits have the same classes), sorted,
      as numbers where all are integers; none without such a column.
    - captions: the texts of that column; an empty one is an empty caption.
    - access: in any order, one file opened for every image. Files are looked up when the manifest is opened, and opened
      when they are read.

    A path counts from the folder of the manifest and must not lead out of it, by `..`, as an absolute path or through a
    link: a manifest from elsewhere could otherwise take in any file of this machine.

    Raises:
        MissingInput: no such manifest.
        DatasetError: see `dcprune.datasets.tables.read_table`; a path that is empty, leads out of the folder or to no
            file; a missing label; an absent split.
    """

    takes_columns = ("image", "label", "caption")

    def __init__(self, request: DatasetRequest) -> None:
        path = Path(request.location).expanduser()
        if not path.exists():
            raise MissingInput(f"The manifest {request.location!r} does not exist.")
        if path.suffix.lower() not in SUFFIXES or not path.is_file():
            raise DatasetError(f"{request.location!r} is no manifest, which is a file {', '.join(SUFFIXES)}.")
        table = read_table(path)
        names = list(table.columns)
        image = require_column("image", names, request.columns, table.title)
        label = find_column("label", names, request.columns, table.title)
        caption = find_column("caption", names, request.columns, table.title)
        rows = _rows_of_split(table, request.split)
        found, sizes = _find_files(path.parent, table, table.columns[image], rows)
        classes = None if label is None else _label_names(table, label)
        class_names = () if classes is None else class_names_of(classes)
        files = ImageFiles(
            class_names=class_names,
            ids=tuple(found),
            labels=None if classes is None else labels_of([classes[row] for row in rows], class_names),
            sizes=np.array(sizes, dtype=np.int64),
        )
        captions = None if caption is None else tuple(_text(table.columns[caption][row]) for row in rows)
        super().__init__(request.location + request.query, request.split, path.parent, files, captions=captions)


def _text(value: object) -> str:
    return "" if value is None else str(value)


def _rows_of_split(table: Table, split: str) -> Sequence[int]:
    count = len(next(iter(table.columns.values())))
    if count == 0:
        raise DatasetError(f"{table.title} lists no images.")
    if _SPLIT not in table.columns:
        if split != "train":
            raise DatasetError(
                f"{table.title} has no column {_SPLIT!r}, so that all its images are the split 'train', not {split!r}."
            )
        return range(count)
    values = [_text(value) for value in table.columns[_SPLIT]]
    name = find_split(split, sorted(set(values)), table.title)
    return [row for row, value in enumerate(values) if value == name]


def _label_names(table: Table, column: str) -> list[str]:
    names: list[str] = []
    for row, value in enumerate(table.columns[column]):
        name = label_name(value)
        if name is None:
            raise DatasetError(f"{table.title} {table.place(row)} has no {column}. Give it one, or remove the line.")
        names.append(name)
    return names


def _find_files(folder: Path, table: Table, paths: Sequence[Any], rows: Sequence[int]) -> tuple[list[str], list[int]]:
    """Path below `folder`, and size in bytes, of the file that each of the rows names."""
    inside = Inside(folder)
    names, sizes, missing = [], [], []
    for row in rows:
        try:
            name = inside.name(_text(paths[row]))
            size = inside.size(name)
        except DatasetError as error:
            raise DatasetError(f"{table.title} {table.place(row)}: {error}.") from error
        if size is None:
            missing.append(f"{name!r} ({table.place(row)})")
            continue
        names.append(name)
        sizes.append(size)
    if missing:
        listed = ", ".join(missing[:_LISTED]) + (", ..." if len(missing) > _LISTED else "")
        raise DatasetError(
            f"{len(missing)} of the files that {table.title} lists are not there: {listed}. Paths count from "
            f"{str(folder.absolute())!r}."
        )
    return names, sizes
