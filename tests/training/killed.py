"""Runs that die: `python killed.py FOLDER STRIDE` trains on FOLDER/coreset.json, undisturbed and with kill -9.

The process forks a child for every attempt, which is quicker than starting Python each time. The first child dies at
the first file operation inside its run folder, the next one STRIDE operations later, and so on. Another child resumes
what each has left.

Prints one JSON object: the number of file operations of an undisturbed run, and for every attempt whether the first
child died and what the run folder held in the end.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from dcprune import formats
from dcprune.api import runs
from dcprune.artifacts import Coreset
from dcprune.backends.ddpm import Ddpm

FILE_OPERATIONS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree", "os.scandir"}
OPTIONS: dict[str, Any] = {
    "preset": "tiny",
    "settings": {
        "resolution": 8,
        "block_out_channels": (8, 8),
        "norm_num_groups": 4,
        "dropout": 0.1,
        "log_every": 1,
        "keep_checkpoints": 1,
    },
    "steps": 4,
    "batch_size": 8,
    "checkpoint_every": 2,
    "device": "cpu",
    "dtype": "fp32",
    "resume": True,
}


def in_child(work: Any) -> int:
    """Run `work` in a fork of this process; its exit status, negative for a signal."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        work()
        os._exit(0)
    finally:  # only an exception comes here
        sys.excepthook(*sys.exc_info())
        os._exit(1)


def attempt(coreset: Coreset, output: Path, die_at: int, count: Path | None = None) -> None:
    """Train, or go on with a run; die at the `die_at`-th file operation, or leave their number in the file `count`."""
    seen = 0

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event in FILE_OPERATIONS and str(arguments[0]).startswith(str(output)):
            seen += 1
            if seen == die_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    runs.train(coreset=coreset, output=output, **OPTIONS)
    if count is not None:
        count.write_text(str(seen))


def contents(run: Path) -> dict[str, Any]:
    """Everything in a run folder that must not depend on what happened on the way."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    record = formats.read_run(run)
    return {
        "model": formats.sha256(run / "model"),
        "samples": formats.sha256(run / "samples"),
        "checkpoints": {
            f"{path.parent.name}/{path.name}": formats.sha256(path)
            for path in sorted((run / "checkpoints").glob("*/*.safetensors"))
        },
        "lines": [{name: value for name, value in line.items() if name != "images_per_second"} for line in lines],
        "step": record.step,
        "updates": record.ledger[0].updates,
        "names": sorted(path.name for path in run.iterdir()),
    }


def main() -> None:
    output, stride = Path(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    runs._GRID_CLASSES = runs._GRID_COLUMNS = 1
    Ddpm()  # what a child imports, every child would import again
    coreset = formats.read_coreset(output / "coreset.json")
    count = output / "count"
    if in_child(lambda: attempt(coreset, output / "whole", 0, count)):
        sys.exit("The undisturbed run failed.")
    total = int(count.read_text())
    found = []
    for step in range(1, total + 1, stride):
        run = output / f"killed-{step}"
        first = in_child(lambda run=run, step=step: attempt(coreset, run, step))
        second = in_child(lambda run=run: attempt(coreset, run, 0))
        found.append({"died": first == -signal.SIGKILL, "resumed": second == 0, **contents(run)})
    sys.stdout.write(json.dumps({"operations": total, "whole": contents(output / "whole"), "attempts": found}))


if __name__ == "__main__":
    main()
