"""Frechet distance against SciPy's matrix square root (clean-fid, pytorch-fid) and eigenvalues of the product.

Run by hand, from the repository: python tests/benchmarks/frechet.py [--dim 2048] [--rounds 3] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.linalg
import torch
from numpy.typing import NDArray

from dcprune.metrics.frechet import frechet_distance, moments

Array = NDArray[np.float64]
Distance = Callable[[Array, Array, Array, Array], float]


def by_sqrtm(mean1: Array, cov1: Array, mean2: Array, cov2: Array) -> float:
    """The way of clean-fid and pytorch-fid."""
    root = scipy.linalg.sqrtm(cov1 @ cov2)
    return float(((mean1 - mean2) ** 2).sum() + np.trace(cov1) + np.trace(cov2) - 2 * np.trace(root.real))


def by_eigvals(mean1: Array, cov1: Array, mean2: Array, cov2: Array) -> float:
    """The way of torch-fidelity and torchmetrics."""
    eigenvalues = torch.linalg.eigvals(torch.from_numpy(cov1) @ torch.from_numpy(cov2))
    root = float(eigenvalues.sqrt().real.sum())
    return float(((mean1 - mean2) ** 2).sum() + np.trace(cov1) + np.trace(cov2) - 2 * root)


PEERS: dict[str, Distance] = {"dcprune": frechet_distance, "scipy sqrtm": by_sqrtm, "torch eigvals": by_eigvals}


def features(generator: np.random.Generator, rows: int, dim: int) -> NDArray[np.float32]:
    """Correlated rows whose variances fall off by a factor of a million, as those of networks do."""
    scales = np.geomspace(1, 1e-3, dim)
    mixing = generator.normal(size=(dim, dim)) / np.sqrt(dim)
    rows_of_features: Array = (generator.normal(size=(rows, dim)) * scales) @ mixing
    return rows_of_features.astype(np.float32)


def run(dim: int, rounds: int, seed: int) -> list[dict[str, Any]]:
    generator = np.random.default_rng(seed)
    inputs = []
    for rows in (3 * dim, 3 * dim):
        mean, cov, _ = moments(features(generator, rows, dim))
        inputs += [mean, cov]
    seconds: dict[str, list[float]] = {name: [] for name in PEERS}
    values: dict[str, float] = {}
    for distance in PEERS.values():
        distance(*(each[:64] if each.ndim == 1 else each[:64, :64] for each in inputs))
    for _ in range(rounds):
        for name, distance in PEERS.items():
            start = time.perf_counter()
            values[name] = distance(*inputs)
            seconds[name].append(time.perf_counter() - start)
    own = statistics.median(seconds["dcprune"])
    return [
        {
            "peer": name,
            "ratio": statistics.median(times) / own,
            "seconds": statistics.median(times),
            "fastest": min(times),
            "slowest": max(times),
            "value": values[name],
        }
        for name, times in seconds.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--dim", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results = run(options.dim, options.rounds, options.seed)
    for each in results:
        sys.stdout.write(
            "{ratio:6.2f} x  {peer:14} {seconds:8.3f} s ({fastest:.3f} to {slowest:.3f})  value {value:.10g}\n".format(
                **each
            )
        )
    if options.json:
        document = {
            "dim": options.dim,
            "rounds": options.rounds,
            "threads": torch.get_num_threads(),
            "results": results,
        }
        options.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
