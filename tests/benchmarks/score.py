"""Scorers against what people use instead, and the Frechet distance of each scorer's coreset to all the data.

The peers are scikit-learn's `GaussianMixture`, fitted class by class as the code of instance selection does, and the
algorithms of Moderate-DS's script and of DeepCore's k-center and herding, written here from their description. k-center
starts where ours starts, and herding takes the argmin that DeepCore means, so that the picks can be compared.

Run by hand, from the repository: python tests/benchmarks/score.py [--samples 50000] [--dim 512] [--json FILE]
With --embeddings FILE, the table of distances is about real embeddings instead of drawn ones.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.mixture import GaussianMixture
from threadpoolctl import threadpool_limits

from dcprune import formats
from dcprune.api.coresets import select_each
from dcprune.artifacts import Embeddings, Rows
from dcprune.metrics.frechet import Moments, frechet_distance
from dcprune.plugins import registry
from dcprune.testing import gaussian_embeddings, scoring_context

Array = NDArray[np.float64]
Result = NDArray[Any]


def drawn(samples: int, dim: int, classes: int, seed: int) -> Embeddings:
    """Rectified, correlated values whose variances fall off, as networks make them."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, max(1, classes), samples)
    mixing = (rng.normal(size=(dim, dim)) * np.geomspace(1, 0.1, dim)[:, None]).astype(np.float32) / np.sqrt(dim)
    centres = rng.normal(size=(max(1, classes), dim)).astype(np.float32) / 4
    values = np.empty((samples, dim), dtype=np.float32)
    for start in range(0, samples, 10_000):
        part = slice(start, start + 10_000)
        noise = rng.standard_normal((len(values[part]), dim), dtype=np.float32)
        values[part] = np.maximum(centres[labels[part]] + 2 * noise @ mixing + 0.5 * noise, 0)
    embeddings = gaussian_embeddings(samples, num_classes=classes, dim=1, labels=labels if classes else None)
    encoder = embeddings.encoder.model_copy(update={"dim": dim})
    return replace(embeddings, embeddings=Rows([values]), encoder=encoder)


def gaussian_mixtures(embeddings: Embeddings, ratio: float) -> Result:
    """Scores of scikit-learn's mixture of one Gaussian, class by class; its float32 fails where n < D."""
    scores = np.empty(len(embeddings.embeddings))
    for _, rows in embeddings.classes():
        values = embeddings.embeddings[rows].astype(np.float64)
        scores[rows] = GaussianMixture(1, reg_covar=1e-5).fit(values).score_samples(values)
    return scores


def moderate_script(embeddings: Embeddings, ratio: float) -> Result:
    """The script's way: medians of the classes, a centre for every sample, the norms of the differences."""
    values = embeddings.embeddings[:]
    labels = np.zeros(len(values), dtype=np.int64) if embeddings.labels is None else embeddings.labels
    centres = {label: np.median(values[labels == label], axis=0) for label in np.unique(labels)}
    beside = np.array([centres[label] for label in labels])
    distances: Result = np.linalg.norm(values - beside, axis=1)
    return distances


def k_center_loop(embeddings: Embeddings, ratio: float) -> Result:
    """DeepCore's way, for one class: distances from every pick to all that are left, and their running minimum."""
    rows = torch.from_numpy(embeddings.embeddings[:].astype(np.float32))
    left = torch.ones(len(rows), dtype=torch.bool)
    nearest = torch.full((len(rows),), torch.inf)
    pick = int((rows.double() - rows.double().mean(0)).square().sum(1).argmin())
    picks = [pick]
    for _ in range(int(ratio * len(rows)) - 1):
        left[pick] = False
        nearest[pick] = -1
        others = rows[left]
        products = others.square().sum(1) + rows[pick].square().sum() - 2 * (others @ rows[pick])
        distances = torch.full((len(rows),), torch.inf)
        distances[left] = products.clamp_min(0).sqrt()
        nearest = torch.minimum(nearest, distances)
        pick = int(nearest.argmax())
        picks.append(pick)
    return np.array(picks)


def herding_loop(embeddings: Embeddings, ratio: float) -> Result:
    """DeepCore's way, for one class: the distance of all that are left from what the sum of the picks lacks."""
    rows = torch.from_numpy(embeddings.embeddings[:].astype(np.float32))
    mean = rows.mean(0)
    left = torch.ones(len(rows), dtype=torch.bool)
    numbers = torch.arange(len(rows))
    picks: list[int] = []
    for step in range(int(ratio * len(rows))):
        lacking = (step + 1) * mean - rows[picks].sum(0)
        distances = (rows[left] - lacking).square().sum(1).sqrt()
        picks.append(int(numbers[left][distances.argmin()]))
        left[picks[-1]] = False
    return np.array(picks)


def ours(name: str) -> Callable[[Embeddings, float], Result]:
    scorer = registry().create("scorer", name, {})

    def run(embeddings: Embeddings, ratio: float) -> Result:
        scores: Result = scorer.score(embeddings, scoring_context(ratio=ratio))
        return scores

    return run


def closeness(scores: Result, reference: Result) -> str:
    kept = {*np.argsort(scores)[-len(scores) // 5 :].tolist()} ^ {*np.argsort(reference)[-len(scores) // 5 :].tolist()}
    spread = np.abs(scores - reference).max() / reference.std()
    return f"largest difference {spread:.1e} of the spread, {len(kept) // 2} of the top fifth differ"


def same_picks(scores: Result, picks: Result) -> str:
    order = np.argsort(scores, kind="stable")[: len(picks)]
    first = int(np.argmax(order != picks)) if (order != picks).any() else len(picks)
    return f"first {first} of {len(picks)} picks are the same"


@dataclass(frozen=True)
class Case:
    """A scorer, its peer, the data they run on, and how their results are compared."""

    scorer: str
    peer: str
    run_peer: Callable[[Embeddings, float], Result]
    samples: int
    dim: int
    classes: int
    compare: Callable[[Result, Result], str]
    ratio: float = 1.0
    rounds: int | None = None


def cases(options: argparse.Namespace) -> Iterator[Case]:
    samples, dim, classes, few = options.samples, options.dim, options.classes, options.greedy_samples
    mixture = ("scikit-learn GaussianMixture", gaussian_mixtures)
    yield Case("gaussian", *mixture, samples, dim, classes, closeness)
    if options.wide:
        yield Case("gaussian", *mixture, samples, 4 * dim, classes, closeness, rounds=1)
    yield Case("gaussian", *mixture, max(2, options.small_class), 4 * dim, 1, closeness)
    yield Case("moderate", "script of Moderate-DS", moderate_script, samples, dim, classes, closeness)
    yield Case("k-center", "loop of DeepCore", k_center_loop, few, dim, 0, same_picks, options.ratio)
    yield Case("herding", "loop of DeepCore", herding_loop, few, dim, 0, same_picks, options.ratio)


def measured(case: Case, rounds: int, seed: int) -> dict[str, Any]:
    """Median seconds of both, in turns, after a small run that does not count; CPU seconds are of all threads."""
    embeddings = drawn(case.samples, case.dim, case.classes, seed)
    runs = {"dcprune": ours(case.scorer), case.peer: case.run_peer}
    warm = drawn(min(case.samples, 1000), case.dim, case.classes, seed + 1)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    cpu: dict[str, list[float]] = {name: [] for name in runs}
    results: dict[str, Result] = {}
    for run in runs.values():
        run(warm, case.ratio)
    for _ in range(case.rounds or rounds):
        for name, run in runs.items():
            start, busy = time.perf_counter(), time.process_time()
            results[name] = run(embeddings, case.ratio)
            seconds[name].append(time.perf_counter() - start)
            cpu[name].append(time.process_time() - busy)
    tracemalloc.start()
    runs["dcprune"](embeddings, case.ratio)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    own, other = (statistics.median(times) for times in seconds.values())
    return {
        "scorer": case.scorer,
        "peer": case.peer,
        "size": [case.samples, case.dim, case.classes],
        "ratio": other / own,
        "seconds": own,
        "peer_seconds": other,
        "all_seconds": seconds,
        "cpu_seconds": min(cpu["dcprune"]),
        "peer_cpu_seconds": min(cpu[case.peer]),
        "numpy_peak_mib": peak / 2**20,
        "agreement": case.compare(*results.values()),
    }


def distances(
    embeddings: Embeddings, scorers: Sequence[str], ratios: Sequence[float], seeds: int
) -> list[dict[str, Any]]:
    """Squared Frechet distance of every scorer's coreset to all rows; `random` is the mean over seeds, and the best."""
    mean, covariance = moments_of(embeddings, np.arange(len(embeddings.embeddings)))
    place = np.empty(embeddings.dataset.num_samples, dtype=np.int64)
    place[embeddings.indices] = np.arange(len(embeddings.indices))

    def values(name: str, seed: int = 0) -> list[float]:
        coresets = select_each(embeddings, name, ratios=ratios, device="cpu", seed=seed)
        rows = [np.sort(place[np.array(each.indices)]) for each in coresets]
        return [frechet_distance(*moments_of(embeddings, each), mean, covariance) for each in rows]

    table: list[dict[str, Any]] = []
    random = np.array([values("random", seed) for seed in range(seeds)])
    for name, row in (("random", random.mean(axis=0)), ("random, best", random.min(axis=0))):
        table.append({"scorer": name, "seconds": 0.0, "distances": row.tolist()})
    for name in scorers:
        start = time.perf_counter()
        row = values(name)
        table.append({"scorer": name, "seconds": time.perf_counter() - start, "distances": row})
    return sorted(table, key=lambda each: float(each["distances"][0]))


def moments_of(embeddings: Embeddings, rows: NDArray[np.int64]) -> tuple[Array, Array]:
    total = Moments(embeddings.embeddings.shape[1])
    for block in embeddings.embeddings.blocks(rows):
        total.update(block)
    return total.mean, total.covariance()


def parsed() -> argparse.Namespace:
    known = [name for name in registry().names("scorer") if name not in ("random", "difficulty")]
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--samples", type=int, default=50_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--small-class", type=int, default=1300, help="one class of fewer samples than dimensions")
    parser.add_argument("--wide", action="store_true", help="the first case at 4 times the width too: minutes")
    parser.add_argument("--greedy-samples", type=int, default=10_000, help="for k-center and herding")
    parser.add_argument("--ratio", type=float, default=0.1, help="kept fraction of k-center and herding")
    parser.add_argument("--only", nargs="*", default=known, choices=known, help="scorers to run")
    parser.add_argument("--rounds", type=int, default=3, help="0 leaves the timings out")
    parser.add_argument("--table-samples", type=int, default=10_000, help="0 leaves the table of distances out")
    parser.add_argument("--table-ratios", type=float, nargs="+", default=[0.1, 0.2, 0.4])
    parser.add_argument("--table-seeds", type=int, default=10)
    parser.add_argument("--embeddings", type=Path, help="embeddings for the table")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def main() -> None:
    options = parsed()
    torch.set_num_threads(options.threads)
    with threadpool_limits(options.threads):
        timings = []
        for case in cases(options) if options.rounds else ():
            if case.scorer in options.only:
                timings.append(measured(case, options.rounds, options.seed))
                line = (
                    "{ratio:6.1f} x  {scorer:10} {seconds:8.3f} s, {peer} {peer_seconds:8.3f} s, "
                    "CPU {cpu_seconds:.3f} and {peer_cpu_seconds:.3f} s, {size}, {numpy_peak_mib:.0f} MiB; {agreement}"
                )
                sys.stdout.write(line.format(**timings[-1]) + "\n")
                sys.stdout.flush()
        table: list[dict[str, Any]] = []
        if options.table_samples:
            embeddings = (
                drawn(options.table_samples, options.dim, options.classes, options.seed)
                if options.embeddings is None
                else formats.read_embeddings(options.embeddings)
            )
            table = distances(embeddings, options.only, options.table_ratios, options.table_seeds)
    if table:
        sys.stdout.write("Frechet distance to all data at " + ", ".join(map(str, options.table_ratios)) + "\n")
    for each in table:
        row = " ".join(f"{value:12.6g}" for value in each["distances"])
        sys.stdout.write(f"{row}  {each['scorer']:16} {each['seconds']:8.2f} s\n")
    if options.json:
        document = {"threads": options.threads, "timings": timings, "ratios": options.table_ratios, "table": table}
        options.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
