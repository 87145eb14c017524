"""What the benchmarks of training share: how a step is timed, in which order competitors run, what is reported."""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dcprune.devices import device_name, dtype_name, resolve_device, resolve_dtype
from dcprune.interfaces import Backend, TrainingData
from dcprune.training.config import TrainingConfig
from dcprune.training.objectives import DroObjective, DroSettings, Objective, WeightedLoss
from dcprune.training.schedule import Phase
from dcprune.training.trainer import Trainer, score


@dataclass(frozen=True)
class Watch:
    """How every competitor is watched, and on what it runs."""

    batch_size: int
    warmup: int
    steps: int
    device: torch.device
    dtype: torch.dtype
    compile: bool

    @property
    def last(self) -> int:
        return self.warmup + self.steps


class Stopwatch:
    """A `Progress` that times the steps after the warm-up, waiting for the device at both ends only."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self.count = 0
        self.start = self.seconds = 0.0

    def finished(self) -> bool:
        return self.count >= self.watch.last

    @property
    def seconds_per_step(self) -> float:
        return self.seconds / self.watch.steps

    @contextmanager
    def task(self, description: str, total: int | None, unit: str = "it") -> Iterator[Stopwatch]:
        yield self

    def advance(self, amount: int = 1, **values: float | str) -> None:
        before, self.count = self.count, self.count + amount
        for mark in (self.watch.warmup, self.watch.last):
            if before < mark <= self.count:
                wait(self.watch.device)
                self.start, self.seconds = time.perf_counter(), time.perf_counter() - self.start

    def note(self, message: str) -> None:
        sys.stderr.write(f"{message}\n")

    warn = note


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# --- ours -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ours:
    """Our trainer on a backend: `train` and `reweight` give the seconds of one step.

    Attributes:
        recipe: the training options of a preset.
        make_data: gives the prepared samples, on the device.
    """

    watch: Watch
    backend: Backend
    recipe: Mapping[str, Any]
    num_classes: int
    make_data: Callable[[], TrainingData] = field(repr=False)

    def step(self, data: TrainingData, objective: Objective) -> float:
        options = {
            "steps": self.watch.last,
            "batch_size": self.watch.batch_size,
            "log_every": max(1, min(100, self.watch.steps)),
            "compile": "on" if self.watch.compile else "off",
        }
        stopwatch = Stopwatch(self.watch)
        trainer = Trainer(
            self.backend,
            data,
            TrainingConfig.resolve(self.recipe, options),
            [Phase(torch.arange(len(data)), self.watch.last, objective)],
            num_classes=self.num_classes,
            device=self.watch.device,
            dtype=self.watch.dtype,
            progress=stopwatch,
        )
        trainer.run()
        return stopwatch.seconds_per_step

    def train(self) -> float:
        data = self.make_data()
        return self.step(data, WeightedLoss(np.ones(self.num_classes), data.labels.cpu().numpy(), self.watch.device))

    def reweight(self, *, shared_dropout: bool = False) -> float:
        """A step of the proxy, with its scoring passes."""
        data = self.make_data()
        reference = self.backend.build(num_classes=self.num_classes, sample_shape=data.sample_shape, seed=1)
        objective = DroObjective(
            reference.to(self.watch.device).eval().requires_grad_(requires_grad=False),
            partial(score, self.backend, self.watch.dtype),
            np.full(self.num_classes, 1 / self.num_classes),
            DroSettings(shared_dropout=shared_dropout),
            total_steps=self.watch.last,
            held_out=None,
            device=self.watch.device,
        )
        return self.step(data, objective)


# --- rounds -----------------------------------------------------------------------------------------------------------


def interleaved(
    competitors: Mapping[str, Callable[[], float]],
    rounds: int,
    device: torch.device,
    *,
    before_round: Callable[[], None] = lambda: None,
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Seconds of every competitor in every round, and its peak memory in the last one, in bytes."""
    seconds: dict[str, list[float]] = {name: [] for name in competitors}
    memory: dict[str, float] = {}
    for _ in range(rounds):
        before_round()
        for name, competitor in competitors.items():
            if device.type == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            seconds[name].append(competitor())
            memory[name] = peak_memory(device)
    return seconds, memory


def peak_memory(device: torch.device) -> float:
    """Bytes, of the device since the last reset, or of the process since its start."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def compared(seconds: Mapping[str, Sequence[float]], memory: Mapping[str, float], own: str) -> list[dict[str, Any]]:
    """A row for every competitor; `ratio` is its median time over that of `own`."""
    reference = statistics.median(seconds[own])
    return [
        {
            "case": name,
            "ratio": statistics.median(times) / reference,
            "seconds": statistics.median(times),
            "fastest": min(times),
            "slowest": max(times),
            "peak_memory_bytes": memory[name],
        }
        for name, times in seconds.items()
    ]


def write_rows(rows: Sequence[Mapping[str, Any]]) -> None:
    width = max(len(each["case"]) for each in rows)
    for each in rows:
        sys.stdout.write(
            "{ratio:6.2f} x our step  {0:{1}} {seconds:.4f} s ({fastest:.4f} to {slowest:.4f})  {2:.2f} GB\n".format(
                each["case"], width, each["peak_memory_bytes"] / 1e9, **each
            )
        )


# --- the command line -------------------------------------------------------------------------------------------------


def parser(description: str | None, *, batch_size: int, warmup: int, steps: int) -> argparse.ArgumentParser:
    """A parser with the options that all have; what is given are their defaults."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--batch-size", type=int, default=batch_size)
    made.add_argument("--warmup", type=int, default=warmup, help="steps before the clock starts, compiling among them")
    made.add_argument("--steps", type=int, default=steps)
    made.add_argument("--rounds", type=int, default=3)
    made.add_argument("--device", default="auto")
    made.add_argument("--dtype", default="auto")
    made.add_argument(
        "--compile", choices=("auto", "on", "off"), default="auto", help="torch.compile for ours; auto: on a GPU"
    )
    made.add_argument("--json", type=Path)
    return made


def watch(options: argparse.Namespace) -> Watch:
    """What the options of `parser` say."""
    device = resolve_device(options.device)
    return Watch(
        batch_size=options.batch_size,
        warmup=options.warmup,
        steps=options.steps,
        device=device,
        dtype=resolve_dtype(options.dtype, device),
        compile=options.compile == "on" or (options.compile == "auto" and device.type == "cuda"),
    )


def save(options: argparse.Namespace, watched: Watch, report: Mapping[str, Any]) -> None:
    """Write the options, the machine and the report to `--json`, where it is given."""
    if options.json is None:
        return
    machine = {
        "device": device_name(watched.device),
        "dtype": dtype_name(watched.dtype),
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    given = {name: str(value) for name, value in vars(options).items() if name != "json"}
    options.json.write_text(json.dumps({"options": given, "machine": machine, **report}, indent=1) + "\n")
