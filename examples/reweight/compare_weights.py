"""How far the class weights of short proxies are from those of long ones, against the spread between seeds.

compare_weights.py RESULT.json SEED...      reads long-SEED.json, short-SEED.json and short-eta-10-SEED.json
"""

from __future__ import annotations

import itertools
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from dcprune import formats
from dcprune.artifacts import ClassWeights
from dcprune.reweighting import drift

KINDS = ("long", "short", "short-eta-10")

Vector = NDArray[np.float64]


def apart(one: Vector, other: Vector) -> float:
    """Total variation distance of two vectors of mean 1: the share of the weight that lies on another class."""
    return round(float(abs(one - other).sum() / 2 / len(one)), 4)


def described(kind: str, seeds: list[str]) -> dict[str, Any]:
    """The weights of one kind of proxy, and how they spread."""
    files = [formats.read_class_weights(f"{kind}-{seed}.json") for seed in seeds]
    rows = [np.array(list(each.weights.values())) for each in files]
    return {
        "steps": files[0].objective.steps,
        "eta": files[0].objective.eta,
        "weights": {seed: dict(each.weights) for seed, each in zip(seeds, files, strict=True)},
        "mean_weights": dict(zip(files[0].weights, np.mean(rows, axis=0).tolist(), strict=True)),
        "total_variation_between_seeds": [apart(*pair) for pair in itertools.combinations(rows, 2)],
        "total_variation_from_uniform": [apart(row, np.ones(len(row))) for row in rows],
        "drift": [round(drift(each.diagnostics.trajectory), 4) for each in files],
        **({"correlation_with_all_steps_until": settling(files)} if kind == "long" else {}),
        "fraction_clipped": [each.diagnostics.fraction_clipped for each in files],
    }


def settling(files: list[ClassWeights]) -> dict[str, list[float]]:
    """Correlation of the mean weights up to some share of the steps with those of all steps, for each file."""
    found: dict[str, list[float]] = {}
    for share in (0.1, 0.25, 0.5, 0.75):
        found[f"{share:.0%}"] = []
        for each in files:
            steps = np.array([step for step, _ in each.diagnostics.trajectory])
            weights = np.array([row for _, row in each.diagnostics.trajectory])
            until = weights[steps <= share * steps[-1]].mean(0)
            found[f"{share:.0%}"].append(round(float(np.corrcoef(until, weights.mean(0))[0, 1]), 3))
    return found


def compared(found: dict[str, Any], long: dict[str, Any]) -> dict[str, list[float]]:
    """Each short proxy beside the long one of the same seed."""
    pairs = [
        (np.array(list(found["weights"][seed].values())), np.array(list(long["weights"][seed].values())))
        for seed in long["weights"]
    ]
    return {
        "total_variation_from_long": [apart(*pair) for pair in pairs],
        "correlation_with_long": [round(float(np.corrcoef(*pair)[0, 1]), 3) for pair in pairs],
        "rank_correlation_with_long": [round(float(spearmanr(*pair).statistic), 3) for pair in pairs],
    }


def processor() -> str:
    """The processor's own name on Linux, its architecture elsewhere."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


def main() -> None:
    result, *seeds = sys.argv[1:]
    first = formats.read_class_weights(f"long-{seeds[0]}.json")
    kinds = {kind: described(kind, seeds) for kind in KINDS}
    for kind in KINDS[1:]:
        kinds[kind] |= compared(kinds[kind], kinds["long"])
    report = {
        "command": "examples/reweight/proxy-length.sh",
        "dataset": first.dataset.uri,
        "reference_sha256": first.objective.reference_sha256,
        "environment": first.provenance.environment.model_dump(mode="json"),
        "machine": {"processor": processor(), "count": os.cpu_count()},
        **kinds,
    }
    Path(result).write_text(json.dumps(report, indent=1, allow_nan=False) + "\n")
    sys.stdout.write(f"{'mean over seeds':16}" + "".join(f"{kind:>14}" for kind in KINDS) + "\n")
    for name in first.weights:
        values = (kinds[kind]["mean_weights"][name] for kind in KINDS)
        sys.stdout.write(f"{name:16}" + "".join(f"{value:14.3f}" for value in values) + "\n")
    for kind in KINDS:
        words = ("weights", "mean_weights")
        numbers = {name: value for name, value in kinds[kind].items() if name not in words}
        sys.stdout.write(f"{kind}: {json.dumps(numbers)}\n")


if __name__ == "__main__":
    main()
