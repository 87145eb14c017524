"""Where the pipeline's images and its encoder come from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from dcprune.artifacts import EncoderInfo
from dcprune.datasets.decode import decode
from dcprune.errors import DatasetError
from dcprune.interfaces import DatasetSource, Encoder, EncoderChoice, EncoderContext
from dcprune.plugins import registry

Image = NDArray[np.uint8]
Images = torch.Tensor | list[Image | DatasetError]


@dataclass(frozen=True)
class Loader:
    """How images are read.

    Attributes:
        decode: called from several threads: what `read` returned, or samples int64 [n] where there is no `read`, to one
            uint8 tensor [n, H, W, C], or to n images of any size, each of which may have failed.
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


def loader(source: DatasetSource, device: torch.device, *, shorter_side: int | None = None) -> Loader:
    """How the images of a dataset are read: from memory (the GPU's where they fit into half of what is free), decoded
    from files, or however the source makes them.

    Args:
        source: the dataset.
        device: where the images are needed.
        shorter_side: pixels that the shorter side will be reduced to: larger JPEG files may be decoded reduced.
    """
    if source.array is not None:
        return Loader(_resident(torch.from_numpy(source.array), device))
    if not source.encoded:
        return Loader(lambda indices: [_or_error(source.image, int(index)) for index in indices])

    def name(index: int) -> str:
        return str(index) if source.ids is None else source.ids[index]

    def decoded(index: int, content: bytes) -> Image:
        return decode(content, name(index), shorter_side=shorter_side)

    if source.streaming:
        return Loader(
            lambda contents: [
                each if isinstance(each, DatasetError) else _or_error(decoded, *each) for each in contents
            ],
            lambda indices: [_or_error(lambda index: (index, source.content(index)), int(index)) for index in indices],
        )
    return Loader(
        lambda indices: [
            _or_error(lambda index: decoded(index, source.content(index)), int(index)) for index in indices
        ]
    )


def _resident(array: torch.Tensor, device: torch.device) -> Callable[[NDArray[np.int64]], torch.Tensor]:
    if device.type == "cuda" and array.nbytes < _RESIDENT_SHARE * torch.cuda.mem_get_info(device)[0]:
        array = array.to(device)
    return lambda indices: array[torch.from_numpy(indices).to(array.device)]


def _or_error(function: Callable[..., Result], *arguments: Any) -> Result | DatasetError:
    try:
        return function(*arguments)
    except DatasetError as error:
        return error
