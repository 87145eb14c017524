"""`dcprune demo`."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from dcprune.cli import console, options

CHAIN = (
    "dcprune embed fashion-mini --set width=16",
    "dcprune score --scorer moderate",
    "dcprune select --ratio 0.2",
    "dcprune reweight --reference runs/full --steps 60",
    "dcprune train --preset tiny --steps 312 --class-weights weights.json -o runs/core",
    "dcprune eval runs/core --metric fd:resnet18 --set width=16",
)
REFERENCE = "dcprune train fashion-mini --preset tiny -o runs/full"
BASELINES = (
    "dcprune select --scorer random --ratio 0.2 -o random.json",
    "dcprune train --preset tiny --steps 312 --coreset random.json -o runs/random",
    "dcprune eval runs/random --metric fd:resnet18 --set width=16",
    "dcprune eval runs/full --metric fd:resnet18 --set width=16",
    "dcprune report runs/core runs/random runs/full -o report.html",
)


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for everything the demo makes.")] = Path(
        "demo"
    ),
    overwrite: options.Overwrite = False,
    seed: options.Seed = 0,
) -> None:
    """Run the whole chain on 4,000 real images, against random choice and full data, and make the report.

    Under six minutes on two cores; nothing is downloaded. The six commands of the chain are printed at the end.
    """
    from dcprune import formats

    formats.check_output(output, overwrite)
    formats.remove(output)
    output.mkdir(parents=True)
    start = time.monotonic()
    with _working_folder(output):
        for line in (*CHAIN[:3], REFERENCE, *CHAIN[3:], *BASELINES):
            _run(line, seed)
        values = {
            run: formats.read_metrics(Path("runs", run, "metrics.json")).metrics[0].value
            for run in ("core", "random", "full")
        }
    console.say(f"\nDone in {time.monotonic() - start:.0f} s. Lower is better, {_METRIC}:")
    for run, value in values.items():
        console.say(f"  {_LABELS[run]:<38} {value:.2f}")
    console.say(f"\nThe six commands, in {output} (after the reference: {REFERENCE}):")
    for line in CHAIN:
        console.say(f"  {line}")
    console.emit(output / "report.html", values=values, commands=list(CHAIN), reference=REFERENCE)


_METRIC = "Frechet distance to the 4,000 images in ResNet-18 features"
_LABELS = {
    "core": "20 % by moderate + DRO class weights",
    "random": "20 % at random",
    "full": "all images",
}


def _run(line: str, seed: int) -> None:
    """Run one command of the demo in this process; its results go to stderr, because ours go to stdout."""
    from dcprune.cli.app import app

    mine = console.settings
    words = shlex.split(line)[1:]
    if seed and words[0] != "report":
        words += ["--seed", str(seed)]
    console.say(f"\n$ {shlex.join(['dcprune', *words])}")
    with contextlib.redirect_stdout(sys.stderr):
        code = app([*words, *(["--quiet"] if mine.quiet else [])], standalone_mode=False)
    console.settings = mine
    if code:
        raise typer.Exit(code)


@contextlib.contextmanager
def _working_folder(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
