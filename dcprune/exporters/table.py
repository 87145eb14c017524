"""`csv`: a row per sample with the weight that a trainer gives it."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from dcprune.exporters.samples import Samples

COLUMNS = ("index", "id", "label", "class", "weight")


def write_csv(samples: Samples, path: Path, *, dropped: bool = False) -> None:
    """Write the columns `COLUMNS`; `label` and `class` are empty for class-less data.

    Args:
        samples: the kept samples.
        path: the file to write.
        dropped: also write the samples that are not kept, with weight 0.
    """
    source = samples.source
    weights = np.zeros(len(source))
    weights[samples.rows] = samples.weights
    with path.open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(COLUMNS)
        for row in range(len(source)) if dropped else samples:
            label = samples.label(row)
            name = "" if label is None else source.class_names[label]
            # float's own text reads back to the same bits.
            table.writerow([row, samples.id(row), "" if label is None else label, name, float(weights[row])])
