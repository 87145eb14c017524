"""What happens to an image before a network sees it, on tensors of whole batches on the device.

torchvision, timm and open_clip resize with PIL, whose result is uint8. So is ours, on every device: the two differ by
at most 2 of 255 levels, and in less than 10 % of the pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

Fit = Literal["shorter", "longer", "squash"]
Interpolation = Literal["bilinear", "bicubic"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
GREY = "repeated to 3 channels"
_WIDEST = 4
_SIDES = {"shorter": "shorter side", "longer": "longer side, the rest filled", "squash": "both sides"}


@dataclass(frozen=True)
class Preprocessing:
    """Resize, crop the centre, normalise: uint8 [B, C, H, W] -> float32 [B, 3, crop, crop].

    Attributes:
        crop: edge of the result.
        resize: what an edge is resized to first, by antialiased interpolation.
        device: where images come from and pixels go.
        mean, std: of every channel, for pixels in [0, 1].
        interpolation: of the resizing.
        fit: which edge: the shorter one (the rest is cropped), the longer one (the rest is filled), or both (the shape
            is lost).
        fill: colour of the borders, 0 to 255.
    """

    crop: int
    resize: int
    device: torch.device
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: Interpolation = "bilinear"
    fit: Fit = "shorter"
    fill: tuple[int, int, int] = (0, 0, 0)

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            values = torch.tensor(getattr(self, name), device=self.device).view(3, 1, 1)
            object.__setattr__(self, f"_{name}", values)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 [B, C, H, W] with C in (1, 3) -> float32 [B, 3, crop, crop]."""
        return self.normalise(self.resized(images))

    def resized(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 [B, C, H, W] -> uint8 [B, C, crop, crop]; C = 3 where `fit` fills."""
        if self.fit == "longer":
            return self._bordered(images)
        if self.fit == "shorter":
            return square(images, self.resize, self.crop, self.interpolation)
        return _centre(_resize(images, [self.resize, self.resize], self.interpolation), self.crop)

    def normalise(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 [B, C, S, S] -> float32 [B, 3, S, S]; one channel is broadcast to three."""
        pixels: torch.Tensor = images.float().div_(255).sub(self._mean).div_(self._std)  # type: ignore[attr-defined]
        return pixels

    def describe(self) -> dict[str, Any]:
        """For `EncoderInfo.preprocessing`."""
        return {
            "resize": self.resize,
            "crop": self.crop,
            "interpolation": f"{self.interpolation}, antialiased, {_SIDES[self.fit]}",
            "mean": list(self.mean),
            "std": list(self.std),
            "grey": GREY,
        }

    @property
    def shorter_side(self) -> int | None:
        """See `dcprune.interfaces.Encoder`; None where the shorter side is not brought to one length."""
        return None if self.fit == "longer" else self.resize

    def _bordered(self, images: torch.Tensor) -> torch.Tensor:
        longer = max(images.shape[2:])
        shape = [max(1, round(side * self.resize / longer)) for side in images.shape[2:]]
        resized = _resize(images, shape, self.interpolation).expand(-1, 3, -1, -1)
        down, right = (max(0, self.crop - side) for side in shape)
        borders = [right // 2, down // 2, right - right // 2, down - down // 2]
        return _centre(transforms.pad(resized, borders, fill=list(self.fill)), self.crop)


def square(images: torch.Tensor, resize: int, crop: int, interpolation: Interpolation = "bilinear") -> torch.Tensor:
    """Shorter side to `resize` by antialiased interpolation, then the central `crop` x `crop`.

    uint8 [B, C, H, W] -> uint8 [B, C, crop, crop].
    """
    shorter = min(images.shape[2:])
    if max(images.shape[2:]) > _WIDEST * shorter:
        # Resized whole, a banner of 1 x 60,000 pixels would fill the memory with what is cropped away.
        images = transforms.center_crop(images, [min(side, _WIDEST * shorter) for side in images.shape[2:]])
    return _centre(_resize(images, [resize], interpolation), crop)


def _resize(images: torch.Tensor, size: list[int], interpolation: Interpolation) -> torch.Tensor:
    """To `size` [height, width], or the shorter side to `size` [edge]."""
    if len(size) == 1:
        shorter = min(images.shape[2:])
        size = [side * size[0] // shorter for side in images.shape[2:]]
    # PIL rounds to uint8 between the two directions. torch does so on a CPU; elsewhere it keeps what lies beyond
    # 0 and 255, and bicubic edges come out up to 19 levels apart.
    steps = [size] if images.device.type == "cpu" else [[images.shape[2], size[1]], size]
    for step in steps:
        images = transforms.resize(images, step, InterpolationMode(interpolation), antialias=True)
    return images


def _centre(images: torch.Tensor, crop: int) -> torch.Tensor:
    cropped: torch.Tensor = transforms.center_crop(images, [crop, crop])
    return cropped
