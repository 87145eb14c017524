"""Image folders: class sub-folders, or flat and class-less."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dcprune.datasets.decode import IMAGE_SUFFIXES, decode
from dcprune.errors import DatasetError, MissingInput
from dcprune.interfaces import DatasetRequest

# Other names under which a split may lie; every split may lie under its own.
_SPLIT_FOLDERS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}


@dataclass(frozen=True)
class ImageFiles:
    """The images below a folder, ordered by class, then by path.

    Attributes:
        class_names: names of the class sub-folders, sorted; empty when the folder is flat.
        ids: POSIX paths relative to the folder.
        labels: int64 [N], None when the folder is flat.
        sizes: int64 [N], file sizes in bytes.
    """

    class_names: tuple[str, ...]
    ids: tuple[str, ...]
    labels: NDArray[np.int64] | None
    sizes: NDArray[np.int64]


class FileSource:
    """A `DatasetSource` of image files that are decoded when asked for.

    Args:
        uri: what a user types to get this dataset again.
        split: the split.
        root: the folder that the ids count from.
        files: the images.
        class_names: better names for the class sub-folders, in their order.
    """

    captions = None
    array = None
    encoded = True
    streaming = False

    def __init__(
        self, uri: str, split: str, root: Path, files: ImageFiles, class_names: tuple[str, ...] | None = None
    ) -> None:
        self.uri = uri
        self.split = split
        self.root = root
        self.class_names = files.class_names if class_names is None else class_names
        self.labels = files.labels
        self.ids = files.ids
        self.sizes = files.sizes

    def __len__(self) -> int:
        return len(self.ids)

    def path(self, index: int) -> Path:
        """Where the file of a sample lies."""
        return self.root / self.ids[index]

    def image(self, index: int) -> NDArray[np.uint8]:
        """uint8 [H, W, 3]; see `dcprune.datasets.decode.decode`."""
        return decode(self.content(index), str(self.path(index)))

    def content(self, index: int) -> bytes:
        """The bytes of the file.

        Raises:
            DatasetError: it cannot be read.
        """
        path = self.path(index)
        try:
            return path.read_bytes()
        except OSError as error:
            raise DatasetError(f"Cannot read {str(path)!r}: {error.strerror}.") from error


class ImageFolder(FileSource):
    """Any folder of images; `root/SPLIT` is used where it exists, and `root` itself stands for the split `train`.

    Raises:
        MissingInput: no such folder.
        DatasetError: the split is not there, or see `list_images`.
    """

    def __init__(self, request: DatasetRequest) -> None:
        folder = Path(request.location).expanduser()
        if not folder.exists():
            raise MissingInput(f"The image folder {request.location!r} does not exist.")
        if not folder.is_dir():
            raise DatasetError(f"{request.location!r} is a file; a dataset is a folder of images.")
        root = split_folder(folder, request.split)
        super().__init__(request.location, request.split, root, list_images(root))


def split_folder(folder: Path, split: str) -> Path:
    """Where `split` lies in an image folder.

    Raises:
        DatasetError: neither is there a sub-folder for it, nor can the whole folder be meant.
    """
    for name in _SPLIT_FOLDERS.get(split, (split,)):
        if name == Path(name).name and name not in ("", ".", "..") and (folder / name).is_dir():
            return folder / name
    known = {name for names in _SPLIT_FOLDERS.values() for name in names}
    folders = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if split == "train" and not (folders and known.issuperset(folders)):
        return folder
    there = f"its sub-folders are {', '.join(folders[:8])}" if folders else "it has no sub-folders"
    raise DatasetError(f"The folder {str(folder)!r} has no split {split!r}: {there}.")


def list_images(root: Path) -> ImageFiles:
    """Find every image below `root`; hidden files and folders are skipped, symbolic links are followed.

    Sub-folders with images at any depth are the classes; sub-folders without are left out. Without any, the images
    that lie directly in `root` are class-less data.

    Raises:
        DatasetError: no images, images beside class sub-folders, an empty file, or something unreadable.
    """
    try:
        flat, folders = _scan(root, "")
        classes = {name: sorted(_walk(root / name, f"{name}/", frozenset())) for name in sorted(folders)}
    except OSError as error:
        raise DatasetError(f"Cannot read {str(error.filename or root)!r}: {error.strerror}.") from error
    classes = {name: files for name, files in classes.items() if files}
    files = [each for group in classes.values() for each in group] or sorted(flat)
    _check_files(root, files, flat, list(classes))
    counts = [len(group) for group in classes.values()]
    return ImageFiles(
        class_names=tuple(classes),
        ids=tuple(name for name, _ in files),
        labels=np.repeat(np.arange(len(counts), dtype=np.int64), counts) if classes else None,
        sizes=np.array([size for _, size in files], dtype=np.int64),
    )


def _check_files(root: Path, files: list[tuple[str, int]], flat: list[tuple[str, int]], class_names: list[str]) -> None:
    if not files:
        raise DatasetError(f"The folder {str(root)!r} holds no images ({', '.join(IMAGE_SUFFIXES)}).")
    if flat and class_names:
        raise DatasetError(
            f"The folder {str(root)!r} holds {len(flat)} images (the first is {min(flat)[0]!r}) beside the class "
            f"sub-folders {', '.join(class_names[:5])}: move the images into a class, or the sub-folders elsewhere."
        )
    empty = [name for name, size in files if size == 0]
    if empty:
        raise DatasetError(
            f"{len(empty)} empty files (0 bytes) in {str(root)!r}, the first is {empty[0]!r}: remove them."
        )


def _walk(folder: Path, prefix: str, above: frozenset[tuple[int, int]]) -> Iterator[tuple[str, int]]:
    """`(id, size)` of every image at any depth; a link back to a folder `above` is not followed."""
    status = folder.stat()
    if (status.st_dev, status.st_ino) in above:
        return
    above |= {(status.st_dev, status.st_ino)}
    files, folders = _scan(folder, prefix)
    yield from files
    for name in folders:
        yield from _walk(folder / name, f"{prefix}{name}/", above)


def _scan(folder: Path, prefix: str) -> tuple[list[tuple[str, int]], list[str]]:
    """Images directly in `folder` as `(prefix + name, size)`, and names of its sub-folders."""
    files, folders = [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if not _is_utf8(entry.name):
                raise DatasetError(f"The name {entry.name!r} in {str(folder)!r} is not UTF-8: rename it.")
            if entry.is_dir():
                folders.append(entry.name)
            elif entry.name.lower().endswith(IMAGE_SUFFIXES):
                files.append((prefix + entry.name, entry.stat().st_size))
    return files, folders


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
