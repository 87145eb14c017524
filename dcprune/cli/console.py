"""What a user sees: results on stdout, everything else on stderr."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from dcprune.processes import is_main

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

    from dcprune.interfaces import Task

_PLAIN_INTERVAL = 10.0


@dataclass
class Settings:
    """Shared options of the running command."""

    json: bool = False
    quiet: bool = False
    verbose: bool = False
    debug: bool = False


settings = Settings()


def emit(path: Path | str | None, **summary: Any) -> None:
    """The result of a command on stdout: the path it wrote, or one JSON object with `--json`.

    Of several processes only the first one speaks, here and in `say` and `warn`.
    """
    if str(path) == "-" or not is_main():
        return
    if settings.json:
        typer.echo(json.dumps({**({"path": str(path)} if path is not None else {}), **summary}, ensure_ascii=False))
    else:
        typer.echo(str(path) if path is not None else "\n".join(_lines(*item) for item in summary.items()))
    if settings.verbose and path is not None:
        for name, value in summary.items():
            say(_lines(name, value))


def _lines(name: str, value: Any) -> str:
    """`name: value`; what is in a list below it, one to a line."""
    if not isinstance(value, list):
        return f"{name}: {value}"
    return f"{name}: none" if not value else "\n  ".join([f"{name}:", *map(str, value)])


def say(message: str) -> None:
    """A line on stderr, unless `--quiet`."""
    if not settings.quiet and is_main():
        typer.echo(message, err=True)


def warn(message: str) -> None:
    """A warning on stderr, also with `--quiet`."""
    if is_main():
        typer.secho(f"Warning: {message}", err=True, fg=typer.colors.YELLOW)


def fail(message: str) -> None:
    """An error on stderr, written at once; several processes say which of them it is."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    where = f" in process {os.environ.get('RANK', '0')} of {count}" if count > 1 else ""
    typer.echo(f"{typer.style(f'Error{where}:', fg=typer.colors.RED, bold=True)} {message}", err=True)


class ConsoleProgress:
    """Rich bars on a terminal, a plain line every ten seconds elsewhere, nothing with `--quiet`."""

    @contextmanager
    def task(self, description: str, total: int | None, unit: str = "it") -> Iterator[Task]:
        """See `dcprune.interfaces.Progress`."""
        if settings.quiet or not sys.stderr.isatty():
            yield _PlainTask(description, total, unit)
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(unit),
            TimeRemainingColumn(),
            TextColumn("{task.fields[values]}"),
        )
        with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
            yield _RichTask(bars, bars.add_task(description, total=total, values=""))

    def note(self, message: str) -> None:
        """See `dcprune.interfaces.Progress`."""
        say(message)

    def warn(self, message: str) -> None:
        """See `dcprune.interfaces.Progress`."""
        warn(message)


class _RichTask:
    def __init__(self, bars: RichProgress, task_id: TaskID) -> None:
        self._bars, self._id = bars, task_id

    def advance(self, amount: int = 1, **values: float | str) -> None:
        self._bars.update(self._id, advance=amount)
        if values:
            self._bars.update(self._id, values=_formatted(values))


class _PlainTask:
    def __init__(self, description: str, total: int | None, unit: str) -> None:
        self._description, self._total, self._unit = description, total, unit
        self._done = 0
        self._spoken = time.monotonic()
        self._start: tuple[float, int] | None = None
        self._values: dict[str, float | str] = {}

    def advance(self, amount: int = 1, **values: float | str) -> None:
        self._done += amount
        self._values |= values
        now = time.monotonic()
        if self._start is None:  # what is counted first may have been done before, by a call that was interrupted
            self._start = now, self._done
        if now - self._spoken < _PLAIN_INTERVAL:
            return
        self._spoken = now
        rate = (self._done - self._start[1]) / max(1e-9, now - self._start[0])
        of_total = f"/{self._total}" if self._total else ""
        left = f", {(self._total - self._done) / rate:.0f} s left" if self._total and rate else ""
        shown = f" {_formatted(self._values)}" if self._values else ""
        say(f"{self._description}: {self._done}{of_total} {self._unit}, {rate:.3g} {self._unit}/s{left}{shown}")


def _formatted(values: dict[str, float | str]) -> str:
    return " ".join(
        f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}" for name, value in values.items()
    )
