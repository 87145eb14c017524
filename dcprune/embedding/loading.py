"""Where the pipeline's images and its encoder come from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.dlpack import from_dlpack

from dcprune.artifacts import EncoderInfo
from dcprune.datasets.decode import decode, decode_jpegs_on_gpu
from dcprune.errors import DatasetError, OptionError
from dcprune.interfaces import DatasetSource, Encoder, EncoderChoice, EncoderContext
from dcprune.plugins import registry
from dcprune.sources import sample_id

Images = torch.Tensor | list[torch.Tensor | DatasetError]


@dataclass(frozen=True)
class Loader:
    """How images are read.

    Attributes:
        decode: called from several threads: what `read` returned, or samples int64 [n] where there is no `read`, to one
            uint8 tensor [n, H, W, C], or to n images uint8 [H, W, C] of any size, each of which may have failed.
        read: called from one thread, in order; for sources that stream.
    """

    decode: Callable[[Any], Images]
    read: Callable[[NDArray[np.int64]], Any] | None = None


_RESIDENT_SHARE = 0.5
Result = TypeVar("Result")


def load_encoder(choice: EncoderChoice, context: EncoderContext) -> tuple[Encoder, EncoderInfo]:
    """Construct a registered encoder and load its weights.

    Raises:
        UnknownName: no such encoder or setting.
        OptionError: a setting that does not fit.
        WeightsError: no weights, or weights that do not fit.
    """
    encoder: Encoder = registry().create("encoder", choice.name, choice.settings, weights=choice.weights)
    return encoder, encoder.load(context)


def loader(
    source: DatasetSource, device: torch.device, *, shorter_side: int | None = None, on_gpu: bool = False
) -> Loader:
    """How the images of a dataset are read: from memory (the GPU's where they fit into half of what is free), decoded
    from files, or however the source makes them.

    Args:
        source: the dataset.
        device: where the images are needed.
        shorter_side: pixels that the shorter side will be reduced to: larger JPEG files may be decoded reduced.
        on_gpu: decode JPEG files by nvJPEG on `device`.

    Raises:
        OptionError: `on_gpu`, but `device` is no CUDA device, or the samples are no files of images.
    """
    if on_gpu and (device.type != "cuda" or not source.encoded):
        raise OptionError(
            f"Decoding on the GPU needs a CUDA device and image files; this is {source.uri!r} on {device}."
        )
    if source.array is not None:
        return Loader(_resident(from_dlpack(source.array), device))
    if not source.encoded:
        return Loader(lambda indices: [_or_error(_by_source, source, int(index)) for index in indices])

    def decoded(contents: Sequence[bytes | DatasetError], indices: NDArray[np.int64]) -> Images:
        names = [sample_id(source, int(index)) for index in indices]
        if on_gpu:
            return _decoded_on_gpu(contents, names, device)
        return [
            each if isinstance(each, DatasetError) else _or_error(_decoded, each, name, shorter_side)
            for each, name in zip(contents, names, strict=True)
        ]

    def read(indices: NDArray[np.int64]) -> list[bytes | DatasetError]:
        return [_or_error(source.content, int(index)) for index in indices]

    if source.streaming:
        return Loader(lambda pair: decoded(*pair), lambda indices: (read(indices), indices))
    return Loader(lambda indices: decoded(read(indices), indices))


def _by_source(source: DatasetSource, index: int) -> torch.Tensor:
    return from_dlpack(np.ascontiguousarray(source.image(index)))


def _decoded(content: bytes, name: str, shorter_side: int | None) -> torch.Tensor:
    return from_dlpack(decode(content, name, shorter_side=shorter_side))


def _decoded_on_gpu(contents: Sequence[bytes | DatasetError], names: list[str], device: torch.device) -> Images:
    """Images on the GPU; contents that could not be read stay errors."""
    readable = [row for row, content in enumerate(contents) if isinstance(content, bytes)]
    found = decode_jpegs_on_gpu(
        [content for content in contents if isinstance(content, bytes)], [names[row] for row in readable], device
    )
    images: list[torch.Tensor | DatasetError] = [each for each in contents if isinstance(each, DatasetError)]
    for row, image in zip(readable, found, strict=True):
        images.insert(row, image if isinstance(image, DatasetError) else image.permute(1, 2, 0))
    return images


def _resident(array: torch.Tensor, device: torch.device) -> Callable[[NDArray[np.int64]], torch.Tensor]:
    if device.type == "cuda" and array.nbytes < _RESIDENT_SHARE * torch.cuda.mem_get_info(device)[0]:
        array = array.to(device)
    return lambda indices: array[torch.from_numpy(indices).to(array.device)]


def _or_error(function: Callable[..., Result], *arguments: Any) -> Result | DatasetError:
    try:
        return function(*arguments)
    except DatasetError as error:
        return error
