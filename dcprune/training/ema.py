"""The moving average of the weights, which is what gets sampled and saved."""

from __future__ import annotations

import copy

import torch


def decay_at(step: int, decay: float) -> float:
    """min(decay, 1 - step^(-2/3)): the ramp lets early averages forget the random start; `step` counts from 1."""
    return float(min(decay, 1 - step ** (-2 / 3)))


class Ema:
    """A second model whose parameters follow those of the first; frozen ones are shared.

    Args:
        model: the model in training.
        decay: final decay, in [0, 1).
        ramp: begin with lower decays, see `decay_at`.
    """

    def __init__(self, model: torch.nn.Module, decay: float, *, ramp: bool = True) -> None:
        self.decay = decay
        self.ramp = ramp
        frozen = {id(each): each for each in model.parameters() if not each.requires_grad}
        self.model = copy.deepcopy(model, dict(frozen)).eval()
        # A walk through the modules at every step would take longer than the arithmetic of a small model.
        pairs = zip(self.model.parameters(), model.parameters(), strict=True)
        trained = [(average, current) for average, current in pairs if current.requires_grad]
        self._averages: list[torch.Tensor] = [average for average, _ in trained]
        self._current: list[torch.Tensor] = [current for _, current in trained]
        self.model.requires_grad_(requires_grad=False)
        self._buffers = list(zip(self.model.buffers(), model.buffers(), strict=True))

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move towards the model after its update number `step`, counted from 1; buffers are copied."""
        decay = decay_at(step, self.decay) if self.ramp else self.decay
        torch._foreach_lerp_(self._averages, self._current, 1 - decay)
        for average, buffer in self._buffers:
            average.copy_(buffer)
