"""What every figure of the page is, and how many parts of it are shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MAX_BARS = 24


@dataclass(frozen=True)
class Table:
    """The numbers of a figure in words; the first column names the row."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Figure:
    """A chart under its title.

    Attributes:
        svg: the chart, whose accessible name says what it shows.
        note: what a reader must know beside it.
        keys: (colour class, words) pairs.
        table: the numbers, for who does not see the chart.
    """

    title: str
    svg: str
    note: str = ""
    keys: tuple[tuple[str, str], ...] = ()
    table: Table | None = None


def series(position: int) -> str:
    """The colour class of the run or curve at `position`; there are ten."""
    return f"s{position % 10 + 1}"


def extremes(values: Sequence[float], limit: int = MAX_BARS) -> list[int]:
    """Positions to show: all, in order, or the highest and the lowest when there are more than `limit`."""
    if len(values) <= limit:
        return list(range(len(values)))
    order: list[int] = np.argsort(-np.asarray(values), kind="stable").tolist()
    return order[: limit // 2] + order[-(limit - limit // 2) :]


def limited(total: int, what: str) -> str:
    """A sentence that says which of too many classes are shown; empty when all are."""
    return (
        f"The {MAX_BARS // 2} classes with the highest and the {MAX_BARS // 2} with the lowest {what} of {total}."
        if (total > MAX_BARS)
        else ""
    )


def described(title: str, summary: str) -> str:
    """The accessible name of a chart: its title, then in a sentence what it shows."""
    return f"{title}. {summary}" if summary else title
