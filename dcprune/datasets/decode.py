"""Image files to arrays.

Plain JPEGs go through torchvision, which wants none of the copies that Pillow makes; everything else goes through
Pillow, PNGs among it: torchvision's decoder ends the whole process where a PNG is corrupt (seen with 0.29: a wrong
checksum, a short or damaged stream). Both hold the same libjpeg-turbo and give the same pixels. torchvision deprecates
its Python functions in favour of TorchCodec, which needs FFmpeg; the operators behind them are called, and Pillow does
all where there are none.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from dcprune.errors import DatasetError

if TYPE_CHECKING:
    import torch

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")

# Pillow's own limit, beyond which it only warns: a file of some kilobytes can claim gigabytes of pixels.
MAX_PIXELS = 89_478_485

# Of what Pillow reads: EPS, for one, is a program that Ghostscript would run.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")

_BROKEN_EXIF = (KeyError, struct.error, SyntaxError, TypeError, ValueError)
_ORIENTATION = 0x0112

_RGB = 3  # torchvision.io.ImageReadMode.RGB

_PNG = b"\x89PNG\r\n\x1a\n"

# Markers of a JPEG file (ITU T.81, table B.1).
_SOI, _EOI, _SOS, _APP1 = b"\xff\xd8", b"\xff\xd9", 0xDA, 0xE1
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_HUFFMAN_FRAMES = (0xC0, 0xC1, 0xC2)
_SEGMENTS = range(0xC0, 0xFF)
_WITHOUT_LENGTH = range(0xD0, 0xDA)


def decode(content: bytes, name: str, *, shorter_side: int | None = None) -> NDArray[np.uint8]:
    """The first frame of an image file as RGB, upright; from any thread.

    Args:
        content: the bytes of the file.
        name: what to call it in an error.
        shorter_side: how many pixels the caller will reduce the shorter side to. A JPEG whose shorter side is at least
            four times that comes reduced by 1/2, 1/4 or 1/8 in the frequency domain, but never below twice that.

    BMP, GIF, JPEG, PNG, PNM, TIFF and WebP are read, by their content and not by their name.

    - EXIF orientation (or XMP's, where there is no EXIF) is applied; an EXIF block that cannot be read is ignored.
    - Grey, bilevel, palette, CMYK, YCCK and YCbCr images are converted to RGB; colour profiles are ignored, as
      everywhere in this field.
    - What is transparent (alpha, a transparent palette entry or colour) is laid on white.
    - 16-bit grey is scaled to 8 bits (v / 257, rounded); of 16-bit colour the upper byte is taken.
    - Of an animation or a file of several pages the first frame counts.

    Returns:
        uint8 [H, W, 3].

    Raises:
        DatasetError: the file is empty, truncated, corrupt, no such image, has more than `MAX_PIXELS` pixels (known
            from its header, before memory is taken for them), or holds floating-point or 32-bit values, which have no
            agreed range.
    """
    if not content:
        raise DatasetError(f"Cannot decode the image {name!r}: the file is empty (0 bytes). Replace or remove it.")
    try:
        size = _plain_jpeg_size(content)
        if size is not None:
            _check_pixels(*size)
        if size is not None and (shorter_side is None or min(size) < 4 * shorter_side):
            image = _by_torchvision(content)
            if image is not None:
                return image
        return _by_pillow(content, shorter_side)
    except Exception as error:  # a corrupt file makes Pillow raise almost anything
        reason = "not an image" if "cannot identify" in str(error) else str(error) or type(error).__name__
        raise DatasetError(f"Cannot decode the image {name!r}: {reason}. Replace or remove it.") from error


def decode_jpegs_on_gpu(
    contents: Sequence[bytes], names: Sequence[str], device: torch.device | str
) -> list[torch.Tensor | DatasetError]:
    """Image files to tensors on a GPU: plain JPEGs together through nvJPEG, others one by one through `decode`.

    nvJPEG rounds in its own way, so that pixels may differ from those of `decode` by a few levels.

    Args:
        contents: the bytes of B files.
        names: what to call them in an error.
        device: a CUDA device.

    Returns:
        For each of the B files a tensor uint8 [3, H, W] on `device`, or why there is none.
    """
    import torch

    decode_all = _torchvision_operator("decode_jpegs_cuda")
    sizes = [_plain_jpeg_size(content) for content in contents]
    plain = [row for row, size in enumerate(sizes) if size is not None and size[0] * size[1] <= MAX_PIXELS]
    images: dict[int, torch.Tensor] = {}
    if plain and decode_all is not None:
        with suppress(RuntimeError):  # one bad file fails them all, and `decode` finds out which
            found = decode_all([_as_tensor(contents[row]) for row in plain], _RGB, torch.device(device))
            images = dict(zip(plain, found, strict=True))
    return [
        images[row] if row in images else _to_device(content, name, device)
        for row, (content, name) in enumerate(zip(contents, names, strict=True))
    ]


def _to_device(content: bytes, name: str, device: torch.device | str) -> torch.Tensor | DatasetError:
    import torch

    try:
        return torch.from_numpy(decode(content, name)).permute(2, 0, 1).to(device)
    except DatasetError as error:
        return error


def _check_pixels(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise DatasetError(f"it has {width} x {height} pixels, more than {MAX_PIXELS:,}")


def _plain_jpeg_size(content: bytes) -> tuple[int, int] | None:
    """Width and height of a JPEG that torchvision decodes as Pillow does: 8 bits, grey or three colours, upright, with
    an end; None for any other content.
    """
    if not (content.startswith(_SOI) and content.endswith(_EOI)):
        return None
    size = None
    at = 2
    while at + 10 <= len(content) and content[at] == 0xFF:
        marker, length = content[at + 1], int.from_bytes(content[at + 2 : at + 4])
        if marker == _SOS:
            return size
        if marker not in _SEGMENTS or marker in _WITHOUT_LENGTH or length < 2:
            return None
        if marker in _FRAMES:
            bits, height, width, components = struct.unpack_from(">BHHB", content, at + 4)
            if marker not in _HUFFMAN_FRAMES or bits != 8 or components not in (1, 3) or not height or not width:
                return None
            size = (width, height)
        if marker == _APP1 and not _says_upright(content[at + 4 : at + 2 + length]):
            return None
        at += 2 + length
    return None


def _says_upright(metadata: bytes) -> bool:
    if not metadata.startswith(b"Exif\0\0"):
        return b"tiff:Orientation" not in metadata
    exif = Image.Exif()
    try:
        exif.load(metadata)
        return bool(exif.get(_ORIENTATION, 1) == 1)
    except _BROKEN_EXIF:
        return False


def _as_tensor(content: bytes) -> torch.Tensor:
    """uint8 [bytes] on the memory of `content`: read only."""
    from torch.utils.dlpack import from_dlpack

    return from_dlpack(np.frombuffer(content, dtype=np.uint8))


@cache
def _torchvision_operator(name: str) -> Any:
    """An operator of torchvision's image library, or None where this torchvision has none."""
    import torch
    import torchvision  # noqa: F401 - registers them

    return getattr(torch.ops.image, name, None)


def _by_torchvision(content: bytes) -> NDArray[np.uint8] | None:
    """A plain JPEG, or None: whatever torchvision refuses is for Pillow to judge."""
    decode_one = _torchvision_operator("decode_jpeg")
    if decode_one is None:
        return None
    try:
        image: NDArray[np.uint8] = decode_one(_as_tensor(content), _RGB).permute(1, 2, 0).contiguous().numpy()
    except RuntimeError:
        return None
    return image


def _check_png(content: bytes) -> None:
    """Compare the checksums of the chunks that hold pixels, which Pillow does not.

    Raises:
        DatasetError: one is wrong.
    """
    view = memoryview(content)
    at = len(_PNG)
    while at + 12 <= len(content):
        end = at + 12 + int.from_bytes(view[at : at + 4])
        kind, stored = content[at + 4 : at + 8], view[end - 4 : end]
        whole = end <= len(content)  # what is cut off is for Pillow to judge
        if kind == b"IDAT" and whole and zlib.crc32(view[at + 4 : end - 4]) != int.from_bytes(stored):
            raise DatasetError("a checksum is wrong")
        at = end


def _by_pillow(content: bytes, shorter_side: int | None) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
        _check_pixels(image.width, image.height)
        if content.startswith(_PNG):
            _check_png(content)
        if shorter_side is not None and min(image.size) >= 4 * shorter_side:
            image.draft(None, (2 * shorter_side, 2 * shorter_side))  # does nothing unless it is a JPEG
        image.load()
        with suppress(*_BROKEN_EXIF):
            ImageOps.exif_transpose(image, in_place=True)
        return _rgb(image)


def _rgb(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode == "F":
        raise DatasetError("floating-point pixels have no agreed range")
    if image.mode.startswith("I"):
        return _from_16_bit(np.asarray(image))
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return np.array(image if image.mode == "RGB" else image.convert("RGB"), dtype=np.uint8)


def _from_16_bit(values: NDArray[np.integer]) -> NDArray[np.uint8]:
    """Grey [H, W] in 0..65535 to uint8 [H, W, 3]."""
    if values.min() < 0 or values.max() > 65535:
        raise DatasetError(f"grey values reach from {values.min()} to {values.max()}, more than 16 bits")
    grey = ((values.astype(np.int64) * 255 + 32767) // 65535).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)
