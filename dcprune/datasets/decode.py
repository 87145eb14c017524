"""Image files to arrays."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from dcprune.errors import DatasetError

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")

# Pillow's own limit, beyond which it only warns: a file of some kilobytes can claim gigabytes of pixels.
MAX_PIXELS = 89_478_485


def decode(content: bytes, name: str, *, shorter_side: int | None = None) -> NDArray[np.uint8]:
    """The first frame of an image file as RGB, upright.

    Args:
        content: the bytes of the file.
        name: what to call it in an error.
        shorter_side: how many pixels the caller will reduce the shorter side to; a JPEG may come reduced, but never
            below twice that.

    The EXIF orientation is applied. Grey, palette, CMYK and YCbCr images are converted to RGB; what is transparent
    becomes white; 16-bit grey is scaled to 8 bits. Colour profiles are ignored, as everywhere in this field.

    Returns:
        uint8 [H, W, 3].

    Raises:
        DatasetError: the file is missing, corrupt, truncated, larger than `MAX_PIXELS`, or holds floating-point or
            32-bit values, which have no agreed range.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DatasetError(f"it has {image.width} x {image.height} pixels, more than {MAX_PIXELS:,}")
            return _rgb(ImageOps.exif_transpose(image))
    except Exception as error:  # a corrupt file makes Pillow raise almost anything
        reason = "not an image" if "cannot identify" in str(error) else str(error) or type(error).__name__
        raise DatasetError(f"Cannot decode the image {name!r}: {reason}. Replace or remove it.") from error


def _rgb(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode == "F":
        raise DatasetError("floating-point pixels have no agreed range")
    if image.mode.startswith("I"):
        return _from_16_bit(np.asarray(image))
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return np.array(image.convert("RGB"), dtype=np.uint8)


def _from_16_bit(values: NDArray[np.integer]) -> NDArray[np.uint8]:
    """Grey [H, W] in 0..65535 to uint8 [H, W, 3]."""
    if values.min() < 0 or values.max() > 65535:
        raise DatasetError(f"grey values reach from {values.min()} to {values.max()}, more than 16 bits")
    grey = ((values.astype(np.int64) * 255 + 32767) // 65535).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)
