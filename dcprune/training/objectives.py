"""From the loss of every sample to the one number that is minimised."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from dcprune.errors import OptionError
from dcprune.reweighting import (
    caveats,
    check_ascent,
    check_decay,
    class_excess,
    clipped_excess,
    importance,
    normalised_entropy,
    update_class_weights,
)
from dcprune.training.draws import Draw
from dcprune.training.dropout import SampleSeeds, keep_dropping, per_sample_dropout
from dcprune.training.sharing import WHOLE, Sharing

TRAJECTORY_POINTS = 200

Losses = Callable[[torch.nn.Module, Draw], torch.Tensor]


class SameInTraining(Protocol):
    """See `Objective.prepare`."""

    def __call__(self, *, dropout: bool) -> bool: ...


class Objective(Protocol):
    """What a phase of training minimises: a weighted sum of the losses of a batch.

    Attributes:
        forward_passes: passes through a network that an update has besides its training pass.
    """

    @property
    def forward_passes(self) -> int: ...

    def prepare(self, same_in_training: SameInTraining) -> None:
        """Training is about to start or to go on.

        Args:
            same_in_training: finds out whether the model in training mode has the losses that it has in evaluation
                mode, with `dropout` in both or in neither; a little work.

        Raises:
            OptionError: the model is not one for this objective.
        """

    def compile(self, compiled: Callable[[torch.nn.Module], torch.nn.Module]) -> None:
        """Compile the networks that belong to the objective, as the one in training is."""

    def begin(self, whole: Draw, parts: Sequence[Draw], model: torch.nn.Module) -> None:
        """An update begins.

        Args:
            whole: the batch of all processes.
            parts: what this process computes of it, in order.
            model: the model in training, for objectives that score it once more.
        """

    def weights(self, whole: Draw, part: Draw, losses: torch.Tensor) -> torch.Tensor:
        """Weights float32 [b] of the samples of one part; over the whole batch, weight times loss adds up to the loss.

        Args:
            whole: the batch of all processes.
            part: one of the parts that `begin` was given.
            losses: float32 [b], without a graph; of the model in training mode on `part`.
        """

    def describe(self) -> str:
        """A line in which two objectives that would train differently differ."""

    def state(self) -> dict[str, torch.Tensor]:
        """Everything that the objective has learned, enough for `load_state` to go on from here."""

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """The inverse of `state`."""


class WeightedLoss:
    """Mean of weight times loss; the weights average 1 over the phase's samples, so the learning rate carries over.

    Args:
        class_weights: [K], at any scale; K = 1 for class-less data.
        labels: int64 [n] of the phase's samples.
        device: where the losses are.
    """

    def __init__(self, class_weights: NDArray[np.float64], labels: NDArray[np.int64], device: torch.device) -> None:
        self.forward_passes = 0
        self.class_weights = class_weights * (len(labels) / class_weights[labels].sum())
        self._weights = torch.tensor(self.class_weights, dtype=torch.float32, device=device)

    def prepare(self, same_in_training: SameInTraining) -> None:
        """Nothing to decide."""

    def compile(self, compiled: Callable[[torch.nn.Module], torch.nn.Module]) -> None:
        """No networks."""

    def begin(self, whole: Draw, parts: Sequence[Draw], model: torch.nn.Module) -> None:
        """Nothing to score."""

    def weights(self, whole: Draw, part: Draw, losses: torch.Tensor) -> torch.Tensor:
        return self._weights[part.batch.labels] / len(whole)

    def describe(self) -> str:
        return "weighted-loss " + " ".join(float(weight).hex() for weight in self.class_weights)

    def state(self) -> dict[str, torch.Tensor]:
        return {}

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Nothing was learned."""


@dataclass(frozen=True)
class DroSettings:
    """How the class weights move.

    Attributes:
        eta, smoothing: see `dcprune.reweighting.update_class_weights`.
        excess_decay: the `decay` of `dcprune.reweighting.class_excess`.
        shared_dropout: score proxy and reference under the dropout of the training pass instead of under none.

    Raises:
        OptionError: a value out of range.
    """

    eta: float = 1.0
    smoothing: float = 1e-3
    excess_decay: float = 0.0
    shared_dropout: bool = False

    def __post_init__(self) -> None:
        check_ascent(self.eta, self.smoothing)
        check_decay(self.excess_decay)


@dataclass(frozen=True)
class DroResult:
    """What distributionally robust training found out.

    Attributes:
        weights: mean simplex weights over all steps, float64 [K]; the uniform start counts as step 0.
        trajectory: `(step, simplex weights [K])`, at most `TRAJECTORY_POINTS` of them.
        fraction_clipped: share of scored samples on which the proxy beat the reference.
        final_excess: lambda [K] after the last step.
    """

    weights: NDArray[np.float64]
    trajectory: tuple[tuple[int, tuple[float, ...]], ...]
    fraction_clipped: float
    final_excess: tuple[float, ...]

    @property
    def entropy(self) -> float:
        return normalised_entropy(self.weights)

    @property
    def caveats(self) -> tuple[str, ...]:
        return caveats(self.weights, self.fraction_clipped, self.trajectory)


class DroObjective:
    """The robust loss over classes: adversarial weights go up where the proxy lags behind the reference.

    Every update scores proxy and reference on one draw with dropout off, moves the class weights by the class means
    over the whole batch of all processes, and then weighs the training losses by w_y / p_y. Nothing waits for the
    device before `result`.

    Where a proxy in training has the losses of one in evaluation mode (no dropout), and its batch is one part, the
    losses of the training pass serve as the proxy's scores, so that the reference's pass is the only one added. With
    `shared_dropout` that is so for a proxy with dropout, too, and the reference drops the same elements.

    Args:
        reference: the frozen reference model, in inference mode; with `shared_dropout` its dropout layers are replaced.
        losses: `(model, draw) -> float32 [B]`, in the precision of the training pass.
        proportions: share of every class in the coreset, float64 [K].
        settings: step size and smoothing; `shared_dropout` goes with neither `held_out` nor a batch in portions.
        total_steps: number of updates to come, for thinning the trajectory.
        held_out: the draw of each scoring pass, by step; None scores the training draw itself.
        device: where the losses are.
        sharing: how processes share the batches.
    """

    def __init__(
        self,
        reference: torch.nn.Module,
        losses: Losses,
        proportions: NDArray[np.float64],
        settings: DroSettings,
        *,
        total_steps: int,
        held_out: Callable[[int], Draw] | None,
        device: torch.device,
        sharing: Sharing = WHOLE,
    ) -> None:
        # Running means over 10^5 steps lose digits in float32; Apple's GPUs have nothing wider.
        dtype = torch.float32 if device.type == "mps" else torch.float64
        classes = len(proportions)
        self.reference = reference
        self.losses = losses
        self.settings = settings
        self.held_out = held_out
        self.sharing = sharing
        self.one_pass = False
        self._dropout: SampleSeeds | None = None
        if settings.shared_dropout:
            self._dropout = per_sample_dropout(reference)
            keep_dropping(reference)
        self.step = 0
        self._stride = -(-total_steps // (TRAJECTORY_POINTS - 2))
        self._proportions = torch.tensor(proportions, dtype=dtype, device=device)
        self._weights = torch.full((classes,), 1 / classes, dtype=dtype, device=device)
        self._mean = self._weights.clone()
        self._excess = torch.zeros_like(self._weights)
        self._clipped = torch.zeros((), dtype=dtype, device=device)
        self._scored = 0
        self._trajectory = [(0, self._weights)]

    @property
    def forward_passes(self) -> int:
        return 1 if self.one_pass else 2

    def prepare(self, same_in_training: SameInTraining) -> None:
        shared = self.settings.shared_dropout
        self.one_pass = self.held_out is None and self.sharing.portions == 1 and same_in_training(dropout=shared)
        if shared and not self.one_pass:
            raise OptionError("shared_dropout: training losses of this model differ from scores by more than dropout.")

    def compile(self, compiled: Callable[[torch.nn.Module], torch.nn.Module]) -> None:
        self.reference = compiled(self.reference)

    @torch.no_grad()
    def begin(self, whole: Draw, parts: Sequence[Draw], model: torch.nn.Module) -> None:
        if self.one_pass:
            return
        scored, own = whole, parts
        if self.held_out is not None:
            scored = self.held_out(self.step)
            own = [scored.part(where) for where in self.sharing.portions_of(len(scored))]
        model.eval()
        proxy_losses = torch.cat([self.losses(model, part) for part in own])
        model.train()
        self._ascend(scored, proxy_losses, self._reference_losses(own))

    @torch.no_grad()
    def weights(self, whole: Draw, part: Draw, losses: torch.Tensor) -> torch.Tensor:
        if self.one_pass:
            self._ascend(whole, losses, self._reference_losses([part]))
        weights = importance(self._weights, self._proportions, whole.batch.labels)
        return (weights[part.where] / weights.sum()).float()

    def _reference_losses(self, parts: Sequence[Draw]) -> torch.Tensor:
        losses = []
        for part in parts:
            if self._dropout is not None:
                self._dropout.values = part.dropout_seeds
            losses.append(self.losses(self.reference, part))
        return torch.cat(losses)

    def _ascend(self, whole: Draw, proxy_losses: torch.Tensor, reference_losses: torch.Tensor) -> None:
        """Move the class weights by the losses [b] of this process's part of `whole`."""
        own = torch.stack([proxy_losses, reference_losses], dim=1).to(self._weights.dtype)
        proxy, reference = self.sharing.gathered(own, len(whole)).unbind(1)
        excess = clipped_excess(proxy, reference)
        self._excess = class_excess(
            excess, whole.batch.labels, len(self._weights), self._excess, decay=self.settings.excess_decay
        )
        self._weights = update_class_weights(
            self._weights, self._excess, eta=self.settings.eta, smoothing=self.settings.smoothing
        )
        self.step += 1
        self._mean = self._mean + (self._weights - self._mean) / (self.step + 1)
        self._clipped += (proxy < reference).sum()
        self._scored += len(whole)
        if self.step % self._stride == 0:
            self._trajectory.append((self.step, self._weights))

    def describe(self) -> str:
        return f"dro {self.settings}"

    def state(self) -> dict[str, torch.Tensor]:
        return {
            "weights": self._weights,
            "mean": self._mean,
            "excess": self._excess,
            "clipped": self._clipped,
            "counts": torch.tensor([self.step, self._scored]),
            "trajectory.steps": torch.tensor([step for step, _ in self._trajectory]),
            "trajectory.weights": torch.stack([weights for _, weights in self._trajectory]),
        }

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        own = {name: value.to(self._weights.device) for name, value in state.items()}
        self._weights, self._mean = own["weights"], own["mean"]
        self._excess, self._clipped = own["excess"], own["clipped"]
        self.step, self._scored = own["counts"].tolist()
        steps = own["trajectory.steps"].tolist()
        self._trajectory = list(zip(steps, own["trajectory.weights"].unbind(), strict=True))

    def result(self) -> DroResult:
        """Mean weights and diagnostics of all steps so far; waits for the device."""
        points = list(self._trajectory)
        if points[-1][0] != self.step:
            points.append((self.step, self._weights))
        mean = self._mean.double().cpu().numpy()
        return DroResult(
            weights=mean / mean.sum(),
            trajectory=tuple((step, tuple(weights.tolist())) for step, weights in points),
            fraction_clipped=float(self._clipped) / max(1, self._scored),
            final_excess=tuple(self._excess.tolist()),
        )
