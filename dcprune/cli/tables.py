"""Plain tables on stdout: columns that line up, nothing that a pipe would have to strip."""

from __future__ import annotations

import math
from collections.abc import Sequence

import typer

GAP = "  "
_UNITS = ("B", "kB", "MB", "GB", "TB")


def show(title: str, header: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> None:
    """Print a table under its title; the first `left` columns are texts, the others numbers."""
    typer.echo(title)
    widths = [max(len(cell) for cell in column) for column in zip(header, *rows, strict=True)]
    for row in (header, *rows):
        cells = [
            cell.ljust(width) if position < left else cell.rjust(width)
            for position, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        typer.echo(GAP.join(cells).rstrip())


def number(value: float) -> str:
    """Four significant digits."""
    return f"{value:.4g}"


def size(num_bytes: int | None) -> str:
    """Bytes in the unit that leaves few digits; a dash for an unknown size."""
    if num_bytes is None:
        return "-"
    power = 0 if num_bytes < 1000 else min(len(_UNITS) - 1, int(math.log10(num_bytes)) // 3)
    value = num_bytes / 1000**power
    return f"{value:.0f} {_UNITS[power]}" if value >= 100 or power == 0 else f"{value:.3g} {_UNITS[power]}"
