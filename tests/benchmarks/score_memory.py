"""Peak memory and time of `dcprune score` on embeddings that do not fit in memory.

Draws row shards in float16 once (5.3 GB for 1,300,000 x 2048, and as much again while they are written), then runs the
command on them in a process of its own for every scorer. The peak is that process's largest resident set, which counts
pages of the mapped files too.

Run by hand, from the repository: python tests/benchmarks/score_memory.py --folder /scratch [--json FILE]
An embeddings folder that is there already is used again. One thread: OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dcprune import formats
from dcprune.artifacts import Rows
from dcprune.testing import gaussian_embeddings

SCORERS = ("gaussian", "moderate", "cluster", "semdedup", "ccs", "prototypicality")
BLOCK = 20_000


def draw(folder: Path, samples: int, dim: int, classes: int, seed: int) -> Path:
    """A folder of row shards: classes in random order, rectified values round the centre of the class."""
    target = folder / f"embeddings-{samples}x{dim}-{classes}"
    if target.exists():
        return target
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, samples)
    centres = rng.normal(size=(classes, dim)).astype(np.float32)
    scales = np.geomspace(2, 0.2, dim).astype(np.float32)
    raw = folder / "raw"
    with raw.open("wb") as file:
        for start in range(0, samples, BLOCK):
            mine = labels[start : start + BLOCK]
            noise = rng.standard_normal((len(mine), dim), dtype=np.float32)
            np.maximum(centres[mine] + scales * noise, 0).astype(np.float16).tofile(file)
    template = gaussian_embeddings(samples, num_classes=classes, dim=1, labels=labels)
    stored = np.memmap(raw, dtype=np.float16, mode="r", shape=(samples, dim))
    encoder = template.encoder.model_copy(update={"dim": dim})
    formats.write_embeddings(replace(template, embeddings=Rows([stored], "float16"), encoder=encoder), target)
    raw.unlink()
    return target


def measured(embeddings: Path, scorer: str, settings: list[str], scratch: Path) -> dict[str, Any]:
    """Seconds and peak MiB of the command."""
    command = [sys.executable, "-m", "dcprune", "score", str(embeddings), "--scorer", scorer, "--device", "cpu"]
    command += ["--ratio", "0.1", "--quiet", "--overwrite", "-o", str(scratch / "scores.safetensors")]
    command += [word for setting in settings for word in ("--set", setting)]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return {
        "scorer": scorer,
        "settings": settings,
        "peak_mib": round(usage.ru_maxrss / 1024),
        "seconds": round(time.perf_counter() - start, 1),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "exit_code": process.returncode,
    }


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--samples", type=int, default=1_300_000)
    parser.add_argument("--dim", type=int, default=2048)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--only", nargs="*", default=list(SCORERS), help="scorers to run")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings of the scorers")
    parser.add_argument("--folder", type=Path, default=Path(), help="where the embeddings lie, or are to lie")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def main() -> None:
    options = parsed()
    embeddings = draw(options.folder, options.samples, options.dim, options.classes, options.seed)
    rows = []
    for scorer in options.only:
        rows.append(measured(embeddings, scorer, options.set, options.folder))
        sys.stdout.write(
            "{peak_mib:6d} MiB  {scorer:16} {seconds:8.1f} s, CPU {cpu_seconds:8.1f} s, exit code {exit_code}\n".format(
                **rows[-1]
            )
        )
        sys.stdout.flush()
        if options.json:
            document = {
                "size": [options.samples, options.dim, options.classes],
                "dtype": "float16",
                "threads": os.environ.get("OMP_NUM_THREADS", str(os.cpu_count())),
                "runs": rows,
            }
            options.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
