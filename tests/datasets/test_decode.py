"""Every kind of image file becomes upright RGB, or an error that names it."""

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dcprune.datasets.decode import MAX_PIXELS, decode_image
from dcprune.errors import DatasetError

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)


def saved(folder: Path, image: Image.Image, name: str = "image.png", **options: Any) -> Path:
    image.save(folder / name, **options)
    return folder / name


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif", "a.ppm"])
def test_lossless_rgb_comes_back(tmp_path: Path, name: str) -> None:
    assert np.array_equal(decode_image(saved(tmp_path, Image.fromarray(RGB), name)), RGB)


def test_jpeg_is_what_pillow_decodes(tmp_path: Path) -> None:
    path = saved(tmp_path, Image.fromarray(RGB), "a.jpg", quality=95)
    decoded = decode_image(path)
    assert np.array_equal(decoded, np.asarray(Image.open(path)))
    assert decoded.flags.writeable
    assert decoded.flags.c_contiguous


def test_grey_and_bilevel_are_repeated(tmp_path: Path) -> None:
    grey = RGB[:, :, 0]
    assert np.array_equal(decode_image(saved(tmp_path, Image.fromarray(grey))), np.repeat(grey[:, :, None], 3, 2))
    bits = Image.fromarray(grey).convert("1")
    decoded = decode_image(saved(tmp_path, bits))
    assert set(np.unique(decoded)) <= {0, 255}
    assert np.array_equal(decoded[:, :, 1] > 0, np.asarray(bits))


def test_16_bit_grey_is_scaled(tmp_path: Path) -> None:
    values = np.array([[0, 128, 129, 257, 32768, 65535]], dtype=np.uint16)
    decoded = decode_image(saved(tmp_path, Image.fromarray(values)))
    assert np.array_equal(decoded[:, :, 2], np.round(values / 257).astype(np.uint8))


def test_palette(tmp_path: Path) -> None:
    image = Image.fromarray(RGB).quantize(256, dither=Image.Dither.NONE)
    assert np.array_equal(decode_image(saved(tmp_path, image)), np.asarray(image.convert("RGB")))


def test_transparency_becomes_white(tmp_path: Path) -> None:
    alpha = np.zeros((6, 9, 1), dtype=np.uint8)
    alpha[:3] = 255
    alpha[5] = 51
    decoded = decode_image(saved(tmp_path, Image.fromarray(np.concatenate([RGB, alpha], axis=2))))
    assert np.array_equal(decoded[:3], RGB[:3])
    assert (decoded[3:5] == 255).all()
    assert np.abs(decoded[5] - (0.2 * RGB[5] + 0.8 * 255)).max() <= 1


def test_transparent_palette_colour_becomes_white(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putpixel((1, 0), 1)
    path = saved(tmp_path, image, transparency=1)
    assert decode_image(path).tolist() == [[[255, 0, 0], [255, 255, 255]]]


def test_cmyk(tmp_path: Path) -> None:
    decoded = decode_image(saved(tmp_path, Image.new("CMYK", (8, 8), (255, 0, 0, 0)), "a.jpg"))
    assert decoded.shape == (8, 8, 3)
    assert decoded[0, 0, 0] < 10
    assert decoded[0, 0, 1:].min() > 245


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    # The transformations that the EXIF standard defines for the values 1 to 8.
    upright = {
        1: RGB,
        2: RGB[:, ::-1],
        3: RGB[::-1, ::-1],
        4: RGB[::-1],
        5: RGB.transpose(1, 0, 2),
        6: np.rot90(RGB, -1),
        7: RGB.transpose(1, 0, 2)[::-1, ::-1],
        8: np.rot90(RGB),
    }[orientation]
    assert np.array_equal(decode_image(saved(tmp_path, Image.fromarray(RGB), exif=exif)), upright)


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    path = saved(tmp_path, frames[0], "a.gif", save_all=True, append_images=frames[1:])
    assert (decode_image(path) == (255, 0, 0)).all()


def test_floating_point_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, Image.fromarray(np.zeros((2, 2), dtype=np.float32)), "a.tif")
    with pytest.raises(DatasetError, match=r"a\.tif.*floating-point"):
        decode_image(path)


def test_32_bit_grey_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, Image.fromarray(np.array([[0, 70000]], dtype=np.int32)), "a.tif")
    with pytest.raises(DatasetError, match=r"a\.tif.*70000"):
        decode_image(path)


def test_truncated_jpeg_names_its_path(tmp_path: Path) -> None:
    path = saved(tmp_path, Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)), "cut.jpg")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DatasetError, match=r"cut\.jpg.*truncated"):
        decode_image(path)


@pytest.mark.parametrize("content", [b"<html>not found</html>", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_garbage_names_its_path(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.jpg"
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=r"bad\.jpg"):
        decode_image(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"gone\.png.*No such file"):
        decode_image(tmp_path / "gone.png")


@pytest.mark.parametrize("edge", [9_500, 60_000])
def test_decompression_bombs_are_refused(tmp_path: Path, edge: int) -> None:
    """Some hundred bytes that claim more pixels than Pillow warns about, and than it refuses."""
    assert edge * edge > MAX_PIXELS

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", edge, edge, 8, 0, 0, 0, 0)
    path = tmp_path / "bomb.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    )
    with pytest.raises(DatasetError, match=r"bomb\.png.*pixels"):
        decode_image(path)
