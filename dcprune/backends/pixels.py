"""Images for pixel-space backends: one resolution, uint8, resident on the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
import torch.nn.functional as F

from dcprune.devices import available_cores
from dcprune.errors import DatasetError
from dcprune.interfaces import DatasetSource, Progress

BLACK = 0

_BLOCK = 1024


def pad_to_multiple(images: torch.Tensor, multiple: int) -> torch.Tensor:
    """uint8 [B, C, H, W] with black borders, so that both sides are multiples of `multiple`."""
    height, width = images.shape[-2:]
    down, right = -height % multiple, -width % multiple
    return F.pad(images, (right // 2, right - right // 2, down // 2, down - down // 2), value=BLACK)


def fit_square(images: torch.Tensor, size: int) -> torch.Tensor:
    """uint8 [B, C, H, W] -> uint8 [B, C, size, size].

    The shorter side is resized (bilinear, antialiased), then the centre is cropped. Images that have the size already
    come back untouched.
    """
    height, width = images.shape[-2:]
    if (height, width) == (size, size):
        return images
    scale = size / min(height, width)
    shape = (max(size, round(height * scale)), max(size, round(width * scale)))
    resized = F.interpolate(images.float(), shape, mode="bilinear", antialias=True, align_corners=False)
    top, left = (shape[0] - size) // 2, (shape[1] - size) // 2
    return to_uint8(resized[..., top : top + size, left : left + size] / 127.5 - 1)


def to_uint8(pixels: torch.Tensor) -> torch.Tensor:
    """Pixels in [-1, 1], clamped and rounded to uint8."""
    return ((pixels + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def standard_deviation(pixels: torch.Tensor) -> float:
    """Standard deviation of uint8 [N, C, H, W] on the scale of [-1, 1], over at most 10,000 images spread over all."""
    spread = pixels[:: max(1, len(pixels) // 10_000)]
    counts = torch.bincount(spread.flatten(), minlength=256).double().cpu()
    values = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    mean = (counts * values).sum() / counts.sum()
    return float(((counts * (values - mean) ** 2).sum() / counts.sum()).sqrt())


class ResidentPixels:
    """All images as one uint8 tensor; a `dcprune.interfaces.TrainingData`.

    Args:
        pixels: uint8 [N, C, H, W] on the device.
        labels: int64 [N] on the device.
    """

    def __init__(self, pixels: torch.Tensor, labels: torch.Tensor) -> None:
        self.pixels = pixels
        self.labels = labels
        self.sample_shape = tuple(pixels.shape[1:])

    def __len__(self) -> int:
        return len(self.pixels)

    def x0(self, rows: torch.Tensor, flip: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """float32 [B, C, H, W] in [-1, 1]; nothing is drawn."""
        pixels = self.pixels[rows]
        return torch.where(flip[:, None, None, None], pixels.flip(-1), pixels).float() / 127.5 - 1

    def images(self, rows: torch.Tensor) -> torch.Tensor:
        """uint8 [B, C, H, W]."""
        return self.pixels[rows]


def resident(
    dataset: DatasetSource,
    to_resolution: Callable[[torch.Tensor], torch.Tensor],
    device: torch.device,
    progress: Progress,
) -> ResidentPixels:
    """Decode a dataset into memory, by several threads where its samples may be read in any order.

    Args:
        dataset: N images of one number of channels.
        to_resolution: uint8 [B, C, H, W] -> uint8 [B, C, H', W'], image by image.
        device: where the images go.
        progress: counts images.

    Raises:
        DatasetError: an image cannot be decoded, or does not end with the shape of the first.
    """
    pixels: torch.Tensor | None = None
    with progress.task("prepare images", len(dataset), "image") as task:
        for row, images in _blocks(dataset, to_resolution):
            if pixels is None:
                pixels = torch.empty((len(dataset), *images.shape[1:]), dtype=torch.uint8)
            if images.shape[1:] != pixels.shape[1:]:
                name = dataset.ids[row] if dataset.ids is not None else str(row)
                raise DatasetError(
                    f"Image {name} is {_size(images[0])}, the first one is {_size(pixels[0])}. "
                    "Choose one size for all of them with the setting resolution."
                )
            pixels[row : row + len(images)] = images
            task.advance(len(images))
    if pixels is None:
        raise DatasetError(f"The dataset {dataset.uri} has no images.")
    labels = np.zeros(len(dataset), dtype=np.int64) if dataset.labels is None else dataset.labels
    return ResidentPixels(pixels.to(device), torch.from_numpy(np.array(labels, dtype=np.int64)).to(device))


def _blocks(
    dataset: DatasetSource, to_resolution: Callable[[torch.Tensor], torch.Tensor]
) -> Iterator[tuple[int, torch.Tensor]]:
    """Consecutive images uint8 [b, C, H, W] with the row of the first: whole blocks where they lie in memory."""
    array = dataset.array
    if array is not None:
        for start in range(0, len(dataset), _BLOCK):
            # A copy, because the array may be a mapped file, and tensors share no memory that is read-only.
            yield start, to_resolution(torch.tensor(array[start : start + _BLOCK]).permute(0, 3, 1, 2))
        return

    def image(row: int) -> torch.Tensor:
        return to_resolution(torch.tensor(dataset.image(row)).permute(2, 0, 1)[None])

    workers = 1 if dataset.streaming else min(32, available_cores())
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(dataset), _BLOCK):
            rows = range(start, min(start + _BLOCK, len(dataset)))
            yield from zip(rows, pool.map(image, rows), strict=True)


def _size(image: torch.Tensor) -> str:
    channels, height, width = image.shape
    return f"{width}x{height} with {channels} channel{'s' if channels > 1 else ''}"
