"""`dcprune sweep`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dcprune.cli import console, options


def sweep(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="SWEEP.toml...", help="What to run; what a further file says goes before."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of results.json.")] = Path("sweep"),
    cache: Annotated[
        Path | None,
        typer.Option(help="Folder of the stages; sweeps with the same one share them.", show_default="the output"),
    ] = None,
    only: Annotated[
        list[str],
        typer.Option(help="Only cells called like this, as in a shell: 'resnet18-moderate-*'.", show_default="all"),
    ] = [],  # noqa: B006 - Typer reads the default, nothing changes it
    seeds: Annotated[
        str | None, typer.Option(metavar="S[,S...]", help="Instead of the file's seeds.", show_default="the file's")
    ] = None,
    devices: Annotated[
        str | None,
        typer.Option(metavar="D[,D...]", help="A stage at a time on each.", show_default="every GPU, else the CPU"),
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Stages at a time on a CPU.", show_default="1")] = None,
    data_dir: options.DataDir = None,
    dry_run: options.DryRun = False,
) -> None:
    """Run a grid of encoder x scorer x ratio x weights x annealing x seed -> sweep/results.json.

    dcprune sweep examples/paper/table1.toml --dry-run

    Every stage is done once, by its own process, and kept under the hash of all that decides it. Killed at any moment,
    the same command goes on. A stage that fails stops only what needs it; at the end the exit code is 1.
    """
    from dcprune.api.sweeping import sweep as api_sweep
    from dcprune.cli.config import options_by_command
    from dcprune.sweep.plan import check_options, read_declaration

    numbers = None if seeds is None else _seeds(seeds)
    known = {name: [each.key for each in found] for name, found in options_by_command().items()}
    check_options(read_declaration(files, numbers), known)
    if dry_run:
        from dcprune.api.sweep_estimate import estimate_sweep

        _show(estimate_sweep(files, output=output, cache=cache, only=only, seeds=numbers, data_dir=data_dir))
        return
    results = api_sweep(
        files,
        output=output,
        cache=cache,
        only=only,
        seeds=numbers,
        devices=[] if devices is None else devices.split(","),
        workers=workers,
        data_dir=data_dir,
        progress=console.ConsoleProgress(),
    )
    console.emit(output, cells=len(results.cells), evaluated=sum(bool(cell.metrics) for cell in results.cells))


def _seeds(text: str) -> list[int]:
    from dcprune.errors import OptionError

    entries = [each.strip() for each in text.strip("[] ").split(",")]
    if not all(each.isdecimal() for each in entries):
        raise OptionError(f"--seeds takes whole numbers separated by commas, not {text!r}.")
    return [int(each) for each in entries]


def _show(plan: dict[str, object]) -> None:
    """The stages as a table, and their sum; one JSON object with `--json`."""
    from dcprune.cli import tables

    stages = plan["stages"]
    if console.settings.json or not isinstance(stages, list):
        console.emit(None, **plan)
        return
    rows = [
        (each["command"], each["name"], "done" if each["done"] else _hours(each["device_hours"])) for each in stages
    ]
    tables.show("Stages", ("command", "what", "device hours"), rows, left=2)
    console.emit(None, **{name: value for name, value in plan.items() if name != "stages"})


def _hours(hours: float | None) -> str:
    return "?" if hours is None else f"{hours:.3g}"
