"""`dcprune plugins`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from dcprune.cli import console

if TYPE_CHECKING:
    from dcprune.plugins import Item


def plugins(
    check: Annotated[bool, typer.Option("--check", help="Import every item and say whether it loads.")] = False,
) -> None:
    """List every dataset, encoder, scorer, backend and metric, and the package it comes from."""
    from dcprune.plugins import KINDS, registry

    found = registry()
    rows = [
        {
            "kind": item.kind,
            "name": item.usage,
            "package": item.package,
            "version": item.version,
            "summary": item.summary,
            "status": _load_status(item) if check else "registered",
        }
        for item in sorted(found.items.values(), key=lambda item: (KINDS.index(item.kind), item.name))
    ]
    failed = [
        {"package": failure.package, "version": failure.version, "status": "failed", "reason": failure.reason}
        for failure in found.failures
    ]
    if console.settings.json:
        typer.echo(json.dumps({"items": rows, "failures": failed}, ensure_ascii=False))
        return
    columns = ("kind", "name", "package", "version", *(["status"] if check else []))
    widths = {column: max(len(row[column]) for row in rows) for column in columns}
    for row in rows:
        typer.echo(
            "  ".join([*(row[column].ljust(width) for column, width in widths.items()), row["summary"]]).rstrip()
        )
    for failure in failed:
        typer.echo(f"failed  {failure['package']} {failure['version']}: {failure['reason']}")


def _load_status(item: Item) -> str:
    from dcprune.errors import PluginError

    try:
        item.load()
    except PluginError as error:
        return f"does not load: {error}"
    return "loads"
