"""A whole dataset on the device as uint8, to train a surrogate on."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from dcprune.errors import OptionError, WeightsError
from dcprune.interfaces import DatasetSource, EncoderContext

_CHUNK = 64
_ARRAY_CHUNK = 2048
_DECODERS = 4


@dataclass(frozen=True)
class Resident:
    """A dataset on the device.

    Attributes:
        images: uint8 [N, C, S, S].
        labels: int64 [N].
        train_rows: rows to train on, on the CPU.
        held_out_rows: rows to measure accuracy on, on the CPU.
    """

    images: torch.Tensor
    labels: torch.Tensor
    train_rows: torch.Tensor
    held_out_rows: torch.Tensor


def resident(
    dataset: DatasetSource,
    size: int,
    resize: Callable[[torch.Tensor], torch.Tensor],
    held_out: float,
    context: EncoderContext,
) -> Resident:
    """Decode, resize and move a whole dataset to the device.

    Args:
        dataset: labelled images.
        size: edge S.
        resize: uint8 [B, C, H, W] -> uint8 [B, C, S, S], of every image by itself.
        held_out: share of every class that is not trained on.
        context: device, seed and progress.

    Raises:
        WeightsError: no labels, or fewer than two classes to tell apart.
        OptionError: the images do not fit into memory.
    """
    labels = dataset.labels
    if labels is None or len(np.unique(labels)) < 2:
        lack = "no labels" if labels is None else "images of one class only"
        raise WeightsError(
            f"A surrogate is a classifier, and {dataset.uri!r} has {lack}. Use --weights imagenet, --weights PATH, or "
            "an encoder that is not trained on the dataset."
        )
    shape = (len(dataset), dataset.image(0).shape[2], size, size)
    _check_memory(shape, context.device)
    images = torch.empty(shape, dtype=torch.uint8, device=context.device)
    with context.progress.task("read images", shape[0], "images") as task:
        for start, part in _parts(dataset, resize, context.device):
            images[start : start + len(part)] = part
            task.advance(len(part))
    train_rows, held_out_rows = stratified_split(labels, held_out, np.random.default_rng(context.seed))
    return Resident(
        images=images,
        labels=torch.from_numpy(labels).to(context.device),
        train_rows=torch.from_numpy(train_rows),
        held_out_rows=torch.from_numpy(held_out_rows),
    )


def _parts(
    dataset: DatasetSource, resize: Callable[[torch.Tensor], torch.Tensor], device: torch.device
) -> Iterator[tuple[int, torch.Tensor]]:
    """Resized images, uint8 [b, C, S, S], and the row of the first: whole slices where they lie in memory."""
    array, count = dataset.array, len(dataset)
    if array is not None:
        for start in range(0, count, _ARRAY_CHUNK):
            # A copy, because what lies in memory may be read-only.
            part = torch.from_numpy(np.array(array[start : start + _ARRAY_CHUNK])).to(device)
            yield start, resize(part.permute(0, 3, 1, 2))
        return

    def decoded(start: int) -> torch.Tensor:
        rows = range(start, min(start + _CHUNK, count))
        images = (torch.from_numpy(dataset.image(row).copy()).permute(2, 0, 1)[None] for row in rows)
        return torch.cat([resize(image) for image in images])

    with ThreadPoolExecutor(1 if dataset.streaming else _DECODERS) as pool:
        starts = range(0, count, _CHUNK)
        yield from zip(starts, pool.map(decoded, starts), strict=True)


def _check_memory(shape: tuple[int, ...], device: torch.device) -> None:
    need, free = int(np.prod(shape)), _memory(device)
    if free is not None and need > 0.8 * free:
        raise OptionError(
            f"Training on {shape[0]:,} images of {shape[2]} px needs {need / 1e9:.1f} GB on {device}, which has "
            f"{free / 1e9:.1f} GB. Use --set image_size=64, or --weights imagenet."
        )


def _memory(device: torch.device) -> int | None:
    """Bytes that are free on a GPU, or that the machine has; None where the system does not tell."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else None


def stratified_split(
    labels: NDArray[np.int64], held_out: float, generator: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows to train on and rows to hold out, both ascending; every class gives the same share and keeps a sample."""
    held: list[NDArray[np.int64]] = []
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        count = min(round(held_out * len(rows)), len(rows) - 1)
        held.append(generator.choice(rows, count, replace=False))
    held_out_rows = np.sort(np.concatenate(held)).astype(np.int64)
    return np.setdiff1d(np.arange(len(labels), dtype=np.int64), held_out_rows), held_out_rows


def cropped(images: torch.Tensor, padding: int, shifts: torch.Tensor, flips: torch.Tensor) -> torch.Tensor:
    """Random crops of black-padded images.

    Args:
        images: uint8 [B, C, S, S].
        padding: pixels added on every side.
        shifts: int64 [B, 2], row and column where a crop starts, in 0..2 * padding.
        flips: bool [B], which crops are mirrored left-right.

    Returns:
        uint8 [B, C, S, S] in channels_last memory.
    """
    span = torch.arange(images.shape[3], device=images.device)
    padded = F.pad(images, [padding] * 4)
    rows = shifts[:, :1] + span
    columns = shifts[:, 1:] + torch.where(flips[:, None], span.flip(0), span)
    batch = torch.arange(len(images), device=images.device)[:, None, None]
    return padded[batch, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
