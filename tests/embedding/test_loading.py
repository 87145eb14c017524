"""How images are read: in memory, from files, and from sources that are cheap only in order."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

import dcprune
from dcprune.datasets.decode import decode
from dcprune.embedding import loader
from dcprune.errors import DatasetError, OptionError
from dcprune.testing import ShapesDataset

CPU = torch.device("cpu")
OPTIONS: dict[str, Any] = {"encoder": "pixels", "settings": {"image_size": 16}, "device": "cpu", "batch_size": 8}


class Files:
    """JPEG files that lie in memory; a tape can be read in ascending order alone."""

    uri, split, encoded = "files", "train", True
    class_names: tuple[str, ...] = ()
    labels, captions, array = None, None, None

    def __init__(self, contents: Sequence[bytes], *, streaming: bool = False) -> None:
        self.contents, self.streaming, self.position = contents, streaming, -1
        self.ids = [f"{number:03d}.jpg" for number in range(len(contents))]
        self.sizes = np.array([len(content) for content in contents], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.contents)

    def image(self, index: int) -> NDArray[np.uint8]:
        return decode(self.content(index), self.ids[index])

    def content(self, index: int) -> bytes:
        if self.streaming:
            assert index > self.position or index == 0, "the tape was wound back by a piece"
            self.position = index
        return self.contents[index]


def jpegs(count: int, side: int) -> list[bytes]:
    """Smooth colour images of unlike widths."""
    files = []
    for number in range(count):
        small = np.random.default_rng(number).integers(0, 256, (6, 6, 3), dtype=np.uint8)
        stream = io.BytesIO()
        Image.fromarray(small).resize((side + 8 * (number % 3), side)).save(stream, "JPEG", quality=95)
        files.append(stream.getvalue())
    return files


def test_a_tape_is_read_in_order_and_decoded_by_threads() -> None:
    contents = jpegs(40, 64)
    files = dcprune.embed(Files(contents), num_workers=3, **OPTIONS)
    for num_workers in (0, 3):
        tape = dcprune.embed(Files(contents, streaming=True), num_workers=num_workers, **OPTIONS)
        assert np.array_equal(tape.embeddings[:], files.embeddings[:])


def test_large_files_are_decoded_reduced() -> None:
    source = Files(jpegs(3, 200))
    rows = np.arange(3)
    whole, reduced = (
        [tuple(image.shape) for image in loader(source, CPU, shorter_side=side).decode(rows) if hasattr(image, "shape")]
        for side in (None, 16)
    )
    assert whole == [(200, 200, 3), (200, 208, 3), (200, 216, 3)]
    assert len(reduced) == 3
    assert all(32 <= min(height, width) < 100 for height, width, _ in reduced)
    full = dcprune.embed(source, decode="full", **OPTIONS).embeddings[:]
    scaled = dcprune.embed(source, **OPTIONS).embeddings[:]
    assert not np.array_equal(full, scaled)
    assert np.abs(full - scaled).mean() < 1.5 / 255


def test_a_file_that_cannot_be_decoded_is_an_error_in_its_place() -> None:
    contents = jpegs(4, 32)
    contents[2] = contents[2][:100]
    found = loader(Files(contents), CPU).decode(np.array([3, 2, 1]))
    assert [isinstance(each, DatasetError) for each in found] == [False, True, False]
    assert "002.jpg" in str(found[1])
    embeddings = dcprune.embed(Files(contents, streaming=True), on_error="skip", **OPTIONS)
    assert [(each.index, each.id) for each in embeddings.skipped] == [(2, "002.jpg")]


def test_images_in_memory_come_as_one_tensor() -> None:
    data = ShapesDataset()
    found = loader(data, CPU).decode(np.array([5, 0, 5]))
    assert isinstance(found, torch.Tensor)
    assert np.array_equal(found.numpy(), data.array[[5, 0, 5]])


def test_images_that_must_not_be_written_to_are_read_without_a_warning() -> None:
    data = ShapesDataset()
    expected = dcprune.embed(data, **OPTIONS).embeddings[:]
    data.array.setflags(write=False)
    assert np.array_equal(dcprune.embed(data, **OPTIONS).embeddings[:], expected)


def test_decoding_on_a_gpu_needs_one() -> None:
    with pytest.raises(OptionError, match="needs a CUDA device and image files"):
        dcprune.embed(Files(jpegs(2, 32)), decode="gpu", **OPTIONS)
