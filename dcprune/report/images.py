"""Contact sheets: images side by side in one data URI."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from dcprune.artifacts import Coreset, group_by_class
from dcprune.errors import DatasetError
from dcprune.interfaces import DatasetSource, Progress

MOST_PER_SIDE = 8
SHEET_WIDTH = 465  # pixels that a contact sheet has on a wide screen
SAMPLES_WIDTH = 400
PAIRS_WIDTH = 600
MAX_CLASSES = 24
SHEETS_BYTES = 1_400_000  # all sheets of kept and dropped images together, before base64
SAMPLES_BYTES = 300_000  # the sample grid of one run
_SMALL = 48  # images up to this side are shown pixel by pixel
_THUMBNAIL = 96
_MARK = (58, 134, 209, 255)  # near the colour of what is kept, on light and on dark ground


@dataclass(frozen=True)
class Picture:
    """An image inside the page, `width` x `height` pixels as shown on a wide screen.

    `pixelated` asks for hard pixels; only whole multiples look right with them.
    """

    uri: str
    alt: str
    width: int
    height: int
    pixelated: bool


@dataclass(frozen=True)
class SheetRow:
    """Kept and dropped images of one class, and how many there are of each."""

    name: str
    kept: Picture | None
    dropped: Picture | None
    num_kept: int
    num_dropped: int


def contact_sheet(
    images: Sequence[NDArray[np.uint8]],
    alt: str,
    max_bytes: int,
    columns: int,
    *,
    room: int = SHEET_WIDTH,
    marked: Sequence[bool] | None = None,
) -> Picture:
    """Images uint8 [H, W, C] in a row with transparent gaps: PNG when they are small, WebP thumbnails otherwise.

    Args:
        images: at least one.
        alt: what they are, in words.
        max_bytes: see `encoded`.
        columns: the sheet is as wide as this many images, even when there are fewer.
        room: pixels that it has on a wide screen.
        marked: whether an image is underlined; None leaves no room for lines.
    """
    largest = max(max(image.shape[:2]) for image in images)
    side = min(largest, _THUMBNAIL) if largest > _SMALL else largest
    line = 0 if marked is None else max(2, side // 14)
    sheet = Image.new("RGBA", (row_width(side, columns), side + 2 * line), (0, 0, 0, 0))
    for position, image in enumerate(images):
        left = row_width(side, position + 1) - side
        sheet.paste(_tile(image, side, largest), (left, 0))
        if marked is not None and marked[position]:
            sheet.paste(_MARK, (left, side + line, left + side, side + 2 * line))
    return encoded(sheet, alt, max_bytes, room, lossless=largest <= _SMALL)


def paired_sheet(
    above: Sequence[NDArray[np.uint8]], below: Sequence[NDArray[np.uint8]], alt: str, max_bytes: int
) -> Picture:
    """Two rows of as many images uint8 [H, W, C], all as squares of one size; see `encoded`."""
    smallest = max(max(image.shape[:2]) for image in above)
    side = smallest if smallest <= _SMALL else min(smallest, _THUMBNAIL)
    gap = max(1, side // 24)
    sheet = Image.new("RGBA", (row_width(side, len(above)), 2 * side + gap), (0, 0, 0, 0))
    for top, row in ((0, above), (side + gap, below)):
        for position, image in enumerate(row):
            tile = Image.fromarray(_displayed(squared(image, side))).convert("RGB")
            sheet.paste(tile, (row_width(side, position + 1) - side, top))
    return encoded(sheet, alt, max_bytes, PAIRS_WIDTH, lossless=side <= _SMALL)


def squared(image: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """An image uint8 [H, W, C] cropped to a square about its centre and resized: uint8 [side, side, C]."""
    fitted = np.asarray(ImageOps.fit(Image.fromarray(_displayed(image)), (side, side), Image.Resampling.BILINEAR))
    return fitted[..., None] if fitted.ndim == 2 else fitted


def _displayed(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """An image uint8 [H, W, C] as Pillow takes it, grey ones without their channel."""
    return image[..., 0] if image.shape[2] == 1 else image


def row_width(side: int, columns: int) -> int:
    """Width of `columns` square tiles with the gaps between them."""
    return columns * (side + max(1, side // 24)) - max(1, side // 24)


def images_per_side(side: int) -> int:
    """Eight images, or seven when only those fit at twice their size."""
    fitting = [count for count in (MOST_PER_SIDE, MOST_PER_SIDE - 1) if 2 * row_width(side, count) <= SHEET_WIDTH]
    return fitting[0] if fitting else MOST_PER_SIDE


def _tile(image: NDArray[np.uint8], side: int, largest: int) -> Image.Image:
    """One image as an RGB square: centred on a grey ground when small, cropped and reduced when large."""
    picture = Image.fromarray(_displayed(image)).convert("RGB")
    if largest > _SMALL:
        return ImageOps.fit(picture, (side, side), Image.Resampling.LANCZOS)
    return ImageOps.pad(picture, (side, side), Image.Resampling.NEAREST, color=(128, 128, 128))


def encoded(image: Image.Image, alt: str, max_bytes: int, room: int, *, lossless: bool = True) -> Picture:
    """The image as a data URI of at most about 4/3 `max_bytes`: PNG, WebP when that is too large, then ever smaller.

    It is shown `room` pixels wide, or at the largest whole multiple of its size when that is at least the double.
    """
    multiple = room // image.width
    pixelated = lossless and multiple >= 2
    width = multiple * image.width if pixelated else room
    height = round(image.height * width / image.width)
    while True:
        for kind, options in ((("PNG", {"optimize": True}),) if lossless else ()) + (("WEBP", {"quality": 82}),):
            stream = io.BytesIO()
            image.save(stream, kind, **options)
            if stream.tell() <= max_bytes or max(image.size) <= 16:
                text = base64.b64encode(stream.getvalue()).decode()
                return Picture(f"data:image/{kind.lower()};base64,{text}", alt, width, height, pixelated)
        image = image.resize((max(1, image.width // 2), max(1, image.height // 2)), Image.Resampling.BOX)


def class_sheets(
    source: DatasetSource, coreset: Coreset, progress: Progress, *, seed: int = 0
) -> tuple[list[SheetRow], list[str]]:
    """Kept and dropped images of up to `MAX_CLASSES` classes, and what could not be read.

    The images of a class are drawn with a generator of their own, so they do not depend on the other classes.
    """
    problems: list[str] = []
    shown = some_classes(source.labels, len(source))
    kept_rows = np.asarray(coreset.indices, dtype=np.int64)
    budget = SHEETS_BYTES // (2 * len(shown))
    first = np.array([members[0] for _, members in shown])
    columns = images_per_side(max((max(image.shape[:2]) for image in readable(source, first, []).values()), default=0))
    rows = []
    with progress.task("images", len(shown), "class") as task:
        for label, members in shown:
            name = source.class_names[label] if source.class_names else "all images"
            kept = np.intersect1d(members, kept_rows, assume_unique=True)
            dropped = np.setdiff1d(members, kept_rows, assume_unique=True)
            generator = np.random.default_rng([seed, label])
            pictures = []
            for word, candidates in (("kept", kept), ("dropped", dropped)):
                count = min(columns, len(candidates))
                chosen = np.sort(generator.choice(candidates, count, replace=False)) if count else candidates
                images = list(readable(source, chosen, problems).values())
                alt = f"{len(images)} {word} images" + (f" of class {name}" if source.class_names else "")
                pictures.append(contact_sheet(images, alt, budget, columns) if images else None)
            rows.append(SheetRow(name, pictures[0], pictures[1], len(kept), len(dropped)))
            task.advance()
    return rows, problems


def some_classes(labels: NDArray[np.int64] | None, num_samples: int) -> list[tuple[int, NDArray[np.int64]]]:
    """Labels of up to `MAX_CLASSES` classes, spread over all of them, with the rows of each."""
    groups = list(group_by_class(labels, num_samples))
    step = max(1.0, len(groups) / MAX_CLASSES)
    return [groups[int(position * step)] for position in range(min(len(groups), MAX_CLASSES))]


def readable(source: DatasetSource, indices: NDArray[np.int64], problems: list[str]) -> dict[int, NDArray[np.uint8]]:
    """The images of `indices` that can be read, by index; what is wrong with the others is added to `problems`."""
    images = {}
    for index in sorted(indices.tolist()):  # going back is dear where a source streams
        try:
            images[index] = source.image(index)
        except DatasetError as error:
            problems.append(f"An image is left out: {error}")
    return images


def sample_picture(path: Path, alt: str) -> Picture:
    """A grid of generated images that a run has written.

    Raises:
        OSError: it is not an image.
    """
    with Image.open(path) as image:
        return encoded(image.convert("RGB"), alt, SAMPLES_BYTES, SAMPLES_WIDTH)
