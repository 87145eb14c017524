"""Trains a small classifier on a dataset, as the space that its own samples are compared in.

The recipe is the usual one for CIFAR: SGD with Nesterov momentum, a one-cycle learning rate, label smoothing, random
flips and padded crops. The whole dataset stays on the device as uint8. On a CPU the same seed gives the same weights.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from dcprune.devices import autocast
from dcprune.encoders.resident import Resident, cropped
from dcprune.errors import OptionError, TrainingDiverged
from dcprune.interfaces import EncoderContext

_WARM_UP = 0.25
_MOMENTUM = 0.9
_TIMED_STEPS = 3
_LONG = 600


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
    """

    network: nn.Module
    data: Resident
    recipe: Recipe
    normalise: Callable[[torch.Tensor], torch.Tensor]
    context: EncoderContext

    def __post_init__(self) -> None:
        self.network.to(self.context.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        parameters = list(self.network.parameters())
        groups = [
            {"params": [each for each in parameters if each.ndim > 1], "weight_decay": self.recipe.weight_decay},
            {"params": [each for each in parameters if each.ndim <= 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.SGD(groups, self.recipe.learning_rate, momentum=_MOMENTUM, nesterov=True)
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
        step = 0
        self.network.train()
        with self.context.progress.task("train surrogate", self.total, "steps") as task:
            for epoch in range(self.recipe.epochs):
                losses = []
                for images, labels in self._epoch(generator):
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

    def _epoch(self, generator: torch.Generator) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Shuffled batches, each image at random mirrored and shifted; draws are made on the CPU for every device."""
        device, size = self.context.device, self.data.images.shape[3]
        padding = max(1, size // 14)
        count = self.batches * self.batch_size
        rows = self.data.train_rows[torch.randperm(len(self.data.train_rows), generator=generator)[:count]].to(device)
        flips = torch.rand(count, generator=generator).lt(0.5).to(device)
        shifts = torch.randint(0, 2 * padding + 1, (count, 2), generator=generator).to(device)
        for batch in torch.split(torch.arange(count, device=device), self.batch_size):
            images = cropped(self.data.images[rows[batch]], padding, shifts[batch], flips[batch])
            yield images, self.data.labels[rows[batch]]

    def _step(self, images: torch.Tensor, labels: torch.Tensor, learning_rate: float) -> torch.Tensor:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        with autocast(self.context.device, self.context.dtype):
            logits = self.network(self.normalise(images).contiguous(memory_format=torch.channels_last))
            loss = F.cross_entropy(logits.float(), labels, label_smoothing=self.recipe.label_smoothing)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.detach()

    def seconds(self) -> float:
        """How long `run` will take, by a few steps on a copy."""
        trial = Training(copy.deepcopy(self.network), self.data, self.recipe, self.normalise, self.context)
        trial.network.train()
        batches = trial._epoch(torch.Generator().manual_seed(self.context.seed))
        started = 0.0
        done = 0
        for done, (images, labels) in zip(range(min(_TIMED_STEPS + 1, self.batches)), batches, strict=False):
            float(trial._step(images, labels, self.recipe.learning_rate))  # reading the loss waits for the device
            if done == 0:
                started = time.perf_counter()
        return (time.perf_counter() - started) / max(1, done) * self.total

    @torch.inference_mode()
    def accuracy(self) -> float | None:
        """Share of held-out images whose class is recognised; None when nothing is held out."""
        if len(self.data.held_out_rows) == 0:
            return None
        self.network.eval()
        right = 0
        for rows in torch.split(self.data.held_out_rows.to(self.context.device), 256):
            with autocast(self.context.device, self.context.dtype):
                pixels = self.normalise(self.data.images[rows]).contiguous(memory_format=torch.channels_last)
                right += int((self.network(pixels).argmax(1) == self.data.labels[rows]).sum())
        return right / len(self.data.held_out_rows)


def train(
    network: nn.Module,
    data: Resident,
    recipe: Recipe,
    normalise: Callable[[torch.Tensor], torch.Tensor],
    context: EncoderContext,
    what: str,
    advice: str,
) -> dict[str, Any]:
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
        What is known about the result, for the artifact: `held_out_accuracy` and sample counts.

    Raises:
        TrainingDiverged: the loss is no longer finite.
    """
    training = Training(network, data, recipe, normalise, context)
    seconds = training.seconds()
    context.progress.note(
        f"Training {what} on this dataset for {_counted(recipe.epochs)}: about {_duration(seconds)} on "
        f"{context.device}." + (f" {advice}" if seconds > _LONG else "")
    )
    training.run()
    accuracy = training.accuracy()
    network.eval()
    return {
        "held_out_accuracy": accuracy,
        "num_trained": len(data.train_rows),
        "num_held_out": len(data.held_out_rows),
    }


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _counted(epochs: int) -> str:
    return "1 epoch" if epochs == 1 else f"{epochs} epochs"
