"""Trains a small classifier on a dataset, as the space that its own samples are compared in.

The recipe is that of speed runs on CIFAR (David Page's, then Keller Jordan's airbench, arXiv 2404.00498): SGD with
Nesterov momentum, a learning rate that rises in a line and falls in another, label smoothing, padded crops, and flips
that alternate: which half of the images is mirrored is drawn once, and every epoch shows the other half mirrored. The
whole dataset stays on the device as uint8, and no step waits for the device. On a CPU the same seed gives the same
weights.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from dcprune.artifacts import StageCost
from dcprune.devices import autocast, flop_counter
from dcprune.encoders.resident import Resident, cropped
from dcprune.errors import OptionError, TrainingDiverged
from dcprune.interfaces import EncoderContext

_WARM_UP = 0.25
_MOMENTUM = 0.9
_TIMED_STEPS = 3
_LONG = 600
_SMALL_IMAGE = 40
_COMPILE_REPAYS = 120  # seconds of training, of which compiling saves more than it costs


@dataclass(frozen=True)
class Recipe:
    """How a surrogate is trained.

    Attributes:
        epochs: passes over the training part.
        learning_rate: its peak, a quarter of the way through.
        weight_decay: of convolutions and the classifier; normalisation and biases have none.
        batch_size: images per step.
        label_smoothing: share of the target that is spread over all classes.
        held_out: share of every class that only measures accuracy.

    Raises:
        OptionError: a value out of range.
    """

    epochs: int
    learning_rate: float
    weight_decay: float
    batch_size: int
    label_smoothing: float
    held_out: float

    def __post_init__(self) -> None:
        fits = {
            "epochs": self.epochs >= 1,
            "learning_rate": 0 < self.learning_rate < float("inf"),
            "weight_decay": 0 <= self.weight_decay < float("inf"),
            "batch_size": self.batch_size >= 1,
            "label_smoothing": 0 <= self.label_smoothing < 1,
            "held_out": 0 <= self.held_out < 1,
        }
        for name, good in fits.items():
            if not good:
                raise OptionError(f"Setting {name}={getattr(self, name)!r} of a surrogate is out of range.")


def recipe_for(given: Mapping[str, Any], device: torch.device, num_samples: int, image_size: int) -> Recipe:
    """What was asked for, and for the rest what suits the device.

    A GPU needs larger batches to be busy: as many images as leave 64 updates an epoch, from 64 to 512 (128 where images
    are larger than 40 pixels). The learning rate grows with the batch as its power 2/3, from 0.1 for 64 to 0.4 for 512.

    Args:
        given: fields of `Recipe`.
        device: where the surrogate is trained.
        num_samples: size of the dataset.
        image_size: edge of its images.

    Raises:
        OptionError: a value out of range.
    """
    on_gpu = device.type == "cuda"
    largest = 512 if image_size <= _SMALL_IMAGE else 128
    batch_size = given.get("batch_size", min(largest, max(64, _power_of_two(num_samples // 64))) if on_gpu else 64)
    defaults = {
        "epochs": 12 if on_gpu else 8,
        "batch_size": batch_size,
        "learning_rate": round(0.1 * (max(1, batch_size) / 64) ** (2 / 3), 4),
        "weight_decay": 5e-4,
        "label_smoothing": 0.1,
        "held_out": 0.1,
    }
    return Recipe(**{**defaults, **given})


def _power_of_two(limit: int) -> int:
    """The largest one up to `limit`; 1 below that."""
    return 1 << max(0, limit.bit_length() - 1)


def one_cycle(step: int, total: int, peak: float) -> float:
    """Learning rate of `step` in 0..total-1: up to `peak` over the first quarter in a line, down to 0 in another."""
    rising = (step + 1) / max(1.0, _WARM_UP * total)
    falling = (total - step) / (total - min(total - 1.0, _WARM_UP * total))
    return peak * min(1.0, rising, falling)


@dataclass
class Training:
    """A network on its way to a surrogate.

    Attributes:
        network: uint8-normalised pixels [B, 3, S, S] -> logits [B, K], on the device.
        normalise: uint8 [B, C, S, S] -> float32 [B, 3, S, S].
        compiled: whether `torch.compile` makes one program of the forward and the backward pass.
    """

    network: nn.Module
    data: Resident
    recipe: Recipe
    normalise: Callable[[torch.Tensor], torch.Tensor]
    context: EncoderContext
    compiled: bool = False

    def __post_init__(self) -> None:
        self.network.to(self.context.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        parameters = list(self.network.parameters())
        groups = [
            {"params": [each for each in parameters if each.ndim > 1], "weight_decay": self.recipe.weight_decay},
            {"params": [each for each in parameters if each.ndim <= 1], "weight_decay": 0.0},
        ]
        on_gpu = self.context.device.type == "cuda"
        self.optimizer = torch.optim.SGD(
            groups, self.recipe.learning_rate, momentum=_MOMENTUM, nesterov=True, fused=on_gpu or None
        )
        self.loss = torch.compile(self._loss) if self.compiled else self._loss
        self.scaler = torch.amp.GradScaler(self.context.device.type, enabled=self.context.dtype == torch.float16)
        self.batch_size = min(self.recipe.batch_size, len(self.data.train_rows))
        self.batches = len(self.data.train_rows) // self.batch_size
        self.total = self.recipe.epochs * self.batches

    def run(self) -> None:
        """All epochs.

        Raises:
            TrainingDiverged: the loss is no longer finite.
        """
        generator = torch.Generator().manual_seed(self.context.seed)
        mirrored = self._mirrored(generator)
        step = 0
        self.network.train()
        with self.context.progress.task("train surrogate", self.total, "steps") as task, self._tuned():
            for epoch in range(self.recipe.epochs):
                losses = []
                for images, labels in self._epoch(mirrored ^ bool(epoch % 2), generator):
                    losses.append(self._step(images, labels, one_cycle(step, self.total, self.recipe.learning_rate)))
                    step += 1
                    task.advance()
                loss = float(torch.stack(losses).mean())
                if not np.isfinite(loss):
                    raise TrainingDiverged(
                        f"The surrogate's loss is {loss} in epoch {epoch + 1}: lower --set learning_rate="
                        f"{self.recipe.learning_rate}."
                    )
                task.advance(0, loss=loss)

    @contextmanager
    def _tuned(self) -> Iterator[None]:
        """On a GPU, let cuDNN choose its algorithms by trial, and compiled code fall back on PyTorch's own."""
        if self.context.device.type != "cuda":
            yield
            return
        with (
            torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=True),
            torch._dynamo.config.patch(suppress_errors=True),
        ):
            yield

    def _mirrored(self, generator: torch.Generator) -> torch.Tensor:
        """Which training images are mirrored in even epochs, bool [n] on the CPU."""
        return torch.rand(len(self.data.train_rows), generator=generator) < 0.5

    def _epoch(self, mirrored: torch.Tensor, generator: torch.Generator) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Shuffled batches of randomly shifted images; draws are made on the CPU for every device."""
        device, size = self.context.device, self.data.images.shape[3]
        padding = max(1, size // 14)
        count = self.batches * self.batch_size
        order = torch.randperm(len(self.data.train_rows), generator=generator)[:count]
        rows, flips = self.data.train_rows[order].to(device), mirrored[order].to(device)
        shifts = torch.randint(0, 2 * padding + 1, (count, 2), generator=generator).to(device)
        for batch in torch.split(torch.arange(count, device=device), self.batch_size):
            images = cropped(self.data.images[rows[batch]], padding, shifts[batch], flips[batch])
            yield images, self.data.labels[rows[batch]]

    def _step(self, images: torch.Tensor, labels: torch.Tensor, learning_rate: float) -> torch.Tensor:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        with autocast(self.context.device, self.context.dtype):
            loss = self.loss(images, labels)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.detach()

    def _loss(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        logits = self.network(self.normalise(images).contiguous(memory_format=torch.channels_last))
        return F.cross_entropy(logits.float(), labels, label_smoothing=self.recipe.label_smoothing)

    def seconds_per_step(self) -> float:
        """From a few steps on a copy of the network."""
        trial = Training(copy.deepcopy(self.network), self.data, self.recipe, self.normalise, self.context)
        trial.network.train()
        generator = torch.Generator().manual_seed(self.context.seed)
        batches = trial._epoch(trial._mirrored(generator), generator)
        started = 0.0
        done = 0
        with trial._tuned():
            for done, (images, labels) in zip(range(min(_TIMED_STEPS + 1, self.batches)), batches, strict=False):
                float(trial._step(images, labels, self.recipe.learning_rate))  # reading the loss waits for the device
                if done == 0:
                    started = time.perf_counter()
        return (time.perf_counter() - started) / max(1, done)

    @torch.inference_mode()
    def accuracy(self) -> float | None:
        """Share of held-out images whose class is recognised; None when nothing is held out."""
        if len(self.data.held_out_rows) == 0:
            return None
        self.network.eval()
        right = torch.zeros((), dtype=torch.int64, device=self.context.device)
        for rows in torch.split(self.data.held_out_rows.to(self.context.device), 256):
            with autocast(self.context.device, self.context.dtype):
                pixels = self.normalise(self.data.images[rows]).contiguous(memory_format=torch.channels_last)
                right += (self.network(pixels).argmax(1) == self.data.labels[rows]).sum()
        return int(right) / len(self.data.held_out_rows)


def timed_rows(recipe: Recipe, num_samples: int) -> NDArray[np.int64]:
    """As many rows of a dataset as `seconds_to_train` looks at, spread evenly, int64 [n]."""
    count = math.ceil((_TIMED_STEPS + 1) * recipe.batch_size / (1 - recipe.held_out))
    return np.linspace(0, num_samples - 1, min(num_samples, count)).astype(np.int64)


def seconds_to_train(
    network: nn.Module,
    data: Resident,
    recipe: Recipe,
    normalise: Callable[[torch.Tensor], torch.Tensor],
    context: EncoderContext,
) -> float:
    """How long `train` would take on all of `context.dataset`, from a few steps on the part of it that `data` holds."""
    training = Training(network, data, recipe, normalise, context)
    num_trained = round((1 - recipe.held_out) * len(context.dataset))
    return training.seconds_per_step() * recipe.epochs * max(1, num_trained // training.batch_size)


def train(
    network: nn.Module,
    data: Resident,
    recipe: Recipe,
    normalise: Callable[[torch.Tensor], torch.Tensor],
    context: EncoderContext,
    what: str,
    advice: str,
) -> tuple[dict[str, Any], StageCost]:
    """Train `network` in place; say first how long that takes.

    Args:
        network: pixels [B, 3, S, S] -> logits [B, K].
        data: the dataset on the device.
        recipe: how.
        normalise: uint8 [B, C, S, S] -> float32 [B, 3, S, S].
        context: device, dtype, seed and progress.
        what: the network in words, for the message.
        advice: what makes it faster, said when it takes long.

    Returns:
        What is known about the result, for the artifact (`held_out_accuracy` and sample counts), and what it cost.

    Raises:
        TrainingDiverged: the loss is no longer finite.
        OptionError: the GPU's memory does not hold a batch.
    """
    try:
        training = Training(network, data, recipe, normalise, context)
        seconds = training.seconds_per_step() * training.total
        context.progress.note(
            f"Training {what} on this dataset for {_counted(recipe.epochs)}: about {_duration(seconds)} on "
            f"{context.device}." + (f" {advice}" if seconds > _LONG else "")
        )
        if context.device.type == "cuda" and seconds > _COMPILE_REPAYS:
            training = replace(training, compiled=True)
        started = time.perf_counter()
        training.run()
        elapsed = time.perf_counter() - started
        accuracy = training.accuracy()
    except torch.OutOfMemoryError as error:
        raise OptionError(
            f"The memory of {context.device} does not hold {recipe.batch_size} images at a time: lower --set "
            f"batch_size={recipe.batch_size}, or --set width."
        ) from error
    network.eval()
    details = {
        "held_out_accuracy": accuracy,
        "num_trained": len(data.train_rows),
        "num_held_out": len(data.held_out_rows),
    }
    images = training.total * training.batch_size
    return details, StageCost(
        stage="surrogate",
        images_seen=images,
        updates=training.total,
        flops=images * _flops(network, normalise(data.images[:1])),
        device_seconds=round(elapsed, 3),
    )


def _flops(network: nn.Module, pixels: torch.Tensor) -> int:
    """Floating-point operations of training on one image, pixels [1, 3, S, S]."""
    with flop_counter() as counter:
        loss = network(pixels.contiguous(memory_format=torch.channels_last)).sum()
        torch.autograd.grad(loss, [each for each in network.parameters() if each.requires_grad])
    return int(counter.get_total_flops())


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _counted(epochs: int) -> str:
    return "1 epoch" if epochs == 1 else f"{epochs} epochs"
