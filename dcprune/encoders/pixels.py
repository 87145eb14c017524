"""`pixels`: the image itself, the space that every network has to be better than."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from dcprune.artifacts import EncoderInfo
from dcprune.encoders.preprocessing import GREY, square
from dcprune.errors import OptionError
from dcprune.interfaces import Download, EncoderContext


class Pixels:
    """All pixels of a small version of the image, as RGB in [0, 1], channel by channel and row by row.

    Args:
        weights: there are none.
        image_size: edge in pixels; the embedding has 3 * image_size^2 dimensions.

    Raises:
        OptionError: weights, or an edge that is not positive.
    """

    compilable = True

    def __init__(self, *, weights: str | None = None, image_size: int = 32) -> None:
        if weights is not None:
            raise OptionError(f"The encoder pixels has no weights, but --weights {weights} was given.")
        if image_size < 1:
            raise OptionError(f"Setting image_size={image_size} of pixels is not a positive number of pixels.")
        self.image_size = self.shorter_side = image_size

    def downloads(self, cache_dir: Path) -> Sequence[Download]:
        """None."""
        return []

    def load(self, context: EncoderContext) -> EncoderInfo:
        """Nothing is loaded."""
        return EncoderInfo(
            name="pixels",
            dim=3 * self.image_size**2,
            weights="none",
            weights_sha256=None,
            layer="input",
            preprocessing={
                "resize": self.image_size,
                "crop": self.image_size,
                "interpolation": "bilinear, antialiased, shorter side",
                "grey": GREY,
            },
            settings={"image_size": self.image_size},
        )

    def preprocess(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 [B, C, H, W] with C in (1, 3) -> float32 [B, 3, image_size, image_size] in [0, 1]."""
        small = square(images, self.image_size, self.image_size)
        return small.float().div_(255).expand(-1, 3, -1, -1)

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels [B, 3, S, S] -> [B, 3 * S * S]."""
        return pixels.flatten(1)
