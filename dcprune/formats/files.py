"""Files as such: atomic writing, hashing, and paths that survive a move of the whole experiment."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from dcprune.artifacts import InputFile
from dcprune.errors import MissingInput, OutputExists

StrPath = str | os.PathLike[str]
STDIO = "-"
_CHUNK = 1 << 20
_MANY_FILES = 500


def check_output(path: StrPath, overwrite: bool = False) -> Path:
    """The path to write to, checked before any work is done.

    Raises:
        OutputExists: it exists and `overwrite` is false, or is a folder where a file should go.
        MissingInput: its folder cannot be created.
    """
    path = Path(path)
    if str(path) == STDIO:
        return path
    if (path.exists() or path.is_symlink()) and not overwrite:
        raise OutputExists(f"{path} exists. Choose another --output, or pass --overwrite.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MissingInput(f"The folder {path.parent} cannot be created: {error.strerror}.") from error
    return path


def check_input(path: StrPath, what: str, hint: str = "") -> Path:
    """The path to read from.

    Raises:
        MissingInput: it does not exist.
    """
    path = Path(path)
    if not path.exists():
        raise MissingInput(f"{what} {str(path)!r} does not exist.{' ' + hint if hint else ''}")
    return path


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync_all(files: Sequence[Path]) -> None:
    """Bring files to the disk: each by itself, or all at once when they are so many that the waits add up."""
    if len(files) > _MANY_FILES and hasattr(os, "sync"):
        os.sync()
        return
    for file in files:
        _sync(file)


@contextmanager
def atomic_file(path: StrPath, *, overwrite: bool = False) -> Iterator[Path]:
    """A temporary path in the folder of `path`; renamed to it when the block succeeds, removed when it does not.

    Raises:
        OutputExists: `path` exists and `overwrite` is false.
    """
    path = check_output(path, overwrite)
    if path.is_dir():
        raise OutputExists(f"{path} is a folder; a file should be written there.")
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def atomic_write(path: StrPath, data: bytes, *, overwrite: bool = False) -> None:
    """Write a whole file or nothing.

    Raises:
        OutputExists: `path` exists and `overwrite` is false.
    """
    with atomic_file(path, overwrite=overwrite) as temporary:
        temporary.write_bytes(data)


@contextmanager
def atomic_folder(path: StrPath, *, overwrite: bool = False) -> Iterator[Path]:
    """A temporary folder beside `path`; renamed to it when the block succeeds, removed when it does not.

    Raises:
        OutputExists: `path` exists and `overwrite` is false.
    """
    path = check_output(path, overwrite)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        _sync_all([file for file in temporary.rglob("*") if file.is_file() and not file.is_symlink()])
        remove(path)
        temporary.replace(path)
        _sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove(path: StrPath) -> None:
    """Remove a file or a folder, if it is there."""
    path = Path(path)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def sha256(path: StrPath) -> str:
    """Hash of a file's bytes, or of a folder's sorted relative names and contents, as 64 hex digits.

    Raises:
        MissingInput: there is nothing at `path`.
    """
    path = check_input(path, "The file")
    digest = hashlib.sha256()
    if path.is_dir():
        for file in sorted(each for each in path.rglob("*") if each.is_file()):
            digest.update(f"{file.relative_to(path).as_posix()}\0{sha256(file)}\n".encode())
        return digest.hexdigest()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def input_file(path: StrPath) -> InputFile:
    """Path and hash of a file or folder that something is made from.

    Raises:
        MissingInput: there is nothing at `path`.
    """
    return InputFile(path=str(path), sha256=sha256(path))


def stored_path(path: str, folder: Path) -> str:
    """How an artifact in `folder` refers to `path`: relative to it, so that the whole tree can move."""
    return Path(os.path.relpath(path, folder)).as_posix()


def restored_path(path: str, folder: Path) -> str:
    """The absolute path that `stored_path` of an artifact in `folder` stands for."""
    return os.path.normpath(folder.absolute() / path)
