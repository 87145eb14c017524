"""The moving average of the weights, which is what gets sampled and saved."""

from __future__ import annotations

import copy

import torch


def decay_at(step: int, decay: float) -> float:
    """min(decay, 1 - step^(-2/3)): the ramp lets early averages forget the random start; `step` counts from 1."""
    return float(min(decay, 1 - step ** (-2 / 3)))


class Ema:
    """A second model whose parameters follow those of the first.

    Args:
        model: the model in training.
        decay: final decay, in [0, 1).
    """

    def __init__(self, model: torch.nn.Module, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model).eval().requires_grad_(requires_grad=False)

    @torch.no_grad()
    def update(self, model: torch.nn.Module, step: int) -> None:
        """Move towards `model` after its update number `step`, counted from 1; buffers are copied."""
        averages: list[torch.Tensor] = list(self.model.parameters())
        current: list[torch.Tensor] = list(model.parameters())
        torch._foreach_lerp_(averages, current, 1 - decay_at(step, self.decay))
        for average, buffer in zip(self.model.buffers(), model.buffers(), strict=True):
            average.copy_(buffer)
