"""Builds the `Provenance` of every artifact, and the command line that repeats it."""

from __future__ import annotations

import platform
import shlex
from collections.abc import Iterable, Mapping
from importlib import metadata
from typing import TYPE_CHECKING, Any

from dcprune import __version__, formats
from dcprune.artifacts import Environment, PluginVersion, Provenance
from dcprune.plugins import registry

if TYPE_CHECKING:
    import torch

_POSITIONAL = ("input", "dataset", "run", "sweep")


def provenance(
    command: str,
    config: Mapping[str, Any],
    *,
    seed: int,
    inputs: Iterable[str | None] = (),
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> Provenance:
    """How an artifact came about.

    Args:
        command: the command's name, such as `"embed"`.
        config: every resolved option under its command-line name in snake_case.
        seed: the seed.
        inputs: paths of the artifacts that were read; None stands for one that was made in memory.
        device: where it ran; None for work that needs no torch.
        dtype: autocast precision.
    """
    from dcprune.devices import device_name, dtype_name

    return Provenance(
        dcprune_version=__version__,
        command=command,
        config=dict(config),
        seed=seed,
        inputs=tuple(formats.input_file(path) for path in inputs if path is not None and path != "-"),
        plugins=tuple(PluginVersion(name=name, version=version) for name, version in registry().versions()),
        environment=Environment(
            python=platform.python_version(),
            torch=metadata.version("torch"),
            device=device_name(device) if device is not None else "cpu",
            dtype=dtype_name(dtype) if dtype is not None else "fp64",
        ),
    )


def command_line(record: Provenance) -> str:
    """The shell command that repeats what `record` describes, without options that are None or empty."""
    words = ["dcprune", record.command]
    for name in _POSITIONAL:
        given = record.config.get(name)
        words += map(str, given) if isinstance(given, list | tuple) else [] if given is None else [str(given)]
    for name, value in record.config.items():
        if name in _POSITIONAL or value is None or value is False or value in ([], {}, ()):
            continue
        flag = "--" + name.replace("_", "-")
        if value is True:
            words.append(flag)
        elif isinstance(value, Mapping):
            for key, setting in value.items():
                words += [flag, f"{key}={setting}"]
        elif isinstance(value, list | tuple):
            for each in value:
                words += [flag, str(each)]
        else:
            words += [flag, str(value)]
    return shlex.join(words)
