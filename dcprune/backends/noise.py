"""Noise of images that does not depend on the batch they are drawn in, or on the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch


class ImageNoise:
    """A stream of standard normal noise for every image, each from a CPU generator of its own.

    The numbers are those of `torch.randn(shape, generator=torch.Generator().manual_seed(seed))`, drawn again and again,
    which is how diffusers' pipelines use a list of generators. The copy to a GPU is not waited for.

    Args:
        seeds: one for every image, B of them.
        shape: of one image.
        device: where the noise is needed.
    """

    def __init__(self, seeds: Sequence[int], shape: Sequence[int], device: torch.device) -> None:
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.shape = tuple(shape)
        self.device = device

    def __call__(self) -> torch.Tensor:
        """The next draw, float32 [B, *shape]."""
        noise = torch.empty(len(self.generators), *self.shape, pin_memory=self.device.type == "cuda")
        for image, generator in zip(noise, self.generators, strict=True):
            torch.randn(self.shape, generator=generator, out=image)
        return noise.to(self.device, non_blocking=True)
