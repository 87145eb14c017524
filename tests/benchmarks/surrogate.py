"""How fast the surrogate reaches its accuracy: the aim is 94 % on CIFAR-10 within 20 s of training on an H200.

Run by hand, from the repository:

    python tests/benchmarks/surrogate.py                             on a GPU: CIFAR-10 in the default recipe
    python tests/benchmarks/surrogate.py --set epochs=10             ... in another one
    python tests/benchmarks/surrogate.py --compiled                  ... with torch.compile, after a warm-up
    python tests/benchmarks/surrogate.py --dataset fashion-mini --set width=8 --set epochs=3     a minute on a CPU

It trains on the training split and measures on the test split. `seconds` are those of `Training.run`, which starts with
the images on the device and ends when the device has finished; `ceiling` is the same number of steps on one fixed batch
that is normalised already, so that `share` says how much of the time the flips, crops and the loop leave to the
network. Compiling happens before the clock starts, and its time is said by itself.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dcprune.devices import autocast, device_name, dtype_name, resolve_device, resolve_dtype
from dcprune.encoders.preprocessing import Preprocessing
from dcprune.encoders.resident import Resident, resident
from dcprune.encoders.residual import initialised
from dcprune.encoders.resnet import automatic_size
from dcprune.encoders.surrogate import Training, recipe_for
from dcprune.interfaces import DatasetSource, EncoderContext
from dcprune.plugins import converted
from dcprune.progress import SILENT
from dcprune.sources import open_dataset

AIM_ACCURACY = 0.94
AIM_SECONDS = 20.0


@dataclass(frozen=True)
class Bench:
    """One dataset on one device.

    Attributes:
        data: training images, of which all are trained on.
        test: test images, of which all are measured.
    """

    context: EncoderContext
    size: int
    width: int
    num_classes: int
    given: dict[str, Any]
    data: Resident
    test: Resident
    compiled: bool

    def training(self, seed: int) -> Training:
        """A network that starts anew."""
        return Training(
            initialised(self.width, "cifar" if self.size <= 64 else "imagenet", self.num_classes, seed),
            self.data,
            recipe_for(self.given, self.context.device, len(self.data.labels), self.size),
            Preprocessing(self.size, self.size, self.context.device).normalise,
            EncoderContext(**{**vars(self.context), "seed": seed}),
            self.compiled,
        )

    def accuracy(self, training: Training) -> float:
        """Share of the test images that are recognised."""
        measured = Training(training.network, self.test, training.recipe, training.normalise, training.context)
        return float(measured.accuracy() or 0.0)

    def ceiling(self, training: Training) -> float:
        """Seconds of as many steps on one batch in memory."""
        images = self.data.images[: training.batch_size]
        labels = self.data.labels[: training.batch_size]
        pixels = training.normalise(images).contiguous(memory_format=torch.channels_last)
        network = torch.compile(training.network) if self.compiled else training.network
        training.network.train()

        def step() -> None:
            with autocast(self.context.device, self.context.dtype):
                loss = torch.nn.functional.cross_entropy(network(pixels).float(), labels)
            training.optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            training.optimizer.step()

        def repeated(count: int) -> None:
            for _ in range(count):
                step()

        repeated(3)
        timed = min(training.total, 100)
        return self.seconds(lambda: repeated(timed)) * training.total / timed

    def seconds(self, work: Callable[[], object]) -> float:
        """Wall time of `work`, to the end of what it started on the device."""
        self.wait()
        started = time.perf_counter()
        work()
        self.wait()
        return time.perf_counter() - started

    def wait(self) -> None:
        """Until the device is idle."""
        if self.context.device.type == "cuda":
            torch.cuda.synchronize(self.context.device)


def opened(arguments: argparse.Namespace, given: dict[str, Any]) -> Bench:
    """Both splits on the device."""
    device = resolve_device(arguments.device)
    dtype = resolve_dtype(arguments.dtype, device)
    data_dir = arguments.data_dir
    train, test = (open_dataset(arguments.dataset, split=split, data_dir=data_dir) for split in ("train", "test"))
    size = given.pop("image_size", None) or automatic_size(train)
    context = EncoderContext(train, "", device, dtype, 0, Path("unused"), SILENT)

    def loaded(source: DatasetSource) -> Resident:
        return resident(source, size, Preprocessing(size, size, device).resized, 0.0, context)

    kept, measured = loaded(train), loaded(test)
    held = Resident(measured.images, measured.labels, measured.train_rows, measured.train_rows)
    return Bench(
        context=context,
        size=size,
        width=given.pop("width", None) or 64,
        num_classes=len(train.class_names),
        given=given,
        data=kept,
        test=held,
        compiled=arguments.compiled,
    )


def settings(
    *,
    width: int = 64,
    image_size: int | None = None,
    epochs: int = 0,
    batch_size: int = 0,
    learning_rate: float = 0.0,
    weight_decay: float = 0.0,
    label_smoothing: float = 0.0,
) -> None:
    """The settings that `--set` knows; only their names and types are used."""


def main() -> int:
    """Train once for every seed and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="cifar10", help="cifar10, fashion-mnist, fashion-mini, ...")
    parser.add_argument("--data-dir", type=Path, default=None)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--seeds", type=int, default=3, help="runs, each with another seed")
    parser.add_argument("--compiled", action="store_true", help="compile the step first")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of the recipe, width, size")
    parser.add_argument("--json", type=Path, default=None, help="also write the numbers here")
    arguments = parser.parse_args()
    given = dict(item.split("=", 1) for item in arguments.set)
    bench = opened(arguments, converted(settings, given, "surrogate"))
    context = bench.context
    print(f"{arguments.dataset} {bench.size} px on {device_name(context.device)}, {dtype_name(context.dtype)}")
    warm_up = bench.training(seed=0)
    compiling = (
        bench.seconds(warm_up.seconds_per_step) if not bench.compiled else bench.seconds(lambda: steps(warm_up, 5))
    )
    print(f"warm-up {compiling:.1f} s; {warm_up.recipe}")
    rows = []
    for seed in range(arguments.seeds):
        training = bench.training(seed)
        taken = bench.seconds(training.run)
        row = {"seed": seed, "seconds": taken, "accuracy": bench.accuracy(training), "ceiling": bench.ceiling(training)}
        row["images_per_second"] = training.total * training.batch_size / taken
        rows.append(row)
        print(
            f"seed {seed}: {row['accuracy']:.2%} in {taken:.2f} s, {row['images_per_second']:,.0f} images/s, "
            f"share of the ceiling {row['ceiling'] / taken:.2f}",
            flush=True,
        )
    accuracy, seconds = (statistics.mean(row[name] for row in rows) for name in ("accuracy", "seconds"))
    reached = accuracy >= AIM_ACCURACY and seconds <= AIM_SECONDS
    print(
        f"mean {accuracy:.2%} in {seconds:.2f} s; aim {AIM_ACCURACY:.0%} in {AIM_SECONDS:.0f} s on an H200: {reached}"
    )
    if arguments.json:
        arguments.json.write_text(json.dumps({"device": device_name(context.device), "runs": rows}, indent=2) + "\n")
    return 0


def steps(training: Training, count: int) -> None:
    """A few steps of a network that is thrown away, so that everything is compiled."""
    training.network.train()
    generator = torch.Generator().manual_seed(0)
    batches = training._epoch(training._mirrored(generator), generator)
    for _, (images, labels) in zip(range(count), batches, strict=False):
        training._step(images, labels, 0.01)


if __name__ == "__main__":
    sys.exit(main())
