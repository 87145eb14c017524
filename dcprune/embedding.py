"""Runs images through an encoder."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray

from dcprune.artifacts import EncoderInfo
from dcprune.devices import autocast
from dcprune.errors import OptionError
from dcprune.interfaces import Encoder, EncoderChoice, EncoderContext, Progress
from dcprune.plugins import registry
from dcprune.progress import SILENT

Images = list[NDArray[np.uint8]]

_BATCHES_AHEAD = 3


def load_encoder(choice: EncoderChoice, context: EncoderContext) -> tuple[Encoder, EncoderInfo]:
    """Construct a registered encoder and load its weights.

    Raises:
        UnknownName: no such encoder or setting.
        OptionError: a setting that does not fit.
        WeightsError: no weights, or weights that do not fit.
    """
    encoder: Encoder = registry().create("encoder", choice.name, choice.settings, weights=choice.weights)
    return encoder, encoder.load(context)


def encode_images(
    encoder: Encoder,
    load: Callable[[int], NDArray[np.uint8]],
    indices: NDArray[np.int64],
    *,
    device: torch.device,
    dtype: torch.dtype,
    batch_size: int = 256,
    num_workers: int = 2,
    progress: Progress | None = None,
    description: str = "embed",
) -> NDArray[np.float32]:
    """Embed images, decoding ahead of the network.

    Images of unlike sizes share a batch: they are preprocessed size by size. The row of an image does not depend on the
    batch size, the workers or its neighbours (to rounding: kernels of other shapes add in another order).

    Args:
        encoder: loaded, on `device`.
        load: index -> uint8 [H, W, C], C = 1 or 3, called from several threads.
        indices: int64 [N], what to load, in the order of the result.
        device: where the encoder runs.
        dtype: autocast dtype of the forward pass.
        batch_size: images per forward pass.
        num_workers: threads that load; 0 loads between the forward passes.
        progress: for long work.
        description: what the progress calls it.

    Returns:
        float32 [N, D].

    Raises:
        OptionError: a batch size or number of workers out of range, or no images.
        DatasetError: an image cannot be loaded.
    """
    if batch_size < 1 or num_workers < 0 or len(indices) == 0:
        raise OptionError(f"Cannot embed {len(indices)} images in batches of {batch_size} with {num_workers} workers.")
    parts: list[NDArray[np.float32]] = []
    running: torch.Tensor | None = None
    with (progress or SILENT).task(description, len(indices), "images") as task, torch.inference_mode():
        for images in _batches(load, indices, batch_size, num_workers):
            launched = _encode(encoder, images, device, dtype)
            if running is not None:
                # Fetched one batch late, so that the device works while the next batch is put together.
                parts.append(running.float().cpu().numpy())
            running = launched
            task.advance(len(images))
    if running is not None:
        parts.append(running.float().cpu().numpy())
    return np.concatenate(parts)


def _encode(encoder: Encoder, images: Images, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Embeddings [B, D] on the device."""
    rows_by_size: dict[tuple[int, ...], list[int]] = {}
    for row, image in enumerate(images):
        rows_by_size.setdefault(image.shape, []).append(row)
    order: list[int] = []
    pixels: list[torch.Tensor] = []
    for rows in rows_by_size.values():
        order += rows
        pixels.append(encoder.preprocess(_on_device([images[row] for row in rows], device)))
    batch = torch.cat(pixels).contiguous(memory_format=torch.channels_last)
    with autocast(device, dtype):
        encoded = encoder.encode(batch)
    if len(pixels) == 1:
        return encoded
    return encoded[torch.tensor(order, device=device).argsort()]


def _on_device(images: Images, device: torch.device) -> torch.Tensor:
    """Images of one size as uint8 [B, C, H, W]."""
    stacked = torch.from_numpy(np.stack(images))
    if device.type == "cuda":
        stacked = stacked.pin_memory()
    return stacked.to(device, non_blocking=True).permute(0, 3, 1, 2)


def _batches(
    load: Callable[[int], NDArray[np.uint8]], indices: NDArray[np.int64], batch_size: int, num_workers: int
) -> Iterator[Images]:
    """Loaded batches in order; some are loaded ahead by threads, each of which takes a part of a batch."""

    def load_all(part: NDArray[np.int64]) -> Images:
        return [load(int(index)) for index in part]

    batches = (indices[start : start + batch_size] for start in range(0, len(indices), batch_size))
    if num_workers == 0:
        yield from map(load_all, batches)
        return
    pool = ThreadPoolExecutor(num_workers)
    waiting: deque[list[Future[Images]]] = deque()
    try:
        for batch in batches:
            waiting.append([pool.submit(load_all, part) for part in np.array_split(batch, num_workers)])
            if len(waiting) > _BATCHES_AHEAD:
                yield _gathered(waiting.popleft())
        while waiting:
            yield _gathered(waiting.popleft())
    finally:
        pool.shutdown(cancel_futures=True)


def _gathered(parts: list[Future[Images]]) -> Images:
    return [image for part in parts for image in part.result()]
