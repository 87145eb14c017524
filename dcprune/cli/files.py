"""`dcprune inspect` and `dcprune verify`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from dcprune.cli import console, options

Files = Annotated[list[Path], typer.Argument(metavar="FILE...", help="Any file or folder that dcprune wrote.")]


def inspect(files: Files) -> None:
    """Describe artifacts: what they hold, of which dataset, and the command that made them."""
    from dcprune.api.inspection import describe

    descriptions = [describe(file) for file in files]
    if console.settings.json:
        typer.echo(json.dumps(descriptions[0] if len(descriptions) == 1 else descriptions, ensure_ascii=False))
        return
    for number, description in enumerate(descriptions):
        if number:
            typer.echo()
        width = max(map(len, description))
        for name, value in description.items():
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            typer.echo(f"{name.ljust(width)}  {text}")


def verify(
    files: Files,
    data_dir: options.DataDir = None,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Exit with 0 when all that is here is as it was.")
    ] = False,
) -> None:
    """Check hashes and the chain back to the dataset; exit code 3 when something differs or is missing."""
    from dcprune.api.inspection import verify as api_verify
    from dcprune.errors import VerificationError

    checks = [check for file in files for check in api_verify(file, data_dir=data_dir)]
    if console.settings.json:
        typer.echo(json.dumps([asdict(check) for check in checks], ensure_ascii=False))
    else:
        for check in checks:
            word = "ok" if check.holds else "missing" if check.missing else "DIFFERS"
            typer.echo(f"{word.ljust(7)}  {check.subject} {check.detail}")
    missing = sum(check.missing for check in checks)
    differs = sum(not check.holds for check in checks) - missing
    if differs or (missing and not allow_missing):
        found = f"{differs} of {len(checks)} checks found a difference"
        raise VerificationError(f"{found}, {missing} found nothing to check." if missing else f"{found}.")
