"""Which samples at which step, for how many steps, and at which learning rate."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from dcprune.training.config import TrainingConfig
from dcprune.training.draws import Purpose, generator
from dcprune.training.objectives import Objective


@dataclass(frozen=True)
class Phase:
    """A part of a run: some rows, some updates, one objective.

    Attributes:
        rows: int64 [n] on the CPU, rows of the training data.
        steps: number of updates.
        objective: how per-sample losses become the loss.
        row_weights: float64 [n] on the CPU, how often a row is drawn relative to the others; None draws all alike.
    """

    rows: torch.Tensor
    steps: int
    objective: Objective
    row_weights: torch.Tensor | None = None


def phase_steps(config: TrainingConfig, coreset_size: int, full_size: int) -> tuple[int, int]:
    """Updates on the coreset and on the full data.

    With a fixed number of epochs an update count follows the number of samples, which is where a coreset saves time.
    Each phase that exists has at least one update.
    """
    share = 1.0 if config.anneal is None else config.anneal
    if config.steps is not None:
        first = min(max(1, round(share * config.steps)), config.steps)
        return first, config.steps - first
    epochs = config.epochs or 0.0
    first = max(1, round(share * epochs * coreset_size / config.batch_size))
    if config.anneal is None:
        return first, 0
    return first, max(1, round((1 - share) * epochs * full_size / config.batch_size))


def warmup_steps(config: TrainingConfig, coreset_size: int) -> int:
    """Length of the linear warm-up in updates."""
    return config.lr_warmup_steps or round(config.lr_warmup_epochs * coreset_size / config.batch_size)


def learning_rate(config: TrainingConfig, step: int, total_steps: int, warmup: int) -> float:
    """Learning rate of update `step`, counted from 0."""
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    if config.lr_schedule == "constant":
        return config.learning_rate
    done = (step - warmup) / max(1, total_steps - warmup)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


class RowStream:
    """Shuffled epochs one after the other; step s reads positions [s * B, (s + 1) * B), across the seams of epochs.

    With weights an epoch holds row i about n * w_i / sum(w) times, never off by one or more (systematic resampling),
    and equal weights give plain shuffling.

    Args:
        rows: int64 [n] on the CPU.
        weights: float64 [n] on the CPU, or None.
        batch_size: B; it may be larger than n.
        seed: the run's seed.
        purpose: which random stream shuffles.
        counter: what tells streams of one purpose apart.
        device: where the rows go.
    """

    def __init__(
        self,
        rows: torch.Tensor,
        weights: torch.Tensor | None = None,
        *,
        batch_size: int,
        seed: int,
        device: torch.device,
        purpose: Purpose = Purpose.ORDER,
        counter: int = 0,
    ) -> None:
        self.rows = rows
        self.weights = weights
        self.batch_size = batch_size
        self.seed = seed
        self.device = device
        self.purpose = purpose
        self.counter = counter
        self._epochs: dict[int, torch.Tensor] = {}

    def at(self, step: int) -> torch.Tensor:
        """Rows of `step`, int64 [B] on the device."""
        start, stop = step * self.batch_size, (step + 1) * self.batch_size
        size = len(self.rows)
        first, last = start // size, (stop - 1) // size
        known = self._epochs
        self._epochs = {
            epoch: known[epoch] if epoch in known else self._shuffled(epoch) for epoch in range(first, last + 1)
        }
        epochs = list(self._epochs.values())
        joined = epochs[0] if len(epochs) == 1 else torch.cat(epochs)
        return joined[start - first * size : stop - first * size]

    def _shuffled(self, epoch: int) -> torch.Tensor:
        random = generator(torch.device("cpu"), self.seed, self.purpose, self.counter, epoch)
        rows = self.rows if self.weights is None else self.rows[_systematic(self.weights, random)]
        return rows[torch.randperm(len(rows), generator=random)].to(self.device)


def _systematic(weights: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    """Indices in which index i occurs n * w_i / sum(w) times, rounded up or down at random; int64 [n] for n weights."""
    edges = weights.cumsum(0) * (len(weights) / weights.sum())
    points = torch.arange(len(weights), dtype=torch.float64) + torch.rand(1, generator=random, dtype=torch.float64)
    return torch.searchsorted(edges, points, right=True).clamp(max=len(weights) - 1)


def plan_sha256(phases: Sequence[Phase]) -> str:
    """Hash of what the phases of a run draw from, how often, for how long and with which objective."""
    digest = hashlib.sha256()
    for phase in phases:
        digest.update(f"{phase.steps} {len(phase.rows)} {phase.objective.describe()} ".encode())
        digest.update(phase.rows.numpy().tobytes())
        if phase.row_weights is not None:
            digest.update(phase.row_weights.numpy().tobytes())
    return digest.hexdigest()
