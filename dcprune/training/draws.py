"""The randomness of training, counted instead of remembered.

Everything that is drawn for a step is a function of (seed, purpose, step): a resumed run needs no generator state, and
several processes can draw the whole batch and take their part of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import torch

from dcprune.interfaces import Batch, TrainingData


class Purpose(IntEnum):
    """What a random stream is for; streams of different purposes are independent."""

    ORDER = 0
    DRAW = 1
    INSIDE = 2
    DROPOUT = 3
    HELD_OUT_ORDER = 4
    HELD_OUT_DRAW = 5
    IMAGES = 6


def derived_seed(seed: int, purpose: Purpose, *counters: int) -> int:
    """A seed below 2^63 for one purpose at one position."""
    state = np.random.SeedSequence((seed, purpose, *counters)).generate_state(1, np.uint64)
    return int(state[0]) >> 1


def generator(device: torch.device, seed: int, purpose: Purpose, *counters: int) -> torch.Generator:
    """A fresh generator on `device` for one purpose at one position."""
    return torch.Generator(device).manual_seed(derived_seed(seed, purpose, *counters))


@dataclass(frozen=True)
class Draw:
    """One step's samples with everything that was drawn for them; two models scored on it see the same.

    Attributes:
        batch: clean samples [B, ...] with labels and label drops.
        timesteps: int64 [B].
        noise: like `batch.x0`.
        inside_seed: seed of whatever a backend draws inside its loss.
    """

    batch: Batch
    timesteps: torch.Tensor
    noise: torch.Tensor
    inside_seed: int

    def inside(self) -> torch.Generator:
        """A fresh generator for the inside of the loss: every call starts at the same state."""
        return torch.Generator(self.noise.device).manual_seed(self.inside_seed)


@dataclass(frozen=True)
class Drawing:
    """How the draws of a run are made: see `TrainingConfig` for the two probabilities."""

    seed: int
    num_train_timesteps: int
    label_dropout: float
    horizontal_flip: bool
    purpose: Purpose = Purpose.DRAW

    def __call__(self, data: TrainingData, rows: torch.Tensor, step: int) -> Draw:
        """The draw of `step` for `rows` int64 [B] of `data`, on the data's device."""
        device = data.labels.device
        random = generator(device, self.seed, self.purpose, step)
        size = len(rows)
        flip = torch.rand(size, generator=random, device=device) < 0.5
        dropped = torch.rand(size, generator=random, device=device) < self.label_dropout
        timesteps = torch.randint(self.num_train_timesteps, (size,), generator=random, device=device)
        noise = torch.randn((size, *data.sample_shape), generator=random, device=device)
        x0 = data.x0(rows, flip & self.horizontal_flip, random)
        inside = derived_seed(self.seed, Purpose.INSIDE, self.purpose, step)
        return Draw(Batch(x0, data.labels[rows], dropped), timesteps, noise, inside)
