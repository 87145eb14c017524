"""Which samples at which step, for how many steps, and at which learning rate."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch

from dcprune.interfaces import Progress
from dcprune.training.config import TrainingConfig
from dcprune.training.draws import Draw, Purpose, generator
from dcprune.training.infobatch import FULL_DATA_FROM, InfoBatchStream
from dcprune.training.objectives import Objective


@dataclass(frozen=True)
class Phase:
    """A part of a run: some rows, some updates, one objective.

    Attributes:
        rows: int64 [n] on the CPU, rows of the training data.
        steps: number of updates.
        objective: how per-sample losses become the loss.
        row_weights: float64 [n] on the CPU, how often a row is drawn relative to the others; None draws all alike.
        pruned: leave samples out as `dcprune.training.infobatch` does.
        epochs: with `pruned`, end after so many epochs, which are shorter than over all rows; `steps` is then the
            number of updates over all rows.
    """

    rows: torch.Tensor
    steps: int
    objective: Objective
    row_weights: torch.Tensor | None = None
    pruned: bool = False
    epochs: float | None = None


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


def infobatch_phases(rows: torch.Tensor, objective: Objective, config: TrainingConfig) -> list[Phase]:
    """Seven eighths of a run with InfoBatch, the rest on all of `rows` int64 [n]."""
    total, _ = phase_steps(config, len(rows), len(rows))
    first = min(max(1, round(FULL_DATA_FROM * total)), total)
    epochs = None if config.epochs is None else FULL_DATA_FROM * config.epochs
    return [Phase(rows, first, objective, pruned=True, epochs=epochs), Phase(rows, total - first, objective)]


def warmup_steps(config: TrainingConfig, coreset_size: int) -> int:
    """Length of the linear warm-up in updates."""
    return config.lr_warmup_steps or round(config.lr_warmup_epochs * coreset_size / config.batch_size)


def warn_of_warmup(config: TrainingConfig, coreset_size: int, steps: int, progress: Progress) -> None:
    """Warn when a training of `steps` updates ends before the learning rate is at its peak."""
    warmup = warmup_steps(config, coreset_size)
    if warmup >= steps:
        progress.warn(
            f"The learning rate warms up for {warmup:,} updates, and the training has {steps:,}: it never reaches its "
            "peak. Train longer, or shorten lr_warmup_steps."
        )


def learning_rate(config: TrainingConfig, step: float, total_steps: int, warmup: int) -> float:
    """Learning rate of update `step`, counted from 0; see `Schedule.position` for what lies between two updates."""
    if step < warmup:
        return config.learning_rate * min(1.0, (step + 1) / warmup)
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
        shuffled = rows[torch.randperm(len(rows), generator=random)]
        if self.device.type == "cuda":  # from pinned memory the host need not wait for the device
            return shuffled.pin_memory().to(self.device, non_blocking=True)
        return shuffled.to(self.device)


def _systematic(weights: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    """Indices in which index i occurs n * w_i / sum(w) times, rounded up or down at random; int64 [n] for n weights."""
    edges = weights.cumsum(0) * (len(weights) / weights.sum())
    points = torch.arange(len(weights), dtype=torch.float64) + torch.rand(1, generator=random, dtype=torch.float64)
    return torch.searchsorted(edges, points, right=True).clamp(max=len(weights) - 1)


class Schedule:
    """Where a run is in its phases, and which samples come next.

    Args:
        phases: those that have updates, in order.
        config: batch size and seed.
        num_train_timesteps: T.
        device: where rows go.

    Attributes:
        number: number of the current phase.
        local: updates done in it.
    """

    def __init__(
        self, phases: Sequence[Phase], config: TrainingConfig, num_train_timesteps: int, device: torch.device
    ) -> None:
        self.phases = tuple(phases)
        self.number = 0
        self.local = 0
        self._batch_size = config.batch_size
        self._streams = [
            InfoBatchStream(
                phase.rows,
                batch_size=config.batch_size,
                num_train_timesteps=num_train_timesteps,
                seed=config.seed,
                device=device,
                counter=counter,
            )
            if phase.pruned
            else RowStream(
                phase.rows,
                phase.row_weights,
                batch_size=config.batch_size,
                seed=config.seed,
                device=device,
                counter=counter,
            )
            for counter, phase in enumerate(self.phases)
        ]
        self._starts = [0, *accumulate(phase.steps for phase in self.phases)]
        self._epochs_before = 0.0

    @property
    def total_steps(self) -> int:
        """Updates of the whole run if no sample were left out."""
        return self._starts[-1]

    @property
    def finished(self) -> bool:
        return self.number == len(self.phases)

    @property
    def phase(self) -> Phase:
        return self.phases[self.number]

    @property
    def position(self) -> float:
        """Progress on the scale of `total_steps`: updates done, or where samples are left out, what they stand for."""
        if self.finished:
            return float(self.total_steps)
        own = self._share() * self.phase.steps if self.phase.epochs is not None else self.local
        return float(self._starts[self.number] + own)

    @property
    def epochs(self) -> float:
        """Epochs done, each counted over the rows of its phase, or over those that were not left out."""
        if self.finished:
            return self._epochs_before
        stream = self._streams[self.number]
        own = stream.epochs if isinstance(stream, InfoBatchStream) else self._plain_epochs()
        return self._epochs_before + own

    def next(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Rows int64 [B] of the next update, and weights float32 [B] for their losses or None."""
        stream = self._streams[self.number]
        return stream.next() if isinstance(stream, InfoBatchStream) else (stream.at(self.local), None)

    @property
    def wants_losses(self) -> bool:
        """Whether `observe` must be told the losses of this update."""
        return isinstance(self._streams[self.number], InfoBatchStream)

    def observe(self, draw: Draw, losses: torch.Tensor) -> None:
        """The losses float32 [B] of the whole batch that `next` gave."""
        stream = self._streams[self.number]
        if isinstance(stream, InfoBatchStream):
            stream.observe(draw.timesteps, losses)

    def advance(self) -> None:
        """One update is done."""
        self.local += 1
        if self.local == self.phase.steps or self._share() > 1 - 1e-9:
            self._epochs_before = self.epochs
            self.number, self.local = self.number + 1, 0

    def _share(self) -> float:
        """Share of the current phase that is done."""
        stream, phase = self._streams[self.number], self.phase
        if isinstance(stream, InfoBatchStream) and phase.epochs is not None:
            return min(1.0, stream.epochs / phase.epochs)
        return self.local / phase.steps

    def _plain_epochs(self) -> float:
        return self.local * self._batch_size / len(self.phase.rows)

    def state(self) -> dict[str, torch.Tensor]:
        """Tensors that a resumed run needs, besides what follows from seed and step."""
        position = torch.tensor([self.number, self.local, self._epochs_before], dtype=torch.float64)
        streams = {
            f"stream.{number}.{name}": value
            for number, stream in enumerate(self._streams)
            if isinstance(stream, InfoBatchStream)
            for name, value in stream.state().items()
        }
        objectives = {
            f"objective.{number}.{name}": value
            for number, phase in enumerate(self.phases)
            for name, value in phase.objective.state().items()
        }
        return {"position": position, **streams, **objectives}

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """The inverse of `state`.

        Raises:
            KeyError: a tensor is missing.
        """
        number, local, self._epochs_before = state["position"].tolist()
        self.number, self.local = int(number), int(local)
        for index, (phase, stream) in enumerate(zip(self.phases, self._streams, strict=True)):
            if isinstance(stream, InfoBatchStream):
                stream.load_state(_under(state, f"stream.{index}."))
            phase.objective.load_state(_under(state, f"objective.{index}."))


def _under(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def plan_sha256(phases: Sequence[Phase]) -> str:
    """Hash of what the phases of a run draw from, how often, for how long and with which objective."""
    digest = hashlib.sha256()
    for phase in phases:
        digest.update(f"{phase.steps} {len(phase.rows)} {phase.objective.describe()} ".encode())
        if phase.pruned:
            digest.update(f"infobatch {phase.epochs} ".encode())
        digest.update(phase.rows.numpy().tobytes())
        if phase.row_weights is not None:
            digest.update(phase.row_weights.numpy().tobytes())
    return digest.hexdigest()
