"""Images in, vectors out: decoding ahead of the network, in batches of one shape."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.dlpack import from_dlpack

from dcprune.devices import autocast, available_cores, flop_counter
from dcprune.embedding.loading import Images, Loader
from dcprune.errors import DatasetError, OptionError
from dcprune.interfaces import Encoder, Progress
from dcprune.progress import SILENT

OnError = Literal["fail", "skip"]
CompileMode = Literal["auto", "on", "off"]

_BATCHES_AHEAD = 3
# Operations that a GPU must have before it for the minute of compiling to be earned back. On a CPU it never is: with
# normalisations folded and channels last, ResNet-18 is 0.97 to 1.01 times as fast compiled (tests/benchmarks/embed.py).
_REPAID_GPU = 5e16
# Pixels in a forward pass on a CPU, eight images of 224 x 224: with more, the activations leave the caches. Against
# passes of 256, ResNet-18 is 1.1 times as fast, EfficientNet-Lite0 2.3 times (tests/benchmarks/embed_passes.py).
_CPU_PIXELS = 8 * 224 * 224


@dataclass(frozen=True)
class Encoded:
    """One batch.

    Attributes:
        vectors: float32 [n, D].
        indices: int64 [n], the samples that they belong to, in the order that was asked for.
        failures: samples that could not be read.
    """

    vectors: NDArray[np.float32]
    indices: NDArray[np.int64]
    failures: tuple[tuple[int, DatasetError], ...]


@dataclass(frozen=True)
class _Chunk:
    """Part of a batch: groups of images of one size, as `(slots in the batch, images or pixels)`."""

    groups: list[tuple[list[int], torch.Tensor]]
    failures: list[tuple[int, DatasetError]]


@dataclass
class _Batch:
    indices: NDArray[np.int64]
    chunks: list[_Chunk]


class LoadedEncoder(Protocol):
    """What the pipeline asks of a `dcprune.interfaces.Encoder` whose weights are on the device."""

    compilable: bool

    def preprocess(self, images: torch.Tensor) -> torch.Tensor: ...

    def encode(self, pixels: torch.Tensor) -> torch.Tensor: ...


def pass_size(device: torch.device, batch_size: int, image_size: int) -> int:
    """Images of `image_size` x `image_size` pixels in a forward pass: on a CPU, as many as its caches hold."""
    return batch_size if device.type != "cpu" else max(1, min(batch_size, _CPU_PIXELS // image_size**2))


@dataclass
class Pipeline:
    """An encoder that is ready to run.

    Every forward pass has as many images, the last one filled up with copies: the kernels see one shape, so that the
    row of an image depends on nothing but the image (to rounding, for other batch sizes).

    Args:
        encoder: loaded, on `device`.
        device: where it runs.
        dtype: autocast dtype of the forward pass.
        batch_size: images that are loaded together, and go through the network together where a CPU's caches do not
            ask for smaller passes.
        num_workers: threads that decode, and on a CPU also resize; 0 does so between the forward passes.

    Raises:
        OptionError: a batch size or number of workers out of range.
    """

    encoder: LoadedEncoder
    device: torch.device
    dtype: torch.dtype
    batch_size: int = 256
    num_workers: int = 2
    compiled: bool = field(default=False, init=False)
    _seen: torch.Tensor | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.num_workers < 0:
            raise OptionError(
                f"Cannot embed in batches of {self.batch_size} with {self.num_workers} workers: a batch has at least "
                "1 image, and there are 0 workers or more."
            )
        self._encode = self.encoder.encode

    # --- compiling ----------------------------------------------------------------------------------------------------

    def compile(self, mode: CompileMode, loader: Loader, indices: NDArray[np.int64], progress: Progress) -> None:
        """Compile the forward pass when the run is long enough to earn it back (`auto`), or in any case (`on`).

        The choice depends on the encoder, the number of images and the kind of device, never on a clock, so that a run
        that is resumed makes the same choice.

        Args:
            mode: `auto`, `on` or `off`.
            loader: how the dataset is read.
            indices: int64 [N], all that will be embedded.
            progress: for notes.

        Raises:
            OptionError: `on`, and the encoder cannot be compiled.
        """
        if mode == "off" or (mode == "auto" and not (self.encoder.compilable and self.device.type == "cuda")):
            return
        if not self.encoder.compilable:
            raise OptionError("This encoder cannot be compiled: leave --compile out.")
        pixels = self._example(loader, indices)
        if pixels is None or (mode == "auto" and not self._repays(pixels, len(indices))):
            return
        progress.note("Compiling the encoder; this takes about a minute.")
        compiled = torch.compile(self.encoder.encode, dynamic=False, options={"freezing": self.device.type == "cpu"})
        shape = pass_size(self.device, self.batch_size, pixels.shape[-1]), *pixels.shape[1:]
        try:
            with torch.inference_mode(), autocast(self.device, self.dtype):
                compiled(pixels.expand(shape).contiguous(memory_format=torch.channels_last))
        except Exception as error:  # the compiler raises anything
            if mode == "on":
                reason = str(error).strip().split("\n", 1)[0]
                raise OptionError(f"The encoder cannot be compiled here: {reason}") from error
            progress.warn(f"The encoder runs without being compiled: {str(error).strip().splitlines()[0]}")
            return
        self._encode, self.compiled = compiled, True

    def _example(self, loader: Loader, indices: NDArray[np.int64]) -> torch.Tensor | None:
        """Pixels [1, 3, S, S] of an image: one that was embedded, or else the first of some that can be read."""
        for row in range(min(self.batch_size, len(indices)) if self._seen is None else 0):
            for _, pixels in self._prepared(self._chunk(loader, indices[row : row + 1], [0])):
                self._seen = pixels
                return pixels
        return self._seen

    def flops(self, loader: Loader, indices: NDArray[np.int64]) -> int:
        """Floating-point operations of the forward pass over some images."""
        pixels = self._example(loader, indices)
        return 0 if pixels is None else self._flops(pixels) * len(indices)

    @torch.inference_mode()
    def _flops(self, pixels: torch.Tensor) -> int:
        with flop_counter() as counter, autocast(self.device, self.dtype):
            self.encoder.encode(pixels)
        return int(counter.get_total_flops())

    def _repays(self, pixels: torch.Tensor, count: int) -> bool:
        return self._flops(pixels) * count >= _REPAID_GPU

    # --- running ------------------------------------------------------------------------------------------------------

    def run(
        self, loader: Loader, indices: NDArray[np.int64], *, on_error: OnError = "fail"
    ) -> Generator[Encoded, None, None]:
        """Embed samples batch by batch, in the order of `indices`.

        Args:
            loader: how the samples are read.
            indices: int64 [N].
            on_error: `fail` stops at the first sample that cannot be read, `skip` leaves it out.

        Raises:
            DatasetError: an image cannot be read, and `on_error` is `fail`.
        """
        running: tuple[torch.Tensor | None, _Batch] | None = None
        # Closed, so that the threads end with this, also when it is left early.
        with closing(self._batches(loader, indices)) as batches:
            for batch in batches:
                failures = [failure for chunk in batch.chunks for failure in chunk.failures]
                if failures and on_error == "fail":
                    raise min(failures, key=lambda failure: failure[0])[1]
                launched = self._forward(batch)
                if running is not None:
                    # Fetched one batch late, so that the device works while the next batch is put together.
                    yield _fetched(*running)
                running = launched, batch
        if running is not None:
            yield _fetched(*running)

    def _forward(self, batch: _Batch) -> torch.Tensor | None:
        """Vectors of the images that could be read, in the order of their slots; None when there are none."""
        slots: list[int] = []
        parts: list[torch.Tensor] = []
        for chunk in batch.chunks:
            for places, pixels in self._prepared(chunk):
                slots += places
                parts.append(pixels)
        if not parts:
            return None
        order = sorted(range(len(slots)), key=slots.__getitem__)
        with torch.inference_mode():
            pixels = torch.cat(parts) if len(parts) > 1 else parts[0]
            size = pass_size(self.device, self.batch_size, pixels.shape[-1])
            filler = [order[-1]] * (-len(order) % size)
            if self._seen is None:
                self._seen = pixels[:1].clone()
            if [*order, *filler] != list(range(len(pixels))):
                pixels = pixels[torch.tensor([*order, *filler], device=self.device)]
            with autocast(self.device, self.dtype):
                encoded = [
                    self._encode(each.contiguous(memory_format=torch.channels_last))
                    for each in torch.split(pixels, size)
                ]
            return torch.cat(encoded)[: len(order)]

    def _prepared(self, chunk: _Chunk) -> Iterator[tuple[list[int], torch.Tensor]]:
        """`(slots, float pixels on the device)`; on a CPU the threads that decoded have done it already."""
        with torch.inference_mode():
            for slots, images in chunk.groups:
                if self.device.type == "cpu":
                    yield slots, images
                    continue
                yield slots, self.encoder.preprocess(images.to(self.device, non_blocking=True).permute(0, 3, 1, 2))

    def _chunk(self, loader: Loader, indices: NDArray[np.int64], slots: list[int]) -> _Chunk:
        return self._decoded(loader, indices if loader.read is None else loader.read(indices), indices, slots)

    def _decoded(self, loader: Loader, data: Any, indices: NDArray[np.int64], slots: list[int]) -> _Chunk:
        """Images by size, and turned into pixels where the device is the CPU."""
        images: Images = loader.decode(data)
        groups: list[tuple[list[int], torch.Tensor]] = []
        failures: list[tuple[int, DatasetError]] = []
        if isinstance(images, torch.Tensor):
            groups.append((slots, images))
        else:
            by_shape: dict[tuple[int, ...], tuple[list[int], list[torch.Tensor]]] = {}
            for position, image in enumerate(images):
                if isinstance(image, DatasetError):
                    failures.append((int(indices[position]), image))
                    continue
                places, same = by_shape.setdefault(tuple(image.shape), ([], []))
                places.append(slots[position])
                same.append(image)
            groups = [(places, torch.stack(same)) for places, same in by_shape.values()]
        if self.device.type == "cpu":
            with torch.inference_mode():
                groups = [(own, self.encoder.preprocess(each.permute(0, 3, 1, 2))) for own, each in groups]
        elif self.device.type == "cuda":
            groups = [(own, each if each.is_cuda else each.pin_memory()) for own, each in groups]
        return _Chunk(groups, failures)

    def _batches(self, loader: Loader, indices: NDArray[np.int64]) -> Generator[_Batch, None, None]:
        """Loaded batches in order; some are loaded ahead by threads, each of which takes a part of a batch."""
        batches = (indices[start : start + self.batch_size] for start in range(0, len(indices), self.batch_size))
        if self.num_workers == 0:
            for batch in batches:
                yield _Batch(batch, [self._chunk(loader, batch, list(range(len(batch))))])
            return
        threads = torch.get_num_threads()
        # A loading thread computes with one thread of its own: more would fight the network for the cores.
        pool = ThreadPoolExecutor(self.num_workers, initializer=torch.set_num_threads, initargs=(1,))
        waiting: deque[tuple[NDArray[np.int64], list[Future[_Chunk]]]] = deque()
        try:
            for batch in batches:
                waiting.append((batch, self._submitted(pool, loader, batch)))
                if len(waiting) > _BATCHES_AHEAD:
                    yield _gathered(*waiting.popleft())
            while waiting:
                yield _gathered(*waiting.popleft())
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(threads)

    def _submitted(self, pool: ThreadPoolExecutor, loader: Loader, batch: NDArray[np.int64]) -> list[Future[_Chunk]]:
        parts = [part for part in np.array_split(np.arange(len(batch)), self.num_workers) if len(part)]
        if loader.read is None:
            return [pool.submit(self._chunk, loader, batch[part], part.tolist()) for part in parts]
        return [
            pool.submit(self._decoded, loader, loader.read(batch[part]), batch[part], part.tolist()) for part in parts
        ]


def _gathered(indices: NDArray[np.int64], chunks: list[Future[_Chunk]]) -> _Batch:
    return _Batch(indices, [chunk.result() for chunk in chunks])


def _fetched(vectors: torch.Tensor | None, batch: _Batch) -> Encoded:
    failures = sorted(
        ((index, error) for chunk in batch.chunks for index, error in chunk.failures), key=lambda failure: failure[0]
    )
    lost = np.array([index for index, _ in failures], dtype=np.int64)
    kept = batch.indices[~np.isin(batch.indices, lost)]
    found = np.empty((0, 0), np.float32) if vectors is None else vectors.float().cpu().numpy()
    return Encoded(found, kept, tuple(failures))


def default_workers() -> int:
    """Threads that decode, unless a user says otherwise: the cores of this process, shared by the processes here."""
    return max(1, available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


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
    """Embed images and keep the result in memory.

    Args:
        encoder: loaded, on `device`.
        load: index -> uint8 [H, W, C], C = 1 or 3, called from several threads.
        indices: int64 [N], what to load, in the order of the result.
        device: where the encoder runs.
        dtype: autocast dtype of the forward pass.
        batch_size: images per forward pass.
        num_workers: threads that load.
        progress: for long work.
        description: what the progress calls it.

    Returns:
        float32 [N, D].

    Raises:
        OptionError: a batch size or number of workers out of range, or no images.
        DatasetError: an image cannot be loaded.
    """
    if len(indices) == 0:
        raise OptionError("There are no images to embed.")

    def one_by_one(rows: NDArray[np.int64]) -> Images:
        return [from_dlpack(np.ascontiguousarray(load(int(row)))) for row in rows]

    pipeline = Pipeline(encoder, device, dtype, min(batch_size, len(indices)), num_workers)
    parts = []
    with (
        (progress or SILENT).task(description, len(indices), "images") as task,
        closing(pipeline.run(Loader(one_by_one), indices)) as batches,
    ):
        for encoded in batches:
            parts.append(encoded.vectors)
            task.advance(len(encoded.vectors))
    return np.concatenate(parts)
