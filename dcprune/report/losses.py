"""The training losses that a run wrote down."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Losses:
    """`metrics.jsonl` of a run.

    Attributes:
        steps: int64 [n].
        values: training losses float64 [n].
        classes: losses of every class float64 [n, K], NaN where a class had no samples; None when there are none.
    """

    steps: NDArray[np.int64]
    values: NDArray[np.float64]
    classes: NDArray[np.float64] | None = None


def read_losses(path: Path, note: Callable[[str], None]) -> Losses | None:
    """The training losses of `metrics.jsonl`; a half-written last line is left out, and `note` hears of it."""
    if not path.exists():
        return None
    steps, values, classes = [], [], []
    for line in path.read_text().splitlines():
        try:
            row = json.loads(line)
            step, loss = int(row["step"]), float(row["loss"])
            by_class = [np.nan if each is None else float(each) for each in row.get("class_losses", ())]
        except (ValueError, KeyError, TypeError):
            note(f"{path} has a line that is not a training record; it is left out.")
            continue
        if np.isfinite(loss):
            steps.append(step)
            values.append(loss)
            classes.append(by_class)
    if not steps:
        return None
    complete = len(classes[0]) > 0 and all(len(each) == len(classes[0]) for each in classes)
    return Losses(
        np.asarray(steps, dtype=np.int64),
        np.asarray(values, dtype=np.float64),
        np.asarray(classes, dtype=np.float64) if complete else None,
    )
