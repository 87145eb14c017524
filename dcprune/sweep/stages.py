"""One call of a command in a sweep, and the key that tells it from every other call."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from dcprune import formats

# What each command writes into a folder of its own; a run is the folder itself.
OUTPUTS: Final[Mapping[str, str]] = {
    "embed": "embeddings.safetensors",
    "select": "coreset.json",
    "reweight": "weights.json",
    "train": "",
    "eval": "metrics.json",
}

# Options that decide when and where something is written, and what a user sees, but not what is found out.
_FREE = frozenset(
    {"checkpoint_every", "data_dir", "device", "num_workers", "sample_every", "tracker", "quiet", "verbose", "debug"}
)
_KEY_DIGITS = 10


@dataclass(frozen=True)
class Stage:
    """One call of a command.

    Attributes:
        command: its name, a key of `OUTPUTS`.
        name: what the stage is about, for people and file names.
        options: of the call, as `dcprune config show` names them; values of `set` among them.
        inputs: stages whose output an option takes; a key `set.NAME` is a setting.
        identity: whatever else decides the result: the fingerprint of a dataset that an option names, the recipe that
            a preset stands for.
    """

    command: str
    name: str
    options: Mapping[str, Any]
    inputs: Mapping[str, Stage] = field(default_factory=dict)
    identity: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def key(self) -> str:
        """sha256, 64 hex digits, of the options, the bytes of files that they name, and the keys of the inputs."""
        decisive = {name: value for name, value in self.options.items() if name not in _FREE}
        material = {
            "dcprune": metadata.version("dcprune"),
            "command": self.command,
            "options": decisive,
            "files": {place: formats.sha256(path) for place, path in _files(decisive)},
            "inputs": {name: stage.key for name, stage in self.inputs.items()},
            "identity": self.identity,
        }
        return hashlib.sha256(json.dumps(material, sort_keys=True).encode()).hexdigest()

    @property
    def slug(self) -> str:
        """A name that no other stage has, for files."""
        return f"{self.name}-{self.key[:_KEY_DIGITS]}"


def _files(options: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Path]]:
    """Options, and values of tables, that are paths of files."""
    for name, value in options.items():
        if isinstance(value, Mapping):
            yield from _files(value, f"{prefix}{name}.")
        elif isinstance(value, str) and len(value) < 1024 and Path(value).is_file():
            yield f"{prefix}{name}", Path(value)
