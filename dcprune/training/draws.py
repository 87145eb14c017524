"""The randomness of training, counted instead of remembered.

Everything that is drawn for a step is a function of (seed, purpose, step), and is drawn for the whole batch before it
is divided: a resumed run needs no generator state, and how many processes share a batch changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property

import numpy as np
import torch

from dcprune.interfaces import Batch, TrainingData, condition_of
from dcprune.reweighting import stratified_timesteps


class Purpose(IntEnum):
    """What a random stream is for; streams of different purposes are independent."""

    ORDER = 0
    DRAW = 1
    INSIDE = 2
    DROPOUT = 3
    HELD_OUT_ORDER = 4
    HELD_OUT_DRAW = 5
    IMAGES = 6
    PRUNING = 7


def derived_seed(seed: int, purpose: Purpose, *counters: int) -> int:
    """A seed below 2^63 for one purpose at one position."""
    state = np.random.SeedSequence((seed, purpose, *counters)).generate_state(1, np.uint64)
    return int(state[0]) >> 1


def generator(device: torch.device, seed: int, purpose: Purpose, *counters: int) -> torch.Generator:
    """A fresh generator on `device` for one purpose at one position."""
    return torch.Generator(device).manual_seed(derived_seed(seed, purpose, *counters))


@dataclass(frozen=True)
class Draw:
    """Samples of one step with everything that was drawn for them; two models scored on it see the same.

    Attributes:
        batch: clean samples [B, ...] with labels and label drops.
        timesteps: int64 [B].
        noise: like `batch.x0`.
        rows: int64 [B], the samples' rows in the training data.
        dropout_seeds: int32 [B], one for every sample's dropout; see `dcprune.training.dropout`.
        inside_seed: seed of whatever a backend draws inside its loss, the same for all parts of a batch.
        weights: float32 [B] that multiply the losses, or None.
        start: position of the first of these samples in the whole batch.
    """

    batch: Batch
    timesteps: torch.Tensor
    noise: torch.Tensor
    rows: torch.Tensor
    dropout_seeds: torch.Tensor
    inside_seed: int
    weights: torch.Tensor | None = None
    start: int = 0

    def __len__(self) -> int:
        return len(self.timesteps)

    @cached_property
    def where(self) -> slice:
        """These samples in the whole batch."""
        return slice(self.start, self.start + len(self))

    def part(self, where: slice) -> Draw:
        """Some samples of a whole draw; all of them are the draw itself."""
        if where == self.where:
            return self
        batch = self.batch
        return Draw(
            batch=Batch(
                batch.x0[where],
                batch.labels[where],
                batch.dropped[where],
                where.start,
                len(self),
                None if batch.condition is None else batch.condition[where],
            ),
            timesteps=self.timesteps[where],
            noise=self.noise[where],
            rows=self.rows[where],
            dropout_seeds=self.dropout_seeds[where],
            inside_seed=self.inside_seed,
            weights=None if self.weights is None else self.weights[where],
            start=where.start,
        )

    def inside(self) -> torch.Generator:
        """A fresh generator for the inside of the loss: every call starts at the same state."""
        return torch.Generator(self.noise.device).manual_seed(self.inside_seed)


@dataclass(frozen=True)
class Drawing:
    """How the draws of a run are made.

    Attributes:
        seed: the run's seed.
        num_train_timesteps: T.
        label_dropout, horizontal_flip: see `dcprune.training.config.TrainingConfig`.
        purpose: which random stream draws.
        strata: number of classes within each of which timesteps are spread evenly; 0 draws them independently.
    """

    seed: int
    num_train_timesteps: int
    label_dropout: float
    horizontal_flip: bool
    purpose: Purpose = Purpose.DRAW
    strata: int = 0

    def __call__(self, data: TrainingData, rows: torch.Tensor, step: int, weights: torch.Tensor | None = None) -> Draw:
        """The draw of `step` for `rows` int64 [B] of `data`, on the data's device.

        Args:
            data: where the samples lie.
            rows: the whole batch, over all processes.
            step: number of the update.
            weights: float32 [B], see `Draw`.
        """
        device = data.labels.device
        random = generator(device, self.seed, self.purpose, step)
        size = len(rows)
        labels = data.labels[rows]
        flip = torch.rand(size, generator=random, device=device) < 0.5
        dropped = torch.rand(size, generator=random, device=device) < self.label_dropout
        timesteps = torch.randint(self.num_train_timesteps, (size,), generator=random, device=device)
        noise = torch.randn((size, *data.sample_shape), generator=random, device=device)
        dropout_seeds = torch.randint(-(2**31), 2**31, (size,), generator=random, device=device, dtype=torch.int32)
        offset = torch.rand(1, generator=random, device=device)
        if self.strata:
            timesteps = stratified_timesteps(labels, self.strata, offset, self.num_train_timesteps)
        x0 = data.x0(rows, flip & self.horizontal_flip, random)
        return Draw(
            batch=Batch(x0, labels, dropped, condition=condition_of(data, rows)),
            timesteps=timesteps,
            noise=noise,
            rows=rows,
            dropout_seeds=dropout_seeds,
            inside_seed=derived_seed(self.seed, Purpose.INSIDE, self.purpose, step),
            weights=weights,
        )
