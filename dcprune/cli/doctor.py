"""`dcprune doctor`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from dcprune.cli import console, options, tables

if TYPE_CHECKING:
    from dcprune.api.machine import FileStatus, Machine


def doctor(data_dir: options.DataDir = None) -> None:
    """Look at this machine: versions, devices, caches, plugins, and what would be downloaded from where.

    Nothing is downloaded. Exit code 1 when something has to be put right.
    """
    from dcprune.api.machine import doctor as api_doctor
    from dcprune.errors import DcpruneError

    machine = api_doctor(data_dir=data_dir, progress=console.ConsoleProgress())
    if console.settings.json:
        typer.echo(json.dumps(asdict(machine), ensure_ascii=False))
    else:
        _show(machine)
    for warning in machine.warnings:
        console.warn(warning)
    if machine.problems:
        raise DcpruneError(" ".join(machine.problems))


def _show(machine: Machine) -> None:
    versions = [(name, version or "not installed") for name, version in machine.versions.items()]
    tables.show("Versions", ("library", "version"), versions, left=2)
    if machine.environment:
        typer.echo()
        tables.show("Environment", ("variable", "value"), list(machine.environment.items()), left=2)
    typer.echo()
    devices = [
        (each.name, each.model, tables.size(each.memory_bytes), ", ".join(each.dtypes), each.auto_dtype)
        for each in machine.devices
    ]
    tables.show("Devices", ("device", "model", "memory", "fast in", "--dtype auto"), devices, left=5)
    typer.echo()
    caches = [
        (
            each.name,
            each.variable,
            each.path,
            f"{each.num_files}",
            tables.size(each.num_bytes),
            tables.size(each.free_bytes),
        )
        for each in machine.caches
    ]
    tables.show("Caches", ("cache", "moved by", "folder", "files", "size", "free"), caches, left=3)
    if machine.plugins:
        typer.echo()
        tables.show("Plugins", ("package", "version"), machine.plugins, left=2)
    typer.echo()
    show_files("Files that are fetched when they are needed; `dcprune prefetch` fetches them now", machine.files)


def show_files(title: str, files: Sequence[FileStatus], digits: int = 12) -> None:
    """A table of files that are fetched, with the first `digits` of their hashes."""
    rows = [
        (
            f"{each.kind} {each.item}" + (f" ({each.weights})" if each.weights else ""),
            "here" if each.found else "missing",
            tables.size(each.num_bytes),
            each.sha256[:digits] or "-",
            each.url,
            each.found or each.target,
        )
        for each in files
    ]
    tables.show(title, ("needed by", "state", "size", "sha256", "from", "place"), rows, left=6)
