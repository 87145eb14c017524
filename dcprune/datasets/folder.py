"""Image folders: class sub-folders, or flat and class-less."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dcprune.datasets.columns import SPLIT_NAMES, find_column
from dcprune.datasets.decode import IMAGE_SUFFIXES, decode
from dcprune.datasets.tables import read_table
from dcprune.errors import DatasetError, MissingInput
from dcprune.interfaces import DatasetRequest

_METADATA = ("metadata.csv", "metadata.jsonl")


@dataclass(frozen=True)
class ImageFiles:
    """The images below a folder, ordered by class, then by path.

    Attributes:
        class_names: names of the class sub-folders, sorted; empty when the folder is flat.
        ids: POSIX paths relative to the folder.
        labels: int64 [N], None when the folder is flat.
        sizes: int64 [N], file sizes in bytes.
        texts: paths of the images that have a text file beside them, relative to the folder and without their suffix.
    """

    class_names: tuple[str, ...]
    ids: tuple[str, ...]
    labels: NDArray[np.int64] | None
    sizes: NDArray[np.int64]
    texts: frozenset[str] = frozenset()


class FileSource:
    """A `DatasetSource` of image files that are decoded when asked for, in any order; its files can be linked to.

    Args:
        uri: what a user types to get this dataset again.
        split: the split.
        root: the folder that the ids count from.
        files: the images.
        class_names: better names for the class sub-folders, in their order.
        captions: N texts.

    Attributes:
        ids: paths relative to `root`, or None where an image is listed more than once.
    """

    array = None
    encoded = True
    streaming = False
    num_captioned = 0

    def __init__(
        self,
        uri: str,
        split: str,
        root: Path,
        files: ImageFiles,
        class_names: tuple[str, ...] | None = None,
        captions: Sequence[str] | None = None,
    ) -> None:
        self.uri = uri
        self.split = split
        self.root = root
        self.class_names = files.class_names if class_names is None else class_names
        self.labels = files.labels
        self.captions = captions
        self.sizes = files.sizes
        self._names = files.ids
        self.ids = files.ids if len(set(files.ids)) == len(files.ids) else None

    def __len__(self) -> int:
        return len(self._names)

    def path(self, index: int) -> Path:
        """Where the file of a sample lies."""
        return self.root / self._names[index]

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

    - ids: paths below that folder, sorted by class, then by path.
    - labels and classes: its sub-folders; none where it is flat.
    - captions: from `metadata.csv` or `metadata.jsonl` in that folder, as Hugging Face's image folders have them
      (`file_name` and a `text`), else from `photo.txt` beside every `photo.jpg`; none where an image has no text file.
    - access: in any order, one file opened for every image. Files are not looked into before.

    Raises:
        MissingInput: no such folder.
        DatasetError: the split is not there, or see `list_images` and `_metadata_captions`.
    """

    takes_columns = ("image", "caption")

    def __init__(self, request: DatasetRequest) -> None:
        folder = Path(request.location).expanduser()
        if not folder.exists():
            raise MissingInput(f"The image folder {request.location!r} does not exist.")
        if not folder.is_dir():
            raise DatasetError(
                f"{request.location!r} is a file; a dataset is a folder of images, or a .csv, .tsv or .parquet file "
                "that lists some."
            )
        root = split_folder(folder, request.split)
        files = list_images(root)
        captions = _metadata_captions(root, files, request)
        if captions is None:
            captions, self.num_captioned = _text_captions(root, files)
        super().__init__(request.location + request.query, request.split, root, files, captions=captions)


class TextFiles(Sequence[str]):
    """Captions that are read from text files when asked for; surrounding space is dropped.

    Args:
        paths: N files.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return TextFiles(self.paths[index])
        path = self.paths[index]
        try:
            return path.read_text(encoding="utf-8-sig").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise DatasetError(f"Cannot read the caption {str(path)!r}: {error}.") from error


def _text_captions(root: Path, files: ImageFiles) -> tuple[Sequence[str] | None, int]:
    """The texts beside the images, where every image has one, and how many have."""
    stems = [name.rpartition(".")[0] for name in files.ids]
    count = sum(stem in files.texts for stem in stems)
    return (TextFiles([root / f"{stem}.txt" for stem in stems]) if count == len(stems) else None), count


def _metadata_captions(root: Path, files: ImageFiles, request: DatasetRequest) -> Sequence[str] | None:
    """The texts of a metadata file.

    Raises:
        DatasetError: it cannot be read, or an image has no line in it.
    """
    path = next((root / name for name in _METADATA if (root / name).is_file()), None)
    if path is None:
        if request.columns:
            raise DatasetError(f"{str(root)!r} has no {' or '.join(_METADATA)} with a column {request.query[1:]}.")
        return None
    table = read_table(path)
    names = list(table.columns)
    usual = {"image": "file_name"} if "file_name" in names else {}
    image = find_column("image", names, {**usual, **request.columns}, table.title)
    caption = find_column("caption", names, request.columns, table.title)
    if image is None and request.columns:
        raise DatasetError(f"{table.title} has no column 'file_name'. Name it with --image-column.")
    if image is None or caption is None:
        return None
    texts = dict(zip(table.columns[image], table.columns[caption], strict=True))
    missing = [name for name in files.ids if texts.get(name) is None]
    if missing:
        raise DatasetError(f"{table.title} has no {caption} for {len(missing)} images, the first is {missing[0]!r}.")
    return tuple(str(texts[name]) for name in files.ids)


def split_folder(folder: Path, split: str) -> Path:
    """Where `split` lies in an image folder.

    Raises:
        DatasetError: neither is there a sub-folder for it, nor can the whole folder be meant.
    """
    for name in SPLIT_NAMES.get(split, (split,)):
        if name == Path(name).name and name not in ("", ".", "..") and (folder / name).is_dir():
            return folder / name
    known = {name for names in SPLIT_NAMES.values() for name in names}
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
        DatasetError: no images, images beside class sub-folders, or a folder that cannot be read.
    """
    texts: set[str] = set()
    try:
        flat, folders = _scan(root, "", texts)
        classes = {name: sorted(_walk(root / name, f"{name}/", texts, frozenset())) for name in sorted(folders)}
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
        texts=frozenset(texts),
    )


def _check_files(root: Path, files: list[tuple[str, int]], flat: list[tuple[str, int]], class_names: list[str]) -> None:
    if not files:
        tables = any(next(root.rglob(f"*{suffix}"), None) for suffix in (".parquet", ".arrow"))
        hint = f" Its parquet or Arrow files are opened as 'hf:{root}'." if tables else ""
        raise DatasetError(f"The folder {str(root)!r} holds no images ({', '.join(IMAGE_SUFFIXES)}).{hint}")
    if flat and class_names:
        raise DatasetError(
            f"The folder {str(root)!r} holds {len(flat)} images (the first is {min(flat)[0]!r}) beside the class "
            f"sub-folders {', '.join(class_names[:5])}: move the images into a class, or the sub-folders elsewhere."
        )


def _walk(folder: Path, prefix: str, texts: set[str], above: frozenset[tuple[int, int]]) -> Iterator[tuple[str, int]]:
    """`(id, size)` of every image at any depth; a link back to a folder `above` is not followed."""
    status = folder.stat()
    if (status.st_dev, status.st_ino) in above:
        return
    above |= {(status.st_dev, status.st_ino)}
    files, folders = _scan(folder, prefix, texts)
    yield from files
    for name in folders:
        yield from _walk(folder / name, f"{prefix}{name}/", texts, above)


def _scan(folder: Path, prefix: str, texts: set[str]) -> tuple[list[tuple[str, int]], list[str]]:
    """Images directly in `folder` as `(prefix + name, size)`, and names of its sub-folders; adds to `texts`."""
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
            elif entry.name.endswith(".txt"):
                texts.add(prefix + entry.name.removesuffix(".txt"))
    return files, folders


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
