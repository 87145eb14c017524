"""Plain tables on stdout: columns that line up, nothing that a pipe would have to strip."""

from __future__ import annotations

from collections.abc import Sequence

import typer

GAP = "  "


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
