"""WebDataset shards: tar archives in which the members of a sample share the first part of their names."""

from __future__ import annotations

import functools
import glob
import gzip
import itertools
import json
import os
import re
import threading
import zlib
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from dcprune.datasets.columns import class_names_of, label_name, labels_of
from dcprune.datasets.decode import IMAGE_SUFFIXES, decode
from dcprune.datasets.folder import split_folder
from dcprune.datasets.tar import Member, members
from dcprune.datasets.texts import Texts
from dcprune.errors import DatasetError, MissingInput, OptionError
from dcprune.interfaces import DatasetRequest

CLASS_FILES = ("classes.txt", "classnames.txt")
LABEL_MEMBERS = ("cls", "cls.txt", "label", "label.txt")
CAPTION_MEMBERS = ("txt", "caption", "caption.txt")
LABEL_KEYS = ("label", "cls", "class")
CAPTION_KEYS = ("caption", "text", "txt")

_SHARD_SUFFIXES = (".tar", ".tar.gz", ".tgz")
_MOST_SHARDS = 1_000_000
_LONGEST_TEXT = 1 << 20
_LONGEST_LABEL = 1000
_LONGEST_IMAGE = 1 << 30
_OPEN_SHARDS = 16
_UNREADABLE = (OSError, EOFError, zlib.error)


class WebDataset:
    """Samples of WebDataset shards: `wds:` and a pattern with braces (`data/{000..009}.tar`), a glob, or a folder.

    A sample is a run of members with one key, which is the name up to the first dot after the last slash; the rest says
    what a member is. Members whose names begin and end in two underscores, or have no key or no rest, are left out.

    - Image: the member with the suffix of an image (`jpg`, `png`, `webp`, ...; `left.jpg` counts too), as it is stored.
      A sample without, or with several, is refused; `image` of the request names the one that is meant.
    - Ids: the keys; where shards use the same keys, `SHARD/KEY`.
    - Labels: `cls`, `cls.txt`, `label` or `label.txt`; else `label`, `cls` or `class` of the `json` member; class-less
      without. `label` of the request names a member or a key of `json`. All samples have one or none has.
    - Class names: the lines of `classes.txt` (or `classnames.txt`) beside the shards, or beside the folder of their
      split, which labels number or name; else the labels themselves, sorted, as numbers where all are.
    - Captions: `txt`, `caption` or `caption.txt`, else `caption`, `text` or `txt` of `json`, if all samples have one;
      `caption` of the request names a member or a key of `json`.
    - Length, sizes: from the headers, which are read once, when the source is opened. Nothing is unpacked; pickles
      (`pyd`, `pth`, ...) and all other members are never read.
    - Access: random, from any thread. Gzipped shards stream: opening reads them through, and going back within a shard
      decompresses it from its start.
    - Splits: a folder may have a sub-folder for every split; anything else is `train`.

    Raises:
        MissingInput: a shard or folder is not there.
        OptionError: several members may be the image.
        DatasetError: an address or a command instead of a path, no shards, no such split, a broken or unsafe archive
            (see `dcprune.datasets.tar`), or samples that lack what others have.
    """

    takes_columns = ("image", "label", "caption")

    array = None
    encoded = True

    def __init__(self, request: DatasetRequest) -> None:
        self.uri = f"{request.name}:{request.location}{request.query}"
        self.split = request.split
        self._shards = find_shards(request.location, request.split)
        index = _Index(_Fields.of(request.columns))
        for path in self._shards:
            index.read(path)
        if not index.keys:
            raise DatasetError(f"{request.location!r} holds no samples.")
        self.streaming = any(map(_is_gzipped, self._shards))
        self.sizes = np.array(index.sizes, dtype=np.int64)
        self._offsets = np.array(index.offsets, dtype=np.int64)
        self._firsts = np.array(index.firsts, dtype=np.int64)
        self.class_names, self.labels = index.classes(_listed_classes(request, self._shards[0].parent))
        self.captions = index.all_captions()
        self.num_captioned = len(index.captions)
        self.ids = index.keys if index.keys.distinct() else self._long_keys(index.keys)
        self._opened = functools.lru_cache(_OPEN_SHARDS)(_opened)

    def _long_keys(self, keys: Texts) -> Texts:
        folder = os.path.commonpath([path.parent for path in self._shards])
        names = [path.relative_to(folder).as_posix().partition(".tar")[0] for path in self._shards]
        return Texts(f"{names[self._shard_of(row)]}/{key}" for row, key in enumerate(keys))

    def _shard_of(self, index: int) -> int:
        return int(np.searchsorted(self._firsts, index, side="right")) - 1

    def __len__(self) -> int:
        return len(self.ids)

    def image(self, index: int) -> NDArray[np.uint8]:
        """uint8 [H, W, 3]; see `dcprune.datasets.decode.decode`."""
        return decode(self.content(index), f"{self.ids[index]} in {self._shards[self._shard_of(index)]}")

    def content(self, index: int) -> bytes:
        """The image file.

        Raises:
            DatasetError: it cannot be read.
        """
        path, size = self._shards[self._shard_of(index)], int(self.sizes[index])
        try:
            found = self._opened(path).read(int(self._offsets[index]), size)
        except _UNREADABLE as error:
            raise DatasetError(f"Cannot read {self.ids[index]!r} in {str(path)!r}: {error}.") from error
        if len(found) != size:
            raise DatasetError(f"Cannot read {self.ids[index]!r} in {str(path)!r}: the shard has become shorter.")
        return found


# --- shards -----------------------------------------------------------------------------------------------------------


def find_shards(location: str, split: str) -> list[Path]:
    """Paths of the shards, in the order of their samples.

    Raises:
        MissingInput: one is not there, or none is.
        DatasetError: an address or a command; a folder without shards; a split that is not there.
    """
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", location):
        raise DatasetError(
            f"wds: reads files on this machine, neither commands nor addresses: {location!r}. Fetch the shards (curl, "
            "`hf download`, rclone, ...) and name their folder."
        )
    path = Path(location).expanduser()
    if path.is_dir():
        return _in_folder(split_folder(path, split))
    if split != "train":
        raise DatasetError(
            f"{location!r} is no folder, so it has the split 'train' alone, not {split!r}. Put the shards of "
            "every split into a sub-folder called like it, and name the folder above."
        )
    if path.is_file():
        return [path]
    found = [Path(each) for pattern in expand_braces(str(path)) for each in _globbed(pattern)]
    for each in found:
        if not each.is_file():
            raise MissingInput(f"The shard {str(each)!r} does not exist.")
    if not found:
        raise MissingInput(f"No shard is called like {location!r}.")
    return found


def _in_folder(folder: Path) -> list[Path]:
    found = sorted(path for path in folder.iterdir() if path.name.endswith(_SHARD_SUFFIXES) and path.is_file())
    if not found:
        raise DatasetError(f"The folder {str(folder)!r} holds no shards ({', '.join(_SHARD_SUFFIXES)}).")
    return found


def _globbed(pattern: str) -> list[str]:
    return sorted(glob.glob(pattern)) if glob.has_magic(pattern) and not Path(pattern).exists() else [pattern]  # noqa: PTH207 - absolute patterns


def expand_braces(pattern: str) -> list[str]:
    """Every text that a pattern with `{000..009}` and `{a,b}` stands for, as a shell expands it.

    Raises:
        DatasetError: they are more than a million, or braces are nested.
    """
    if re.search(r"\{[^}]*\{", pattern):
        raise DatasetError(f"The braces of {pattern!r} are nested: write its parts out.")
    found = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", pattern)
    if found is None:
        return [pattern]
    first, last, words = found.groups()
    if words is not None:
        choices: Iterable[str] = words.split(",")
    else:
        width = max(len(first), len(last)) if "0" in (first[0], last[0]) else 0
        step = 1 if int(first) <= int(last) else -1
        numbers = range(int(first), int(last) + step, step)
        if len(numbers) > _MOST_SHARDS:
            raise DatasetError(f"{pattern!r} stands for more than {_MOST_SHARDS:,} shards.")
        choices = (f"{number:0{width}d}" for number in numbers)
    head, tails = pattern[: found.start()], expand_braces(pattern[found.end() :])
    return [head + choice + tail for choice in choices for tail in tails]


def _is_gzipped(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(2) == b"\x1f\x8b"


class _Shard(Protocol):
    def read(self, offset: int, size: int) -> bytes: ...


class _PlainShard:
    """An archive that any number of threads read at once."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY)

    def read(self, offset: int, size: int) -> bytes:
        return os.pread(self._descriptor, size, offset)

    def __del__(self) -> None:
        # Closed when the last thread lets go of it, whenever the cache has.
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)


class _GzippedShard:
    """An archive that is read by one thread at a time; reading backwards starts it again."""

    def __init__(self, path: Path) -> None:
        self._stream = gzip.open(path)  # noqa: SIM115 - open as long as the object lives
        self._lock = threading.Lock()

    def read(self, offset: int, size: int) -> bytes:
        with self._lock:
            self._stream.seek(offset)
            return self._stream.read(size)

    def __del__(self) -> None:
        if hasattr(self, "_stream"):
            self._stream.close()


def _opened(path: Path) -> _Shard:
    return _GzippedShard(path) if _is_gzipped(path) else _PlainShard(path)


# --- what is in them --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Fields:
    """Which members, in lower case, and which keys of the `json` member hold what; the first that is there counts.

    Attributes:
        asked: the label and the caption that a user named, which every sample must have.
    """

    image: str | None
    label: tuple[str, ...]
    label_keys: tuple[str, ...]
    caption: tuple[str, ...]
    caption_keys: tuple[str, ...]
    asked: Mapping[str, str]

    @classmethod
    def of(cls, columns: Mapping[str, str]) -> _Fields:
        asked = {role: columns[role] for role in ("label", "caption") if role in columns}
        label, caption = ((asked[role],) if role in asked else () for role in ("label", "caption"))
        return cls(
            image=columns["image"].lower() if "image" in columns else None,
            label=tuple(kind.lower() for kind in label or LABEL_MEMBERS),
            label_keys=label or LABEL_KEYS,
            caption=tuple(kind.lower() for kind in caption or CAPTION_MEMBERS),
            caption_keys=caption or CAPTION_KEYS,
            asked=asked,
        )

    @functools.cached_property
    def texts(self) -> frozenset[str]:
        """Members that are read when the source is opened."""
        return frozenset((*self.label, *self.caption, "json"))


@dataclass
class _Index:
    """Where the samples of the shards lie, and what they say about themselves.

    Attributes:
        keys: N keys.
        offsets, sizes: int64 [N], of the images.
        firsts: the first sample of every shard.
        captions: the captions of those that have one.
    """

    fields: _Fields
    keys: Texts = field(default_factory=Texts)
    offsets: array[int] = field(default_factory=lambda: array("q"))
    sizes: array[int] = field(default_factory=lambda: array("q"))
    firsts: list[int] = field(default_factory=list)
    captions: Texts = field(default_factory=Texts)
    _label_numbers: array[int] = field(default_factory=lambda: array("q"))
    _label_names: dict[str | None, int] = field(default_factory=dict)

    def read(self, path: Path) -> None:
        """Add the samples of one shard.

        Raises:
            DatasetError: it is broken or unsafe, or a sample is.
        """
        self.firsts.append(len(self.keys))
        seen: set[str] = set()
        try:
            with gzip.open(path) if _is_gzipped(path) else path.open("rb", buffering=1024) as stream:
                length = None if isinstance(stream, gzip.GzipFile) else path.stat().st_size
                for key, sample in _samples(stream, str(path), length, self.fields.texts):  # type: ignore[arg-type]
                    if key in seen:
                        raise DatasetError(f"The members of sample {key!r} in {str(path)!r} do not lie together.")
                    seen.add(key)
                    self._add(key, sample, str(path))
        except _UNREADABLE as error:
            raise DatasetError(f"Cannot read {str(path)!r}: {error}. Fetch or pack it again.") from error

    def _add(self, key: str, sample: _Sample, shard: str) -> None:
        where = f"Sample {key!r} in {shard!r}"
        image = self._image(sample, where)
        label, caption = self._texts(sample, where)
        for role, asked in self.fields.asked.items():
            if (label if role == "label" else caption) is None:
                raise DatasetError(f"{where} has no {role} {asked!r}, neither as a member nor as a key of its json.")
        if self._label_names and (label is None) != (None in self._label_names):
            raise DatasetError(
                f"{where} has {'no' if label is None else 'a'} label, unlike the samples before it. Label all or none."
            )
        self._label_numbers.append(self._label_names.setdefault(label, len(self._label_names)))
        if caption is not None:
            self.captions.append(caption)
        self.keys.append(key)
        self.offsets.append(image.offset)
        self.sizes.append(image.size)

    def _image(self, sample: _Sample, where: str) -> Member:
        if self.fields.image is not None:
            kinds = [kind for kind in sample.members if kind == self.fields.image]
        else:
            kinds = [kind for kind in sample.members if f".{kind}".endswith(IMAGE_SUFFIXES)]
        if len(kinds) > 1:
            raise OptionError(f"{where} has several images: {', '.join(kinds)}. Choose one with --image-column.")
        if not kinds:
            what = "image" if self.fields.image is None else f"member {self.fields.image!r}"
            raise DatasetError(f"{where} has no {what}; its members are {', '.join(sample.members)}.")
        image = sample.members[kinds[0]]
        if image.size > _LONGEST_IMAGE:
            raise DatasetError(f"{where} has an image file of {image.size:,} bytes, more than {_LONGEST_IMAGE:,}.")
        return image

    def _texts(self, sample: _Sample, where: str) -> tuple[str | None, str | None]:
        """Label and caption of a sample, None for what it lacks."""
        try:
            label = next((sample.texts[kind].decode() for kind in self.fields.label if kind in sample.texts), None)
            caption = next((sample.texts[kind].decode() for kind in self.fields.caption if kind in sample.texts), None)
            found = json.loads(sample.texts.get("json", b"null")) if label is None or caption is None else None
            if isinstance(found, dict):
                label = self._json_label(found) if label is None else label
                texts = (found[key] for key in self.fields.caption_keys if isinstance(found.get(key), str))
                caption = next(texts, None) if caption is None else caption
            label = label.strip() or None if label is not None else None
            for text in (label or "", caption or ""):
                text.encode()  # json can escape halves of characters, which no file can hold
        except (ValueError, RecursionError) as error:
            raise DatasetError(f"{where} has a label, caption or json that cannot be read: {error}.") from error
        if label is not None and len(label) > _LONGEST_LABEL:
            raise DatasetError(f"{where} has a label of {len(label):,} characters, which is no class.")
        return label, caption

    def _json_label(self, found: dict[str, Any]) -> str | None:
        values = (found[key] for key in self.fields.label_keys if isinstance(found.get(key), int | float | str))
        return label_name(next(values, None))

    def classes(self, listed: tuple[Path, tuple[str, ...]] | None) -> tuple[tuple[str, ...], NDArray[np.int64] | None]:
        """Class names, and labels int64 [N]; nothing where the samples have no labels.

        Raises:
            DatasetError: a label that `listed` (a file and its names) does not have.
        """
        values = [name for name in self._label_names if name is not None]
        if not values:
            return (), None
        if listed is None:
            names = class_names_of(values)
            label_of_value = labels_of(values, names)
        else:
            path, names = listed
            if all(value.isdecimal() for value in values):
                unknown = [value for value in values if int(value) >= len(names)]
                label_of_value = np.array([int(value) for value in values if value not in unknown], dtype=np.int64)
            else:
                unknown = [value for value in values if value not in names]
                label_of_value = labels_of([value for value in values if value in names], names)
            if unknown:
                raise DatasetError(f"The label {unknown[0]!r} is not among the {len(names)} classes of {str(path)!r}.")
        return names, label_of_value[np.array(self._label_numbers, dtype=np.int64)]

    def all_captions(self) -> Texts | None:
        return self.captions if len(self.captions) == len(self.keys) else None


@dataclass
class _Sample:
    """The members of a sample by what follows its key, in lower case, and the contents of those that are texts."""

    members: dict[str, Member] = field(default_factory=dict)
    texts: dict[str, bytes] = field(default_factory=dict)


def _samples(
    stream: BinaryIO, archive: str, length: int | None, texts: frozenset[str]
) -> Iterator[tuple[str, _Sample]]:
    """Runs of members with one key; the contents of members that are called like `texts` are read."""
    keyed = ((*_key_and_kind(member.name), member) for member in members(stream, archive, length))
    for key, run in itertools.groupby((each for each in keyed if each[0]), key=lambda each: each[0]):
        sample = _Sample()
        for _, kind, member in run:
            if kind in sample.members:
                raise DatasetError(f"{archive!r} has two members {member.name!r}.")
            sample.members[kind] = member
            if kind in texts:
                if member.size > _LONGEST_TEXT:
                    raise DatasetError(
                        f"{member.name!r} in {archive!r} has {member.size:,} bytes, too many for a text."
                    )
                stream.seek(member.offset)
                sample.texts[kind] = stream.read(member.size)
        yield key, sample


def _key_and_kind(name: str) -> tuple[str, str]:
    """`("a/b", "seg.png")` of `a/b.seg.png`; an empty key for what is no part of a sample."""
    folder, slash, base = name.rpartition("/")
    stem, dot, kind = base.partition(".")
    skipped = not (stem and dot and kind) or (name.startswith("__") and name.endswith("__"))
    return ("", "") if skipped else (folder + slash + stem, kind.lower())


def _listed_classes(request: DatasetRequest, folder: Path) -> tuple[Path, tuple[str, ...]] | None:
    """The file that lists the classes, and the classes."""
    root = Path(request.location).expanduser()
    folders: Sequence[Path] = (folder, root) if root.is_dir() else (folder,)
    for path in (folder / name for folder in folders for name in CLASS_FILES):
        if path.is_file():
            try:
                names = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
            except (OSError, UnicodeDecodeError) as error:
                raise DatasetError(f"Cannot read {str(path)!r}: {error}.") from error
            if len(set(names)) != len(names):
                raise DatasetError(f"{str(path)!r} names a class twice.")
            return path, names
    return None
