"""The tables of README.md, in Markdown, from the results of a sweep.

tables.py RESULTS.json [METRIC]      by ratio
tables.py RESULTS.json METRIC...     by metric

Values are means over seeds; with several seeds each value stands behind its mean.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

METRIC = "fd:resnet18"


def method(cell: dict[str, Any]) -> str:
    """What all seeds and ratios of a row have in common, in words."""
    choice = cell["scorer"] or ("InfoBatch, annealing 0.875" if cell["dynamic"] else "all images")
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
    """`0.97 (0.80, 1.15)`: the mean, and the values of the seeds in their order; nothing where there are none."""
    if not values:
        return ""
    mean = f"{statistics.fmean(values.values()):.3g}"
    return mean if len(values) < 2 else f"{mean} ({', '.join(f'{values[seed]:.3g}' for seed in sorted(values))})"


def collected(results: Path, metric: str) -> dict[str, dict[float, dict[int, float]]]:
    """Values by method, ratio and seed."""
    found: dict[str, dict[float, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for cell in json.loads(results.read_text())["cells"]:
        measured = value(results, cell, metric)
        if measured is not None:
            found[method(cell)][cell["ratio"]][cell["seed"]] = measured
    return found


def by_ratio(results: Path, metric: str) -> list[list[str]]:
    found = collected(results, metric)
    ratios = sorted({ratio for row in found.values() for ratio in row})
    rows = [[name, *(shown(row[ratio]) if ratio in row else "" for ratio in ratios)] for name, row in found.items()]
    return [["method", *(f"{ratio:.0%}" for ratio in ratios)], *rows]


def by_metric(results: Path, metrics: Sequence[str]) -> list[list[str]]:
    found = [collected(results, metric) for metric in metrics]
    rows = [
        [f"{name}, {ratio:.0%}" if ratio < 1 else name, *(shown(each[name][ratio]) for each in found)]
        for name, row in found[0].items()
        for ratio in sorted(row)
    ]
    return [["method", *metrics], *rows]


def main() -> None:
    results, metrics = Path(sys.argv[1]), sys.argv[2:] or [METRIC]
    lines = by_ratio(results, metrics[0]) if len(metrics) == 1 else by_metric(results, metrics)
    lines.insert(1, ["---"] * len(lines[0]))
    sys.stdout.writelines(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    main()
