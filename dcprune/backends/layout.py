"""How networks of convolutions lie in memory."""

from __future__ import annotations

from typing import Any, Self

import torch
from diffusers.models.resnet import ResnetBlock2D
from torch import nn

from dcprune.devices import layout


class DeviceLayout(nn.Module):
    """To inherit from before a network of diffusers: it lies in memory as its device likes it, in every mode.

    Diffusers' residual blocks turn what they get into contiguous memory while they train, and leave it as it is
    otherwise. That undoes channels-last, and lets the same network take other kernels, which round otherwise, when it
    is evaluated.
    """

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """See `torch.nn.Module.to`."""
        moved = super().to(*args, **kwargs)
        nn.Module.to(moved, memory_format=layout(_device(moved)))
        return moved._settled()

    def train(self, mode: bool = True) -> Self:
        """See `torch.nn.Module.train`."""
        return super().train(mode)._settled()

    def _settled(self) -> Self:
        contiguous = layout(_device(self)) == torch.contiguous_format
        for block in self.modules():
            if isinstance(block, ResnetBlock2D):
                block.training = contiguous  # decides nothing else; the dropout inside has its own
        return self


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
