"""Reads files that may have moved, changed or broken since they were used."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar, cast

from dcprune import formats
from dcprune.artifacts import ClassWeights, Coreset, DatasetIdentity, Embeddings, InputFile, Metrics, Scores
from dcprune.errors import DcpruneError
from dcprune.interfaces import Progress

T = TypeVar("T", Coreset, ClassWeights, Metrics, Scores, Embeddings)


class Reader:
    """Reads files, each once, that may have moved, changed or broken since, and writes down what it met."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.notes: list[str] = []
        self.hashes: dict[str, str] = {}
        self._read: dict[Path, object] = {}

    def sha256(self, path: Path) -> str:
        """Hash of a file; embeddings can be large, so each is hashed once."""
        if str(path) not in self.hashes:
            self.hashes[str(path)] = formats.sha256(path)
        return self.hashes[str(path)]

    def note(self, message: str) -> None:
        if message not in self.notes:
            self.notes.append(message)
            self.progress.warn(message)

    def locate(self, what: str, recorded: InputFile | None, override: Path | None = None) -> Path | None:
        """Where a recorded file lies, or the file that the user named in its place.

        Raises:
            MissingInput: the user named a file that does not exist.
        """
        if override is not None:
            path = formats.check_input(override, f"The {what} file")
        elif recorded is None:
            return None
        else:
            path = Path(recorded.path)
        if not path.exists():
            self.note(f"The {what} file {path} is not there any more, so the page lacks what it would show.")
            return None
        if recorded is not None and self.sha256(path) != recorded.sha256:
            self.note(f"The {what} file {path} has changed since it was used; the page shows it as it is now.")
        return path

    def read(self, what: str, path: Path | None, reader: Callable[[Path], T], dataset: DatasetIdentity) -> T | None:
        """A file's artifact, or None with a note when it cannot be used."""
        if path is None:
            return None
        try:
            artifact = cast(T, self._read[path]) if path in self._read else reader(path)
        except DcpruneError as error:
            self.note(f"The {what} file cannot be read: {error}")
            return None
        self._read[path] = artifact
        if artifact.dataset.fingerprint != dataset.fingerprint:
            self.note(f"The {what} file {path} belongs to another dataset ({artifact.dataset.uri}) and is left out.")
            return None
        self.sha256(path)
        return artifact
