"""Paths that come with data, which must stay in the data's folder."""

from __future__ import annotations

import posixpath
import stat
from pathlib import Path

from dcprune.errors import DatasetError


def is_tidy(name: str) -> bool:
    """Whether a name is a relative path that stays below its folder, written in the shortest way."""
    return name == posixpath.normpath(name) and not posixpath.isabs(name) and name.split("/")[0] not in ("..", ".")


class Inside:
    """A folder out of which no path leads: data from elsewhere could otherwise take in any file of this machine.

    Args:
        folder: the folder; it may itself be reached through links.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self._real = folder.resolve()
        self._parents: dict[Path, bool] = {}

    def name(self, entry: str) -> str:
        """A path as it was written, tidied and relative to the folder (`a/./b.png` is `a/b.png`).

        Raises:
            DatasetError: it is empty, or leads out of the folder by itself: as an absolute path, or by `..`.
        """
        if not entry.strip() or "\0" in entry:
            raise DatasetError("there is no path of an image")
        path = Path(entry)
        if path.is_absolute():
            root = next((root for root in (self.folder, self._real) if path.is_relative_to(root)), None)
            if root is None:
                raise self._outside(entry)
            path = path.relative_to(root)
        name = posixpath.normpath(path.as_posix())
        if name == ".." or name.startswith("../"):
            raise self._outside(entry)
        return name

    def size(self, name: str) -> int | None:
        """Bytes of the file with that `name`, or None where there is none.

        Raises:
            DatasetError: a link leads out of the folder, or it is no file.
        """
        path = self.folder / name
        parent = path.parent
        if parent not in self._parents:
            self._parents[parent] = self._holds(parent)
        try:
            status = path.lstat()
            linked = stat.S_ISLNK(status.st_mode)
            if not self._parents[parent] or (linked and not self._holds(path)):
                raise self._outside(name)
            status = path.stat() if linked else status
        except OSError:
            return None
        if not stat.S_ISREG(status.st_mode):
            raise DatasetError(f"{name!r} is no file")
        return status.st_size

    def _holds(self, path: Path) -> bool:
        return path.resolve().is_relative_to(self._real)

    def _outside(self, entry: str) -> DatasetError:
        return DatasetError(f"{entry!r} leads out of the folder {str(self.folder)!r}, in which all images must lie")
