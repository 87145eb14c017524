"""A training that can be watched: on a terminal, its numbers and the loss of every class while it goes on."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from dcprune.cli import console

if TYPE_CHECKING:
    from rich.console import Console, Group
    from rich.progress import Progress
    from rich.table import Table

    from dcprune.interfaces import Task

_MOST_CLASSES = 20
_BAR_WIDTH = 30
_BLOCKS = " ▏▎▍▌▋▊▉█"


class TrainingProgress(console.ConsoleProgress):
    """The usual bars and lines, and on a terminal a live view of the task `train`."""

    @contextmanager
    def task(self, description: str, total: int | None, unit: str = "it") -> Iterator[Task]:
        """See `dcprune.interfaces.Progress`."""
        if description != "train" or console.settings.quiet or not sys.stderr.isatty():
            with super().task(description, total, unit) as task:
                yield task
            return
        from rich.console import Console
        from rich.live import Live

        terminal = Console(stderr=True)
        view = TrainingView(terminal, total, unit)
        with Live(
            get_renderable=view.render, console=terminal, refresh_per_second=4, transient=True, redirect_stdout=False
        ):
            yield view


class TrainingView:
    """What the live view shows; a `dcprune.interfaces.Task` and a `ClassTask`.

    Args:
        terminal: where it is shown.
        total: updates of the run.
        unit: what is counted.
    """

    def __init__(self, terminal: Console, total: int | None, unit: str) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._bars: Progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(unit),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=terminal,
        )
        self._id = self._bars.add_task("train", total=total)
        self._values: dict[str, float | str] = {}
        self._classes: Mapping[str, float | None] = {}

    def advance(self, amount: int = 1, **values: float | str) -> None:
        """See `dcprune.interfaces.Task`."""
        self._values |= values
        self._bars.update(self._id, advance=amount)

    def show_classes(self, values: Mapping[str, float | None]) -> None:
        """See `dcprune.interfaces.ClassTask`."""
        self._classes = {**self._classes, **{name: value for name, value in values.items() if value is not None}}

    def render(self) -> Group:
        """Everything, as it is now."""
        from rich.console import Group

        return Group(*([self._table()] if self._values else []), self._bars)

    def _table(self) -> Table:
        from rich.table import Table

        table = Table.grid(padding=(0, 2))
        table.add_column(no_wrap=True)
        table.add_column(justify="right")
        table.add_column(no_wrap=True)
        for name, value in self._values.items():
            table.add_row(name, _short(value))
        shown = most_and_least({name: value for name, value in self._classes.items() if value is not None})
        largest = max(shown.values(), default=0.0)
        for name, value in shown.items():
            table.add_row(f"[dim]loss of[/dim] {_escaped(name)}", _short(value), bar(value, largest))
        if len(shown) < len(self._classes):
            table.add_row(f"[dim]{len(self._classes) - len(shown)} classes between[/dim]")
        return table


def most_and_least(values: Mapping[str, float]) -> dict[str, float]:
    """All values in their order, or those of the ten highest and ten lowest classes when there are more."""
    if len(values) <= _MOST_CLASSES:
        return dict(values)
    ordered = sorted(values.items(), key=lambda pair: -pair[1])
    return dict([*ordered[: _MOST_CLASSES // 2], *ordered[-_MOST_CLASSES // 2 :]])


def bar(value: float, largest: float) -> str:
    """`value` as a bar in eighths of a character, `largest` being the whole width."""
    if not (math.isfinite(value) and largest > 0):
        return ""
    eighths = round(8 * _BAR_WIDTH * value / largest)
    return _BLOCKS[8] * (eighths // 8) + _BLOCKS[eighths % 8].strip()


def _short(value: float | str) -> str:
    return f"{value:.4g}" if isinstance(value, float) else value


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)
