from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dcprune.backends import pixels as pixels_module
from dcprune.backends.ddpm import Ddpm
from dcprune.backends.pixels import ResidentPixels, fit_square, pad_to_multiple, standard_deviation, to_uint8
from dcprune.errors import DatasetError
from dcprune.interfaces import DatasetSource
from dcprune.testing import ShapesDataset, preparation_context

CPU = torch.device("cpu")


def test_small_images_are_padded_with_black_to_the_networks_multiple(fashion: DatasetSource) -> None:
    data = Ddpm(block_out_channels=(32, 32, 32, 32), norm_num_groups=32).prepare(fashion, preparation_context())
    assert data.sample_shape == (1, 32, 32)
    for row in range(3):
        np.testing.assert_array_equal(data.images(torch.tensor([row]))[0, 0, 2:30, 2:30], fashion.image(row)[..., 0])
    border = data.pixels.clone()
    border[..., 2:30, 2:30] = 0
    assert not border.any()


def test_a_resolution_resizes_and_crops_the_centre() -> None:
    images = torch.zeros(1, 1, 16, 48, dtype=torch.uint8)
    images[..., 16:32] = 200  # the middle square, in an image three squares wide
    cropped = fit_square(images, 8)
    assert cropped.shape == (1, 1, 8, 8)
    assert bool((cropped[..., 1:-1] == 200).all())
    assert bool((cropped[..., 0] > 100).all())
    assert fit_square(images[..., 16:32], 32).float().mean() == 200
    exact = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    assert fit_square(exact, 8) is exact


def test_resizing_is_antialiased() -> None:
    stripes = torch.zeros(1, 1, 32, 32, dtype=torch.uint8)
    stripes[..., ::2] = 255
    small = fit_square(stripes, 8).float()
    assert float(small.std()) < 12  # without antialiasing, stripes of this width alias to full contrast
    assert float(small.mean()) == pytest.approx(127.5, abs=3)


def test_padding_is_balanced() -> None:
    padded = pad_to_multiple(torch.ones(1, 1, 5, 8, dtype=torch.uint8), 4)
    assert padded[0, 0, :, 0].tolist() == [0, 1, 1, 1, 1, 1, 0, 0]


def test_pixels_survive_the_way_there_and_back(data: ResidentPixels) -> None:
    rows = torch.tensor([5, 2, 2])
    flip = torch.tensor([False, False, True])
    x0 = data.x0(rows, flip, torch.Generator())
    assert x0.dtype == torch.float32
    assert -1 <= float(x0.min()) < float(x0.max()) <= 1
    assert torch.equal(to_uint8(x0[:2]), data.images(rows[:2]))
    assert torch.equal(x0[2], x0[1].flip(-1))


class Single(ShapesDataset):
    """Images one by one, as from files; remembers the order in which they were asked for."""

    def __init__(self, *, streaming: bool, **settings: int) -> None:
        super().__init__(**settings)
        self.hidden = self.array
        self.array: Any = None
        self.streaming = streaming
        self.asked: list[int] = []

    def __len__(self) -> int:
        return len(self.hidden)

    def image(self, index: int) -> NDArray[np.uint8]:
        self.asked.append(index)
        image: NDArray[np.uint8] = self.hidden[index]
        return image


@pytest.mark.parametrize("resolution", [None, 8])
@pytest.mark.parametrize("streaming", [False, True])
def test_images_that_lie_in_memory_and_images_one_by_one_are_prepared_alike(
    small: dict[str, Any], resolution: int | None, streaming: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pixels_module, "_BLOCK", 7)
    backend = Ddpm(**{**small, "resolution": resolution})
    together: Any = ShapesDataset(num_samples=24, size=18)
    single: Any = Single(num_samples=24, size=18, streaming=streaming)
    expected, found = (backend.prepare(each, preparation_context()) for each in (together, single))
    assert torch.equal(found.pixels, expected.pixels)
    assert torch.equal(found.labels, expected.labels)
    assert sorted(single.asked) == list(range(24))
    if streaming:
        assert single.asked == sorted(single.asked)


def test_images_that_cannot_be_written_are_copied_without_a_warning(small: dict[str, Any]) -> None:
    together: Any = ShapesDataset(num_samples=4)
    single: Any = Single(num_samples=4, streaming=False)
    expected = Ddpm(**small).prepare(together, preparation_context())
    together.array.setflags(write=False)
    single.hidden.setflags(write=False)
    torch.set_warn_always(True)  # it warns once in a process
    try:
        found = [Ddpm(**small).prepare(each, preparation_context()) for each in (together, single)]
    finally:
        torch.set_warn_always(False)
    assert all(torch.equal(each.pixels, expected.pixels) for each in found)


def test_images_of_many_sizes_need_a_resolution(small: dict[str, Any]) -> None:
    class Mixed(Single):
        def image(self, index: int) -> NDArray[np.uint8]:
            return super().image(index)[: 16 - 4 * index]

    mixed: Any = Mixed(num_samples=3, streaming=False)
    with pytest.raises(DatasetError, match=r"Image 1 is 16x12 with 3 channels.*resolution"):
        Ddpm(**{**small, "resolution": None}).prepare(mixed, preparation_context())
    assert Ddpm(**small).prepare(mixed, preparation_context()).sample_shape == (3, 8, 8)


def test_the_standard_deviation_is_that_of_the_pixels() -> None:
    pixels = torch.randint(0, 256, (50, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    assert standard_deviation(pixels) == pytest.approx(float((pixels.double() / 127.5 - 1).std(correction=0)))
    assert standard_deviation(torch.full((2, 1, 4, 4), 7, dtype=torch.uint8)) == 0
