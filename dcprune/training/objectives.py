"""From the loss of every sample to the one number that is minimised."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from dcprune.reweighting import (
    caveats,
    check_ascent,
    check_decay,
    class_excess,
    clipped_excess,
    importance,
    normalised_entropy,
    reweighted_mean,
    update_class_weights,
)
from dcprune.training.draws import Draw

TRAJECTORY_POINTS = 200

Losses = Callable[[torch.nn.Module, Draw], torch.Tensor]


class Objective(Protocol):
    """What a phase of training minimises."""

    def reduce(self, per_sample_loss: torch.Tensor, model: torch.nn.Module, draw: Draw) -> torch.Tensor:
        """The scalar to minimise.

        Args:
            per_sample_loss: [B], with a graph; of `model` in training mode on `draw`.
            model: the model in training, for objectives that score it once more.
            draw: what the losses were computed on.
        """

    def describe(self) -> str:
        """A line in which two objectives that would train differently differ."""


class WeightedLoss:
    """Mean of weight times loss; the weights average 1 over the phase's samples, so the learning rate carries over.

    Args:
        class_weights: [K], at any scale; K = 1 for class-less data.
        labels: int64 [n] of the phase's samples.
        device: where the losses are.
    """

    def __init__(self, class_weights: NDArray[np.float64], labels: NDArray[np.int64], device: torch.device) -> None:
        self.class_weights = class_weights * (len(labels) / class_weights[labels].sum())
        self._weights = torch.tensor(self.class_weights, dtype=torch.float32, device=device)

    def reduce(self, per_sample_loss: torch.Tensor, model: torch.nn.Module, draw: Draw) -> torch.Tensor:
        return (per_sample_loss * self._weights[draw.batch.labels]).mean()

    def describe(self) -> str:
        return "weighted-loss " + " ".join(float(weight).hex() for weight in self.class_weights)


@dataclass(frozen=True)
class DroSettings:
    """How the class weights move.

    Attributes:
        eta, smoothing: see `dcprune.reweighting.update_class_weights`.
        excess_decay: the `decay` of `dcprune.reweighting.class_excess`.

    Raises:
        OptionError: a value out of range.
    """

    eta: float = 1.0
    smoothing: float = 1e-3
    excess_decay: float = 0.0

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
        return caveats(self.weights, self.fraction_clipped)


class DroObjective:
    """The robust loss over classes: adversarial weights go up where the proxy lags behind the reference.

    Each call scores proxy and reference on one draw with dropout off, moves the class weights, and then weighs the
    training losses by w_y / p_y. Nothing waits for the device before `result`.

    Args:
        reference: the frozen reference model, in inference mode.
        losses: `(model, draw) -> float32 [B]`, in the precision of the training pass.
        proportions: share of every class in the coreset, float64 [K].
        settings: step size and smoothing.
        total_steps: number of calls to come, for thinning the trajectory.
        held_out: the draw of each scoring pass, by step; None scores the training draw itself.
        device: where the losses are.
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
    ) -> None:
        # Running means over 10^5 steps lose digits in float32; Apple's GPUs have nothing wider.
        dtype = torch.float32 if device.type == "mps" else torch.float64
        classes = len(proportions)
        self.reference = reference
        self.losses = losses
        self.settings = settings
        self.held_out = held_out
        self.step = 0
        self._stride = -(-total_steps // (TRAJECTORY_POINTS - 2))
        self._proportions = torch.tensor(proportions, dtype=dtype, device=device)
        self._weights = torch.full((classes,), 1 / classes, dtype=dtype, device=device)
        self._mean = self._weights.clone()
        self._excess = torch.zeros_like(self._weights)
        self._clipped = torch.zeros((), dtype=dtype, device=device)
        self._scored = 0
        self._trajectory = [(0, self._weights)]

    def reduce(self, per_sample_loss: torch.Tensor, model: torch.nn.Module, draw: Draw) -> torch.Tensor:
        with torch.no_grad():
            self._ascend(model, draw if self.held_out is None else self.held_out(self.step))
            weights = importance(self._weights, self._proportions, draw.batch.labels)
        return reweighted_mean(per_sample_loss, weights.to(per_sample_loss.dtype))

    def _ascend(self, model: torch.nn.Module, draw: Draw) -> None:
        model.eval()
        proxy_loss = self.losses(model, draw)
        model.train()
        reference_loss = self.losses(self.reference, draw)
        excess = clipped_excess(proxy_loss, reference_loss).to(self._weights.dtype)
        self._excess = class_excess(
            excess, draw.batch.labels, len(self._weights), self._excess, decay=self.settings.excess_decay
        )
        self._weights = update_class_weights(
            self._weights, self._excess, eta=self.settings.eta, smoothing=self.settings.smoothing
        )
        self.step += 1
        self._mean = self._mean + (self._weights - self._mean) / (self.step + 1)
        self._clipped += (proxy_loss < reference_loss).sum()
        self._scored += len(proxy_loss)
        if self.step % self._stride == 0:
            self._trajectory.append((self.step, self._weights))

    def describe(self) -> str:
        return f"dro {self.settings}"

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
