"""What a network costs: floating-point operations of its convolutions and matrix products, counted by PyTorch."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dcprune.devices import flop_counter
from dcprune.interfaces import Backend
from dcprune.training.draws import Draw


@dataclass(frozen=True)
class Flops:
    """FLOPs for one sample: of a training pass, forward and backward, and of a forward pass alone."""

    training: int
    forward: int


def count_flops(backend: Backend, model: torch.nn.Module, draw: Draw) -> Flops:
    """FLOPs of the loss on a small draw; gradients are left as they were, and `model` must not be compiled."""
    found = []
    for backward in (True, False):
        with flop_counter() as counter, torch.set_grad_enabled(backward):
            losses = backend.per_sample_loss(model, draw.batch, draw.timesteps, draw.noise, draw.inside())
            if backward:
                parameters = [each for each in model.parameters() if each.requires_grad]
                torch.autograd.grad(losses.sum(), parameters, allow_unused=True)
        found.append(round(counter.get_total_flops() / len(draw)))
    return Flops(*found)
