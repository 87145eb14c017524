"""Every kind of image file becomes upright RGB, or an error that names it."""

import io
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from dcprune.datasets import decode as decoding
from dcprune.datasets.decode import MAX_PIXELS, decode, decode_jpegs_on_gpu
from dcprune.errors import DatasetError

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def photo(height: int, width: int) -> Image.Image:
    """Smooth in the large and noisy in the small, as photos are."""
    coarse = RNG.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), dtype=np.float64)
    return Image.fromarray((smooth + RNG.normal(0, 8, smooth.shape)).clip(0, 255).astype(np.uint8))


def by_pillow(content: bytes) -> NDArray[np.uint8]:
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB"))


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.fixture
def no_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoding fails unless torchvision does it."""
    monkeypatch.setattr(decoding, "_by_pillow", lambda *arguments: pytest.fail("Pillow decodes it"))


@pytest.fixture
def no_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow decodes everything."""
    monkeypatch.setattr(decoding, "_plain_jpeg_size", lambda content: None)


# --- the two ways -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"restart_marker_rows": 1}, {"optimize": True}], ids=str
)
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("size", [(1, 1), (17, 31), (64, 48)])
@pytest.mark.usefixtures("no_pillow")
def test_torchvision_decodes_colour_jpegs_as_pillow_does(
    size: tuple[int, int], subsampling: str, options: dict[str, Any]
) -> None:
    for quality in (30, 75, 96):
        content = encoded(photo(*size), "JPEG", quality=quality, subsampling=subsampling, **options)
        decoded = decode(content, "a.jpg")
        assert np.array_equal(decoded, by_pillow(content))
        assert decoded.flags.writeable
        assert decoded.flags.c_contiguous


@pytest.mark.usefixtures("no_pillow")
def test_torchvision_decodes_other_plain_files_as_pillow_does() -> None:
    image = photo(33, 20)
    rgb_jpeg = encoded(image, "JPEG", keep_rgb=True)
    assert Image.open(io.BytesIO(rgb_jpeg)).info["adobe_transform"] == 0
    software = Image.Exif()
    software[0x0131] = "dcprune"
    plain = [
        rgb_jpeg,
        encoded(image.convert("L"), "JPEG"),
        encoded(image, "JPEG", comment=b"a comment", icc_profile=b"no real profile", exif=software),
        encoded(image, "MPO", save_all=True, append_images=[photo(33, 20)]),
    ]
    for content in plain:
        assert np.array_equal(decode(content, "a"), by_pillow(content))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    every: dict[str, dict[str, Any]] = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}
    options = every.get(kind, {})
    content = encoded(Image.fromarray(RGB), kind, exif=exif, **options)
    stored = np.asarray(Image.open(io.BytesIO(encoded(Image.fromarray(RGB), kind, **options))).convert("RGB"))
    # The transformations that the EXIF standard defines for the values 1 to 8.
    upright = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.transpose(1, 0, 2),
        6: np.rot90(stored, -1),
        7: stored.transpose(1, 0, 2)[::-1, ::-1],
        8: np.rot90(stored),
    }[orientation]
    assert np.array_equal(decode(content, "a"), upright)


def test_orientation_in_xmp() -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    text = PngInfo()
    text.add_itxt("XML:com.adobe.xmp", xmp.decode())
    for content in (encoded(photo(8, 16), "JPEG", xmp=xmp), encoded(photo(8, 16), pnginfo=text)):
        assert decode(content, "a").shape == (16, 8, 3)
        assert np.array_equal(decode(content, "a"), by_pillow(content))


def test_broken_exif_is_none() -> None:
    for exif in (b"Exif\0\0no TIFF at all", b"Exif\0\0II"):
        content = encoded(photo(8, 16), "JPEG", exif=exif)
        assert np.array_equal(decode(content, "a"), by_pillow(content))


@pytest.mark.usefixtures("no_torchvision")
def test_pillow_alone() -> None:
    for content in (encoded(photo(16, 16), "JPEG"), encoded(photo(16, 16))):
        assert np.array_equal(decode(content, "a"), by_pillow(content))


def test_threads() -> None:
    contents = [encoded(photo(40 + row, 50), kind) for row in range(8) for kind in ("JPEG", "PNG", "GIF", "WEBP")]
    alone = [decode(content, "a") for content in contents]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda content: decode(content, "a"), contents * 4))
    assert all(np.array_equal(image, alone[row % len(alone)]) for row, image in enumerate(together))


# --- scaled decoding --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize(
    ("size", "reduced"),
    [((127, 300), 1), ((128, 300), 2), ((255, 256), 2), ((300, 256), 4), ((511, 600), 4), ((512, 700), 8)],
)
def test_large_jpegs_come_reduced(size: tuple[int, int], reduced: int, progressive: bool) -> None:
    image = photo(*size)
    content = encoded(image, "JPEG", progressive=progressive)
    decoded = decode(content, "a", shorter_side=32)
    assert decoded.shape[:2] == tuple(-(-edge // reduced) for edge in size)
    assert min(decoded.shape[:2]) >= 64
    assert np.array_equal(decode(content, "a", shorter_side=32), decoded)
    if reduced == 1:
        assert np.array_equal(decoded, decode(content, "a"))
    averaged = np.asarray(Image.open(io.BytesIO(content)).reduce(reduced), dtype=np.float64)
    assert np.abs(averaged - decoded).mean() < 4  # a shift by one pixel makes it more than 10


def test_reduced_and_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 8
    content = encoded(photo(64, 128), "JPEG", exif=exif)
    assert decode(content, "a", shorter_side=16).shape == (64, 32, 3)


def test_other_formats_are_not_reduced() -> None:
    content = encoded(photo(128, 128))
    assert np.array_equal(decode(content, "a", shorter_side=8), decode(content, "a"))


# --- kinds of pixels --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_rgb_comes_back(kind: str) -> None:
    assert np.array_equal(decode(encoded(Image.fromarray(RGB), kind), "a"), RGB)


def test_lossless_webp() -> None:
    assert np.array_equal(decode(encoded(Image.fromarray(RGB), "WEBP", lossless=True), "a"), RGB)


def test_grey_and_bilevel_are_repeated() -> None:
    grey = RGB[:, :, 0]
    assert np.array_equal(decode(encoded(Image.fromarray(grey)), "a"), np.repeat(grey[:, :, None], 3, 2))
    bits = Image.fromarray(grey).convert("1")
    decoded = decode(encoded(bits), "a")
    assert set(np.unique(decoded)) <= {0, 255}
    assert np.array_equal(decoded[:, :, 1] > 0, np.asarray(bits))


def test_grey_of_few_bits() -> None:
    """Two bits per pixel, values 0 to 3, which stand for 0 to 255."""
    rows = zlib.compress(b"\0" + bytes([0b00011011]))
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 1, 2, 0, 0, 0, 0))
    content += chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    assert decode(content, "a")[0, :, 0].tolist() == [0, 85, 170, 255]


def test_16_bits_are_scaled() -> None:
    values = np.array([[0, 128, 129, 257, 32768, 65535]], dtype=np.uint16)
    decoded = decode(encoded(Image.fromarray(values)), "a")
    assert np.array_equal(decoded[:, :, 2], np.round(values / 257).astype(np.uint8))


def test_the_upper_8_of_16_bits_of_colour() -> None:
    rows = zlib.compress(b"\0" + struct.pack(">3H", 0x1234, 0xFF00, 0x00FF))
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0))
    content += chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    assert decode(content, "a").tolist() == [[[0x12, 0xFF, 0x00]]]


def test_palette() -> None:
    image = Image.fromarray(RGB).quantize(256, dither=Image.Dither.NONE)
    for kind in ("PNG", "GIF"):
        assert np.array_equal(decode(encoded(image, kind), "a"), np.asarray(image.convert("RGB")))


def test_transparency_becomes_white() -> None:
    alpha = np.zeros((6, 9, 1), dtype=np.uint8)
    alpha[:3] = 255
    alpha[5] = 51
    decoded = decode(encoded(Image.fromarray(np.concatenate([RGB, alpha], axis=2))), "a")
    assert np.array_equal(decoded[:3], RGB[:3])
    assert (decoded[3:5] == 255).all()
    assert np.abs(decoded[5] - (0.2 * RGB[5] + 0.8 * 255)).max() <= 1


def test_transparent_colours_become_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putpixel((1, 0), 1)
    assert decode(encoded(image, transparency=1), "a").tolist() == [[[255, 0, 0], [255, 255, 255]]]
    colours = Image.fromarray(np.array([[[9, 8, 7], [1, 2, 3]]], dtype=np.uint8))
    assert decode(encoded(colours, transparency=(1, 2, 3)), "a").tolist() == [[[9, 8, 7], [255, 255, 255]]]


def test_cmyk() -> None:
    decoded = decode(encoded(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), "JPEG"), "a")
    assert decoded.shape == (8, 8, 3)
    assert decoded[0, 0, 0] < 10
    assert decoded[0, 0, 1:].min() > 245


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_first_image_of_several(kind: str) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    content = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert (decode(content, "a") == (255, 0, 0)).all()


def test_floating_point_is_refused() -> None:
    content = encoded(Image.fromarray(np.zeros((2, 2), dtype=np.float32)), "TIFF")
    with pytest.raises(DatasetError, match=r"a\.tif.*floating-point"):
        decode(content, "a.tif")


def test_32_bit_grey_is_refused() -> None:
    content = encoded(Image.fromarray(np.array([[0, 70000]], dtype=np.int32)), "TIFF")
    with pytest.raises(DatasetError, match=r"a\.tif.*70000"):
        decode(content, "a.tif")


# --- faults -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["torchvision", "Pillow"])
@pytest.mark.parametrize(
    ("kind", "options"), [("JPEG", {}), ("JPEG", {"progressive": True}), ("JPEG", {"exif": b"Exif\0\0"}), ("PNG", {})]
)
def test_truncated_files_are_refused(
    kind: str, options: dict[str, Any], by: str, request: pytest.FixtureRequest
) -> None:
    if by == "Pillow":
        request.getfixturevalue("no_torchvision")
    content = encoded(photo(64, 48), kind, **options)
    for length in range(0, len(content) - 200, max(1, len(content) // 60)):
        with pytest.raises(DatasetError, match=r"cut\.img"):
            decode(content[:length], "cut.img")
        if length > 1:
            with pytest.raises(DatasetError, match=r"cut\.img"):
                decode(content[:length], "cut.img", shorter_side=8)


def test_truncated_names_the_reason() -> None:
    with pytest.raises(DatasetError, match=r"cut\.jpg.*truncated"):
        decode(encoded(photo(64, 64), "JPEG")[:1000], "cut.jpg")


def damaged_pngs() -> dict[str, bytes]:
    """16 x 16 RGB images of which torchvision 0.29 does not survive one."""
    rows = b"".join(b"\0" + bytes(range(48)) for _ in range(16))
    stream = zlib.compress(rows, 0)

    def png(data: bytes) -> bytes:
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", 16, 16, 8, 2, 0, 0, 0))
        return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", data) + chunk(b"IEND", b"")

    assert np.array_equal(decode(png(stream), "a.png")[3, :, 1], range(1, 48, 3))
    return {
        "checksum": png(stream).replace(stream, stream[:-50] + b"?" + stream[-49:]),
        "too few rows": png(zlib.compress(rows[:300])),
        "cut stream": png(stream[:100]),
        "no stream": png(b"x" * 50),
        "unknown filter": png(zlib.compress(b"\x09" + rows[1:])),
    }


@pytest.mark.parametrize("damage", list(damaged_pngs()))
def test_damaged_png(damage: str) -> None:
    with pytest.raises(DatasetError, match=r"a\.png"):
        decode(damaged_pngs()[damage], "a.png")


@pytest.mark.parametrize("palette", [False, True])
def test_wrong_checksum_of_a_png(palette: bool) -> None:
    """Pixels that are stored as they are can be damaged without any other sign."""
    image = photo(64, 64)
    content = bytearray(encoded(image.quantize(64) if palette else image, compress_level=0))
    content[-100] ^= 1
    with pytest.raises(DatasetError, match=r"a\.png.*checksum"):
        decode(bytes(content), "a.png")


@pytest.mark.parametrize(
    "content",
    [b"<html>not found</html>", b"\xff\xd8\xff", b"\xff\xd8\xff\xd9", b"\x89PNG\r\n\x1a\n" + b"\0" * 40, b"\0" * 5000],
)
def test_garbage_is_named(content: bytes) -> None:
    with pytest.raises(DatasetError, match=r"Cannot decode the image 'bad\.jpg'.*Replace or remove it"):
        decode(content, "bad.jpg")


def test_empty() -> None:
    with pytest.raises(DatasetError, match=r"'a\.png': the file is empty \(0 bytes\)"):
        decode(b"", "a.png")


def test_postscript_is_not_run() -> None:
    """Pillow would start Ghostscript, whatever the file is called."""
    content = encoded(Image.new("RGB", (4, 4)), "EPS")
    with pytest.raises(DatasetError, match="not an image"):
        decode(content, "innocent.png")


@pytest.mark.parametrize("edge", [9_500, 60_000])
def test_decompression_bombs_are_refused_from_the_header(edge: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some hundred bytes that claim more pixels than Pillow warns about, and than it refuses."""
    assert edge * edge > MAX_PIXELS
    for way in ("_by_torchvision", "_rgb"):
        monkeypatch.setattr(decoding, way, lambda *arguments: pytest.fail("pixels are decoded"))
    header = struct.pack(">IIBBBBB", edge, edge, 8, 0, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    jpeg = bytearray(encoded(Image.new("L", (8, 8)), "JPEG"))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", edge, edge)
    for content in (png, bytes(jpeg)):
        for shorter_side in (None, 32):
            with pytest.raises(DatasetError, match=r"bomb.*pixels"):
                decode(content, "bomb", shorter_side=shorter_side)


# --- on a GPU ---------------------------------------------------------------------------------------------------------


def mixed_files() -> dict[str, bytes]:
    exif = Image.Exif()
    exif[0x0112] = 6
    return {
        "a.jpg": encoded(photo(40, 30), "JPEG"),
        "empty.jpg": b"",
        "b.png": encoded(photo(20, 30)),
        "turned.jpg": encoded(photo(40, 30), "JPEG", exif=exif),
        "cut.jpg": encoded(photo(40, 30), "JPEG")[:900],
        "cmyk.jpg": encoded(photo(40, 30).convert("CMYK"), "JPEG"),
        "grey.jpg": encoded(photo(40, 30).convert("L"), "JPEG", progressive=True),
    }


def check_against_cpu(device: torch.device, tolerance: float) -> None:
    files = mixed_files()
    for (name, content), found in zip(
        files.items(), decode_jpegs_on_gpu(list(files.values()), list(files), device), strict=True
    ):
        if name in ("empty.jpg", "cut.jpg"):
            assert isinstance(found, DatasetError)
            assert name in str(found)
            continue
        assert isinstance(found, torch.Tensor)
        assert (found.device.type, found.dtype) == (device.type, torch.uint8)
        expected = torch.from_numpy(decode(content, name)).permute(2, 0, 1)
        assert found.shape == expected.shape
        assert (found.cpu().float() - expected.float()).abs().mean() <= tolerance


def test_gpu_decoding_without_nvjpeg_is_decode() -> None:
    """On a CPU nvJPEG refuses, and every image takes the other way."""
    check_against_cpu(torch.device("cpu"), tolerance=0)


@pytest.mark.gpu
def test_nvjpeg() -> None:
    check_against_cpu(torch.device("cuda"), tolerance=2)
