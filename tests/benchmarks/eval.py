"""Frechet distance and CMMD against the ways of public packages, on the same inputs in the same run.

Frechet: SciPy's matrix square root (clean-fid, pytorch-fid) and eigenvalues of the product (torch-fidelity,
torchmetrics), from the same moments. CMMD: whole kernel matrices in float32, from embeddings that are normalised
already; dcprune's time includes normalising them. The deviation is from every pair in float64, or from SciPy's root.
Beside the ratio of wall clocks stands that of processor time, which other work on the machine disturbs less.

Run by hand, from the repository:

    python tests/benchmarks/eval.py [--case frechet cmmd] [--dim 2048] [--rounds 3] [--json FILE]
    python tests/benchmarks/eval.py --case cmmd --num-samples 50000 --alone        memory and time without the peer
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import scipy.linalg
import torch
from numpy.typing import NDArray

from dcprune.artifacts import Rows
from dcprune.metrics.cmmd import cmmd
from dcprune.metrics.frechet import frechet_distance, moments

Array = NDArray[np.float64]
Matrix = NDArray[np.float32]
Way = Callable[[], float]

OWN = "dcprune"


# --- Frechet ----------------------------------------------------------------------------------------------------------


def by_sqrtm(mean1: Array, cov1: Array, mean2: Array, cov2: Array) -> float:
    """The way of clean-fid and pytorch-fid."""
    root = scipy.linalg.sqrtm(cov1 @ cov2)
    return float(((mean1 - mean2) ** 2).sum() + np.trace(cov1) + np.trace(cov2) - 2 * np.trace(root.real))


def by_eigvals(mean1: Array, cov1: Array, mean2: Array, cov2: Array) -> float:
    """The way of torch-fidelity and torchmetrics."""
    eigenvalues = torch.linalg.eigvals(torch.from_numpy(cov1) @ torch.from_numpy(cov2))
    root = float(eigenvalues.sqrt().real.sum())
    return float(((mean1 - mean2) ** 2).sum() + np.trace(cov1) + np.trace(cov2) - 2 * root)


def correlated(generator: np.random.Generator, count: int, dim: int) -> Matrix:
    """Rows whose variances fall off by a factor of a million, as those of networks do."""
    scales = np.geomspace(1, 1e-3, dim)
    mixing = generator.normal(size=(dim, dim)) / np.sqrt(dim)
    rows: Array = (generator.normal(size=(count, dim)) * scales) @ mixing
    return rows.astype(np.float32)


def frechet(generator: np.random.Generator, options: argparse.Namespace) -> dict[str, Way]:
    inputs: list[Array] = []
    for _ in range(2):
        mean, cov, _ = moments(correlated(generator, 3 * options.dim, options.dim))
        inputs += [mean, cov]
    ways = {OWN: frechet_distance, "scipy sqrtm": by_sqrtm, "torch eigvals": by_eigvals}
    small = [each[:64] if each.ndim == 1 else each[:64, :64] for each in inputs]
    for way in ways.values():
        way(*small)
    return {name: lambda way=way: way(*inputs) for name, way in ways.items()}  # type: ignore[misc]


# --- CMMD -------------------------------------------------------------------------------------------------------------


def by_matrices(first: torch.Tensor, second: torch.Tensor) -> float:
    """Gaussian kernel matrices, whole, from squared norms and products: the public way."""

    def mean_kernel(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        squares = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * (a @ b.T)
        return torch.exp(-squares / 200).mean()

    found = mean_kernel(first, first) + mean_kernel(second, second) - 2 * mean_kernel(first, second)
    return 1000 * float(found)


def clip_like(generator: np.random.Generator, count: int, dim: int, shift: float) -> Matrix:
    """Unit vectors around a common direction, variances falling as 1 / k: mean cosine about 0.5."""
    rows = generator.standard_normal((count, dim), dtype=np.float32)
    scales = 1 / np.sqrt(np.arange(1, dim + 1, dtype=np.float32))
    rows *= scales / np.linalg.norm(scales)
    rows[:, 0] += 1
    rows[:, 1] += shift
    rows /= np.linalg.norm(rows, axis=1)[:, None]
    return rows


def discrepancy(generator: np.random.Generator, options: argparse.Namespace) -> dict[str, Way]:
    matrices = [clip_like(generator, options.num_samples, options.embedding_dim, shift) for shift in (0, 0.05)]
    sides = [Rows([each]) for each in matrices]
    tensors = [torch.from_numpy(each) for each in matrices]
    cmmd(*(Rows([each[:64]]) for each in matrices))
    ways: dict[str, Way] = {OWN: lambda: cmmd(*sides)}
    if not options.alone:
        ways["torch matrices"] = lambda: by_matrices(*tensors)
        ways["every pair"] = lambda: cmmd(*sides, exact=True)
    return ways


# --- measuring --------------------------------------------------------------------------------------------------------

CASES = {"frechet": frechet, "cmmd": discrepancy}
TRUTH = {"frechet": "scipy sqrtm", "cmmd": "every pair"}


def resident_megabytes(entry: str) -> float:
    """`VmRSS`, or `VmHWM`, the most since it was last cleared; 0 where there is no /proc."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) / 1000 for line in lines if line.startswith(entry)), 0.0)


def clear_peak() -> None:
    control = Path("/proc/self/clear_refs")
    if control.exists():
        control.write_text("5")


def timed(ways: Mapping[str, Way], rounds: int, truth: str) -> list[dict[str, Any]]:
    """The ways taken in turn; every pair, which is a yardstick and no rival, once."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    processor: dict[str, list[float]] = {name: [] for name in ways}
    values: dict[str, float] = {}
    growth: dict[str, float] = {}
    for number in range(rounds):
        for name, way in ways.items():
            if number and name == "every pair":
                continue
            clear_peak()
            before, start, busy = resident_megabytes("VmRSS"), time.perf_counter(), time.process_time()
            values[name] = way()
            seconds[name].append(time.perf_counter() - start)
            processor[name].append(time.process_time() - busy)
            growth.setdefault(name, resident_megabytes("VmHWM") - before)
    own, own_processor = statistics.median(seconds[OWN]), statistics.median(processor[OWN])
    return [
        {
            "peer": name,
            "ratio": statistics.median(times) / own,
            "processor_ratio": statistics.median(processor[name]) / own_processor,
            "seconds": statistics.median(times),
            "fastest": min(times),
            "slowest": max(times),
            "value": values[name],
            "deviation": values[name] - values[truth] if truth in values else None,
            "peak_growth_mb": growth[name],
        }
        for name, times in seconds.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--case", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--dim", type=int, default=2048, help="width of the moments")
    parser.add_argument("--num-samples", type=int, default=20_000, help="embeddings of either side")
    parser.add_argument("--embedding-dim", type=int, default=768)
    parser.add_argument("--alone", action="store_true", help="measure the CMMD of dcprune only")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    document: dict[str, Any] = {"threads": torch.get_num_threads(), "machine": platform.processor() or "unknown"}
    for case in options.case:
        ways = CASES[case](np.random.default_rng(options.seed), options)
        document[case] = timed(ways, options.rounds, TRUTH[case])
        for each in document[case]:
            off = "" if each["deviation"] is None else f", off by {each['deviation']:+.1e}"
            sys.stdout.write(
                "{ratio:7.2f} x  {case:8} {peer:14} {seconds:8.3f} s ({fastest:.3f} to {slowest:.3f}; processor "
                "{processor_ratio:.1f} x)  "
                "value {value:.8g}{off}, +{peak_growth_mb:.0f} MB\n".format(case=case, off=off, **each)
            )
    if options.json:
        settings = {name: value for name, value in vars(options).items() if name != "json"}
        options.json.write_text(json.dumps({"settings": settings, **document}, indent=1) + "\n")


if __name__ == "__main__":
    main()
