"""The tables of README.md, in Markdown, from the results of a sweep.

tables.py RESULTS.json [METRIC]      by ratio: the mean over seeds, with several seeds each value, too
"""

from __future__ import annotations

import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

METRIC = "fd:resnet18"


def method(cell: dict[str, Any]) -> str:
    """What all seeds and ratios of a row have in common, in words."""
    choice = cell["scorer"] or ("InfoBatch" if cell["dynamic"] else "all images")
    encoder = f" ({cell['encoder']})" if cell["encoder"] else ""
    weights = ", DRO weights" if cell["weights"] else ""
    anneal = f", annealing {cell['anneal']:g}" if cell["anneal"] else ""
    return f"{choice}{encoder}{weights}{anneal}"


def value(results: Path, cell: dict[str, Any], metric: str) -> float | None:
    """The metric of one cell, over all classes; None where it was not measured."""
    for file in cell["metrics"]:
        for each in json.loads((results.parent / file["path"]).read_text())["metrics"]:
            if each["name"] == metric and each.get("class_name") is None:
                return float(each["value"])
    return None


def shown(values: dict[int, float]) -> str:
    """`0.97 (0.80, 1.15)`: the mean, and the values of the seeds in their order."""
    mean = f"{statistics.fmean(values.values()):.3g}"
    return mean if len(values) < 2 else f"{mean} ({', '.join(f'{values[seed]:.3g}' for seed in sorted(values))})"


def main() -> None:
    results, metric = Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else METRIC
    found: dict[str, dict[float, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for cell in json.loads(results.read_text())["cells"]:
        measured = value(results, cell, metric)
        if measured is not None:
            found[method(cell)][cell["ratio"]][cell["seed"]] = measured
    ratios = sorted({ratio for row in found.values() for ratio in row})
    lines = [["method", *(f"{ratio:.0%}" for ratio in ratios)], ["---"] * (len(ratios) + 1)]
    lines += [[name, *(shown(row[ratio]) if ratio in row else "" for ratio in ratios)] for name, row in found.items()]
    sys.stdout.writelines(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    main()
