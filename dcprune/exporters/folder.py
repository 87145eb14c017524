"""`folder`: an image folder of the kept samples, with the class sub-folders of the dataset."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np

from dcprune.errors import DatasetError, OptionError
from dcprune.exporters.names import folder_names, safe_names
from dcprune.exporters.samples import SUFFIXES, Samples, unlabelled, without_suffix
from dcprune.interfaces import DatasetSource, FilesOnDisk, Progress

_LISTED = 5


def _symlink(original: Path, place: Path) -> None:
    place.symlink_to(original)


def _hardlink(original: Path, place: Path) -> None:
    try:
        os.link(original.resolve(), place)
    except OSError as error:
        raise OptionError(
            f"{str(original)!r} cannot be hard-linked: {error.strerror}. Hard links need one file system that has them "
            "on both sides; use --link symlink or --link copy."
        ) from error


LINKS: Final[Mapping[str, Callable[[Path, Path], None]]] = {"symlink": _symlink, "hardlink": _hardlink}


def write_folder(samples: Samples, folder: Path, progress: Progress, *, link: str = "copy") -> None:
    """Write the kept samples as image files.

    An image folder keeps its names: the same sub-folders, the same files, byte for byte. Elsewhere a sample becomes
    `CLASS/ID.png`, or has the suffix that its own bytes call for. Captions go into `metadata.csv`, as Hugging Face's
    image folders have them.

    Args:
        samples: what to write.
        folder: an existing empty folder.
        progress: counts the samples.
        link: `copy`, or `symlink` or `hardlink` to the originals.

    Raises:
        OptionError: links to files that the dataset does not have, or that the file system does not take.
        DatasetError: an image cannot be read.
    """
    files = None if link == "copy" else _linkable(samples.source, link)
    stems = _tree_stems(samples) or _made_stems(samples)
    _warn_of_gaps(samples, progress)
    written: list[str] = []
    with progress.task(f"export {samples.source.uri}", len(samples), "images") as task:
        for row, stem in zip(samples, stems, strict=True):
            place = folder / stem
            place.parent.mkdir(parents=True, exist_ok=True)
            if files is not None:
                original = _original(files, row)
                place = _with_suffix(place, original.suffix)
                LINKS[link](original, place)
            else:
                file = samples.image_file(row)
                place = _with_suffix(place, file.suffix)
                with place.open("xb") as stream:
                    stream.write(file.content)
            written.append(place.relative_to(folder).as_posix())
            task.advance()
    if samples.source.captions is not None:
        _write_captions(folder / "metadata.csv", written, [samples.source.captions[row] for row in samples])


def _write_captions(path: Path, names: Sequence[str], captions: Sequence[str]) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(("file_name", "text"))
        table.writerows(zip(names, captions, strict=True))


def _with_suffix(place: Path, suffix: str) -> Path:
    return place if place.name.lower().endswith(SUFFIXES) else place.with_name(place.name + suffix)


def _linkable(source: DatasetSource, link: str) -> FilesOnDisk:
    files = unlabelled(source)
    if not isinstance(files, FilesOnDisk):
        raise OptionError(
            f"The images of {source.uri!r} are not files of their own, so there is nothing to --link {link} to: leave "
            "--link out, and they are written as files."
        )
    return files


def _original(files: FilesOnDisk, row: int) -> Path:
    path = files.path(row).absolute()
    if not path.is_file():
        raise DatasetError(f"{str(path)!r} is not there any more, so it cannot be linked to.")
    return path


def _tree_stems(samples: Samples) -> list[str] | None:
    """The ids, where they are paths in an image folder: one sub-folder for every class, in the order of the classes."""
    ids, labels = samples.source.ids, samples.source.labels
    if ids is None or any("/." in f"/{each}" for each in ids):  # what is hidden is not read again
        return None
    if labels is None:
        return None if any("/" in each for each in ids) else [samples.id(row) for row in samples]
    label_of: dict[str, int] = {}
    for each, label in zip(ids, labels.tolist(), strict=True):
        folder, slash, _ = each.partition("/")
        if not slash or label_of.setdefault(folder, label) != label:
            return None
    ordered = [label_of[folder] for folder in sorted(label_of)]
    if any(first >= second for first, second in pairwise(ordered)):
        return None
    return [samples.id(row) for row in samples]


def _made_stems(samples: Samples) -> list[str]:
    names = safe_names([without_suffix(samples.id(row)) for row in samples], "image")
    folders: Sequence[str] = folder_names(samples.source.class_names)
    labels = [samples.label(row) for row in samples]
    return [name if label is None else f"{folders[label]}/{name}" for name, label in zip(names, labels, strict=True)]


def _warn_of_gaps(samples: Samples, progress: Progress) -> None:
    """Say which classes will have no sub-folder: programs that number the sub-folders will number them differently."""
    if samples.source.labels is None:
        return
    names = samples.source.class_names
    counts = np.bincount(samples.source.labels[samples.rows], minlength=len(names))
    empty = [names[label] for label in np.flatnonzero(counts == 0)]
    if empty:
        more = f" and {len(empty) - _LISTED} more" if len(empty) > _LISTED else ""
        progress.warn(
            f"No sample is kept of {', '.join(empty[:_LISTED])}{more}: the folder lacks those classes, and labels that "
            "are numbered by its sub-folders are not the dataset's."
        )
