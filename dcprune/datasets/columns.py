"""The columns of a table: which holds what, and classes from their values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from dcprune.errors import DatasetError, OptionError, UnknownName

USUAL: Final[Mapping[str, tuple[str, ...]]] = {
    "image": (
        "image",
        "img",
        "path",
        "image_path",
        "file",
        "file_name",
        "filename",
        "file_path",
        "filepath",
        "image_file",
    ),
    "label": ("label", "labels", "class", "class_name", "category", "target"),
    "caption": ("caption", "text", "prompt", "description"),
}

# What a split may be called elsewhere; every split may have its own name.
SPLIT_NAMES: Final[Mapping[str, tuple[str, ...]]] = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}


def find_column(role: str, names: Sequence[str], given: Mapping[str, str], table: str) -> str | None:
    """The column that plays a role: the one that a user named, else the only one with a usual name.

    Args:
        role: a key of `USUAL`.
        names: the columns that may play it.
        given: `DatasetRequest.columns`.
        table: what to call the table in an error.

    Raises:
        UnknownName: the named column is not there.
        OptionError: several have a usual name.
    """
    if role in given:
        if given[role] not in names:
            raise UnknownName(f"{role} column of {table}", given[role], names)
        return given[role]
    found = [name for name in names if name.lower() in USUAL[role]]
    if len(found) > 1:
        raise OptionError(
            f"{table} has several columns that may be the {role}: {', '.join(found)}. Choose one with --{role}-column."
        )
    return found[0] if found else None


def require_column(role: str, names: Sequence[str], given: Mapping[str, str], table: str) -> str:
    """`find_column` where there must be one.

    Raises:
        DatasetError: there is none.
    """
    found = find_column(role, names, given, table)
    if found is None:
        there = ", ".join(names) if names else "none"
        raise DatasetError(
            f"{table} has no column that is called like {role}s are. Name it with --{role}-column; columns: {there}."
        )
    return found


def find_split(split: str, names: Iterable[str], table: str) -> str:
    """What `split` is called in the data.

    Raises:
        DatasetError: it is not there.
    """
    there = list(names)
    for name in (split, *SPLIT_NAMES.get(split, ())):
        if name in there:
            return name
    raise DatasetError(f"{table} has no split {split!r}. Splits: {', '.join(there) or 'none'}.")


def label_name(value: object) -> str | None:
    """The class that a value stands for: None for no value, `3` for 3.0."""
    if value is None or value != value or value == "":
        return None
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def class_names_of(names: Iterable[str]) -> tuple[str, ...]:
    """Distinct names, sorted: as numbers where all are integers."""
    distinct = set(names)
    if all(name.removeprefix("-").isdecimal() for name in distinct):
        return tuple(sorted(distinct, key=lambda name: (int(name), name)))
    return tuple(sorted(distinct))


def labels_of(names: Sequence[str], class_names: Sequence[str]) -> NDArray[np.int64]:
    """Labels int64 [N] of samples whose classes have these names."""
    numbers = {name: number for number, name in enumerate(class_names)}
    return np.fromiter((numbers[name] for name in names), dtype=np.int64, count=len(names))
