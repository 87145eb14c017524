"""What a run leaves behind while it goes on: loss lines, checkpoints, sample grids."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors import SafetensorError

from dcprune import formats
from dcprune.errors import StorageError
from dcprune.training import checkpoint
from dcprune.training.trackers import Follower

METRICS_FILE = "metrics.jsonl"
GRID_COLUMNS = "dcprune:columns"  # keyword of the text in a grid's PNG file that says how many images are in a row

DrawImages = Callable[[torch.nn.Module], torch.Tensor]


class RunFolder:
    """The files of one run.

    Args:
        path: the run folder; made with the first file, so that a run that is refused leaves nothing.
        keep_checkpoints: newest checkpoints that are kept.
        draw_images: `(EMA model) -> uint8 [R * C, channels, H, W]`, rows of images one after the other; None draws no
            grids.
        columns: images in a row of the grid.
        on_checkpoint: called when a checkpoint has been saved.
        followers: who else is told of loss lines and grids; closed by the owner of the run.
    """

    def __init__(
        self,
        path: Path,
        *,
        keep_checkpoints: int,
        draw_images: DrawImages | None = None,
        columns: int = 1,
        on_checkpoint: Callable[[], None] = lambda: None,
        followers: Sequence[Follower] = (),
    ) -> None:
        self.path = path
        self.keep_checkpoints = keep_checkpoints
        self.draw_images = draw_images
        self.columns = columns
        self.on_checkpoint = on_checkpoint
        self.followers = followers

    def log(self, line: Mapping[str, Any]) -> None:
        """Append a line to `metrics.jsonl`.

        Raises:
            StorageError: it cannot be written.
        """
        path = self.path / METRICS_FILE
        with written(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a") as stream:
                stream.write(json.dumps(line) + "\n")
        for follower in self.followers:
            follower.log(line)

    def rewind(self, step: int) -> None:
        """Drop lines that a resumed run will write again, one that was cut off, and checkpoints that are too many."""
        checkpoint.tidy(self.path, self.keep_checkpoints)
        path = self.path / METRICS_FILE
        if path.exists():
            kept = [line for line in path.read_text().splitlines() if _step_of(line) <= step]
            formats.atomic_write(path, "".join(f"{line}\n" for line in kept).encode(), overwrite=True)

    def checkpoint(self, position: checkpoint.Position, learner: checkpoint.Learner) -> None:
        """Write a checkpoint and tell the owner of the run.

        Raises:
            StorageError: it cannot be written; the checkpoints before it are untouched.
        """
        path = checkpoint.save(self.path, position, learner, self.keep_checkpoints)
        with written(path.parent.parent):
            self.on_checkpoint()

    def sample_grid(self, model: torch.nn.Module, step: int) -> None:
        """Write `samples/step-XXXXXXXX.png`.

        Raises:
            StorageError: it cannot be written.
        """
        if self.draw_images is None:
            return
        path = self.path / "samples" / f"step-{step:08d}.png"
        picture = grid(self.draw_images(model), self.columns)
        with written(path):
            formats.atomic_write(path, png_bytes(picture, {GRID_COLUMNS: str(self.columns)}), overwrite=True)
        for follower in self.followers:
            follower.sample_grid(picture, step)


@contextmanager
def written(path: Path) -> Iterator[None]:
    """Say what could not be written.

    Raises:
        StorageError: whatever was written within it, and was not.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise StorageError(f"{path} cannot be written: {reason}. Make room and continue with --resume.") from error


def is_leftover(path: Path) -> bool:
    """Whether a process that was killed left this file or folder half-written."""
    return path.name.startswith(".") and path.suffix == ".tmp"


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed process has left half-written in a run folder."""
    for place in (folder, folder / "samples"):
        for path in filter(is_leftover, place.iterdir() if place.exists() else ()):
            formats.remove(path)


def grid(images: torch.Tensor, columns: int) -> torch.Tensor:
    """Images uint8 [N, C, H, W] laid out in rows of `columns`: uint8 [C, rows * H, columns * W], the rest black."""
    count, channels, height, width = images.shape
    rows = math.ceil(count / columns)
    padded = images.new_zeros((rows * columns, channels, height, width))
    padded[:count] = images
    tiles = padded.view(rows, columns, channels, height, width).permute(2, 0, 3, 1, 4)
    return tiles.reshape(channels, rows * height, columns * width)


def png_bytes(image: torch.Tensor, texts: Mapping[str, str] | None = None) -> bytes:
    """An image uint8 [C, H, W], grey or RGB, as a PNG file with texts by keyword."""
    info = PngInfo()
    for keyword, words in (texts or {}).items():
        info.add_text(keyword, words)
    pixels = image.permute(1, 2, 0).contiguous().cpu().numpy()
    stream = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else np.ascontiguousarray(pixels)).save(
        stream, "PNG", pnginfo=info
    )
    return stream.getvalue()


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf
