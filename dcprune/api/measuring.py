"""The encoders of an evaluation, each loaded once, through which every image goes once."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from dcprune.api.ahead import ahead
from dcprune.artifacts import EncoderInfo
from dcprune.devices import dtype_name
from dcprune.embedding import Loader, encode_images, load_encoder
from dcprune.errors import DatasetError, DcpruneError
from dcprune.evaluation import NamedMetric
from dcprune.interfaces import Encoder, EncoderChoice, EncoderContext, Features, StandsOnEncoder
from dcprune.processes import ALONE, Processes

Images = Sequence[NDArray[np.uint8]] | NDArray[np.uint8]
Result = TypeVar("Result")

# The yardstick stays the same, whatever precision the images are drawn with.
_FEATURE_DTYPE = torch.float32
_BATCHES_OF_A_BLOCK = 4  # so that an encoder has the next batch ready while it works on one
_LARGEST_IN_MEMORY = 2 << 30
_OVERLAPPING = ("cuda", "mps")


@dataclass(frozen=True)
class LoadedEncoder:
    """An encoder that is ready to run.

    Attributes:
        below: position of the encoder whose vectors it takes instead of images, or None.
    """

    choice: EncoderChoice
    encoder: Encoder
    info: EncoderInfo
    below: int | None = None


class Bench:
    """The encoders that some metrics need; every image is decoded or drawn once and goes through all of them.

    Under `torchrun` or `accelerate launch` each process encodes a part of the images, and all get the features of all.

    Args:
        named: the metrics.
        context: what encoders are loaded with.
        batch_size, num_workers: for encoding; features do not depend on them.
        team: the processes that share the work.

    Raises:
        WeightsError: weights that are missing or do not fit.
    """

    def __init__(
        self,
        named: Sequence[NamedMetric],
        context: EncoderContext,
        batch_size: int,
        num_workers: int,
        team: Processes = ALONE,
    ) -> None:
        self.context = context
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.team = team
        self.encoders: list[LoadedEncoder] = []
        for each in named:
            self._position(each.encoder)

    def _position(self, choice: EncoderChoice) -> int:
        """Where an encoder stands in the list; it is loaded, and what is below it, unless it is there."""
        for position, loaded in enumerate(self.encoders):
            if loaded.choice == choice:
                return position
        encoder, info = self.team.main_first(lambda: load_encoder(choice, self.context))
        lower = encoder.encoder_below(choice) if isinstance(encoder, StandsOnEncoder) else None
        below = None if lower is None else self._position(lower)
        self.encoders.append(LoadedEncoder(choice, encoder, info, below))
        return len(self.encoders) - 1

    def position(self, named: NamedMetric) -> int:
        """Which encoder a metric needs."""
        return self._position(named.encoder)

    def encode(
        self,
        loader: Loader,
        rows: NDArray[np.int64],
        labels: NDArray[np.int64] | None,
        description: str,
        *,
        positions: Collection[int] | None = None,
    ) -> dict[int, Features]:
        """Features of stored images by position of the encoder.

        Args:
            loader: how they are read.
            rows: int64 [N], which of them, in an order that is cheap to read.
            labels: int64 [N] of those rows.
            description: what the progress calls it.
            positions: the encoders; all by default.

        Raises:
            DatasetError: an image cannot be read.
        """
        own = np.array_split(rows, self.team.count)[self.team.rank]
        size = self.batch_size * _BATCHES_OF_A_BLOCK

        def work() -> dict[int, NDArray[np.float32]]:
            with self.context.progress.task(description, len(own), "images") as task:
                blocks = _stored_blocks(loader, own, size, self.num_workers)
                return self._through_all(blocks, len(own), self.num_workers, task.advance, positions)

        return self._of_all(work, labels)

    def encode_drawn(
        self, draw: Callable[[NDArray[np.int64]], Iterable[Images]], count: int, labels: NDArray[np.int64] | None
    ) -> dict[int, Features]:
        """Features of images that are drawn batch by batch and not kept, by position of the encoder.

        On a GPU the next batch is drawn, in a thread and on a stream of its own, while encoders work on one. On a CPU
        the two would only fight for the cores.

        Args:
            draw: numbers int64 [n] of images -> those images in batches.
            count: number of images N.
            labels: int64 [N].
        """
        own = np.array_split(np.arange(count), self.team.count)[self.team.rank]
        overlap = self.context.device.type in _OVERLAPPING
        return self._of_all(
            lambda: self._through_all(draw(own), len(own), 0, lambda _: None, None, overlap=overlap), labels
        )

    def _of_all(
        self, work: Callable[[], dict[int, NDArray[np.float32]]], labels: NDArray[np.int64] | None
    ) -> dict[int, Features]:
        """The parts of all processes one after the other."""
        parts = together(self.team, work)
        return {
            position: Features(
                own if len(parts) == 1 else np.concatenate([part[position] for part in parts]),
                labels,
                self.encoders[position].info,
            )
            for position, own in parts[0].items()
        }

    def _through_all(
        self,
        blocks: Iterable[Images],
        count: int,
        num_workers: int,
        advance: Callable[[int], None],
        positions: Collection[int] | None,
        *,
        overlap: bool = True,
    ) -> dict[int, NDArray[np.float32]]:
        """Vectors [count, D] by position of the encoder; those that others stand on come first.

        With `overlap`, blocks are made in a thread while those before are encoded.
        """
        wanted = self._with_those_below(range(len(self.encoders)) if positions is None else positions)
        matrices = {position: _matrix(count, self.encoders[position].info.dim) for position in wanted}
        done = 0
        blocks = blocks if count else ()
        with closing(ahead(blocks, self.context.device)) if overlap else nullcontext(blocks) as made:
            for images in made:
                rows = slice(done, done + len(images))
                for position, matrix in matrices.items():
                    loaded = self.encoders[position]
                    if loaded.below is None:
                        matrix[rows] = self._encoded(loaded.encoder, images, num_workers)
                    else:
                        matrix[rows] = self._risen(loaded.encoder, matrices[loaded.below][rows])
                done += len(images)
                advance(len(images))
        return matrices

    def _with_those_below(self, positions: Collection[int]) -> list[int]:
        """In ascending order: an encoder stands behind the one that it stands on."""
        below = [self.encoders[position].below for position in positions]
        return sorted({*positions, *(each for each in below if each is not None)})

    def _encoded(self, encoder: Encoder, images: Images, num_workers: int) -> NDArray[np.float32]:
        return encode_images(
            encoder,
            images.__getitem__,
            np.arange(len(images)),
            device=self.context.device,
            dtype=_FEATURE_DTYPE,
            batch_size=self.batch_size,
            num_workers=num_workers,
        )

    def _risen(self, encoder: Any, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            found: NDArray[np.float32] = (
                encoder.from_below(torch.from_numpy(vectors).to(self.context.device)).cpu().numpy()
            )
        return found


def protocol_of(info: EncoderInfo) -> dict[str, Any]:
    """The part of a protocol that says which features were compared."""
    return {
        "extractor": info.name,
        "extractor_settings": info.settings,
        "weights_sha256": info.weights_sha256,
        "layer": info.layer,
        "preprocessing": info.preprocessing,
        "precision": dtype_name(_FEATURE_DTYPE),
    }


def together(team: Processes, work: Callable[[], Result]) -> list[Result]:
    """What `work` gives on every process, in the order of ranks, on all of them.

    Raises:
        DcpruneError: what it raised on any of them, so that no process waits for one that has failed.
    """
    outcome: Result | DcpruneError
    try:
        outcome = work()
    except DcpruneError as error:
        if team.count == 1:
            raise
        outcome = error
    outcomes = team.gather(outcome)
    for each in outcomes:
        if isinstance(each, DcpruneError):
            raise each
    return outcomes


def by_main(team: Processes, work: Callable[[], Result]) -> Result:
    """What `work` gives on the first process, on all of them."""
    return together(team, lambda: work() if team.is_main else None)[0]  # type: ignore[return-value]


def _matrix(count: int, dim: int) -> NDArray[np.float32]:
    """Room for vectors: in memory, or where they are many in a file without a name that ends with this process."""
    if 4 * count * dim <= _LARGEST_IN_MEMORY:
        return np.empty((count, dim), dtype=np.float32)
    with tempfile.TemporaryFile() as file:
        return np.memmap(file, dtype=np.float32, mode="w+", shape=(count, dim))


def _stored_blocks(
    loader: Loader, rows: NDArray[np.int64], size: int, num_workers: int
) -> Generator[Images, None, None]:
    """Images of `rows` in order, decoded by threads in blocks of `size`."""
    with ThreadPoolExecutor(max(1, num_workers)) as pool:
        for start in range(0, len(rows), size):
            parts = [part for part in np.array_split(rows[start : start + size], max(1, num_workers)) if len(part)]
            read = parts if loader.read is None else [loader.read(part) for part in parts]
            yield [image for part in pool.map(loader.decode, read) for image in _checked(part)]


def _checked(images: torch.Tensor | Sequence[torch.Tensor | DatasetError]) -> Images:
    """Images as arrays.

    Raises:
        DatasetError: that of the first image which could not be read.
    """
    for image in images:
        if isinstance(image, DatasetError):
            raise image
    return [image.numpy() for image in images if isinstance(image, torch.Tensor)]
