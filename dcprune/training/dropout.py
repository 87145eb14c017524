"""Dropout whose masks belong to the samples, so that they do not depend on how a batch is divided."""

from __future__ import annotations

import itertools

import torch
from torch import nn

# 32-bit integers wrap around; the constants are those of the published "lowbias32" integer hash.
_FIRST, _SECOND = 0x7FEB352D, 0x846CA68B - 2**32
_LAYER = 0x9E3779B9 - 2**32
_LEVELS = 2**24


class SampleSeeds:
    """The seeds of the samples that a model is about to see, shared by all its dropout layers.

    Attributes:
        values: int32 [B].
    """

    def __init__(self) -> None:
        self.values = torch.zeros(1, dtype=torch.int32)


class SampleDropout(nn.Module):
    """Dropout in which element i of a sample is kept or not by a hash of (the sample's seed, the layer, i).

    Args:
        p: probability of dropping an element, in (0, 1).
        layer: number that tells the layers of a model apart.
        seeds: where the samples' seeds are found.
    """

    def __init__(self, p: float, layer: int, seeds: SampleSeeds) -> None:
        super().__init__()
        self.p = p
        self.layer = layer
        self.seeds = seeds

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`x` [B, ...] with dropped elements 0 and the others divided by 1 - p; in evaluation mode `x` itself."""
        if not self.training:
            return x
        # The layout decides how fast this is, never which elements go: it may differ between parts of a batch.
        channels_last = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
        index = torch.arange(x[0].numel(), dtype=torch.int32, device=x.device).view(1, *x.shape[1:])
        if channels_last:
            x, index = x.permute(0, 2, 3, 1), index.permute(0, 2, 3, 1).contiguous()
        dropped = torch.where(_keep(index, self.seeds.values, self.layer, self.p), x / (1 - self.p), 0.0)
        return dropped.permute(0, 3, 1, 2) if channels_last else dropped

    def extra_repr(self) -> str:
        return f"p={self.p}"


def _keep(index: torch.Tensor, seeds: torch.Tensor, layer: int, p: float) -> torch.Tensor:
    """Which elements stay: bool [B, ...], False with probability `p`.

    Args:
        index: int32 [1, ...], number of every element of a sample.
        seeds: int32 [B].
        layer: see `SampleDropout`.
        p: the same.
    """
    # The seed goes through the hash once by itself: samples with neighbouring seeds must not share shifted masks.
    own = _mixed(seeds ^ ((layer + 1) * _LAYER & 0x7FFFFFFF)).view(-1, *(1 for _ in index.shape[1:]))
    return _mixed(_mixed(index) ^ own).bitwise_and(_LEVELS - 1) >= round(p * _LEVELS)


def _mixed(x: torch.Tensor) -> torch.Tensor:
    """A bijection of int32 in which every bit of the result depends on every bit of `x`."""
    x = (x ^ (x >> 16 & 0xFFFF)) * _FIRST
    x = (x ^ (x >> 15 & 0x1FFFF)) * _SECOND
    return x ^ (x >> 16 & 0xFFFF)


def keep_dropping(model: nn.Module) -> None:
    """Let the `SampleDropout` of a model in evaluation mode drop all the same."""
    for module in model.modules():
        if isinstance(module, SampleDropout):
            module.train()


def per_sample_dropout(model: nn.Module) -> SampleSeeds:
    """Put `SampleDropout` in the place of every `nn.Dropout`; weights keep their names.

    A dropout that drops nothing is taken out: what it returns lies in memory in another way than what it gets, and so
    the model would take other kernels in training, with other rounding.

    Returns:
        The seeds that all of them read.
    """
    seeds = SampleSeeds()
    places = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.Dropout) and child.p < 1
    ]
    layers = itertools.count()
    for parent, name, child in places:
        dropping = SampleDropout(child.p, next(layers), seeds) if child.p else nn.Identity()
        setattr(parent, name, dropping.train(child.training))
    return seeds
