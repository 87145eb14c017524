"""The baseline space, by hand."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image

from dcprune.encoders.pixels import Pixels
from dcprune.errors import OptionError
from dcprune.interfaces import EncoderContext
from dcprune.testing import ShapesDataset, check_encoder

Context = Callable[..., EncoderContext]


def test_contract(tmp_path: Path) -> None:
    check_encoder(Pixels)
    check_encoder(Pixels, settings={"image-size": "7"})
    assert Pixels().downloads(tmp_path) == []


def test_images_of_that_size_are_kept(context: Context) -> None:
    data = ShapesDataset(size=32)
    encoder = Pixels()
    assert encoder.load(context(data)).dim == 3072
    found = encoder.encode(encoder.preprocess(torch.from_numpy(data.array).permute(0, 3, 1, 2)))
    expected = data.array.transpose(0, 3, 1, 2).reshape(len(data), -1) / 255
    assert np.allclose(found.numpy(), expected, atol=1e-6)


def test_larger_images_are_averaged() -> None:
    image = load_sample_image("china.jpg")[20:260, 30:270]
    found = Pixels(image_size=32).preprocess(torch.from_numpy(image.copy()).permute(2, 0, 1)[None])[0]
    expected = np.array(Image.fromarray(image).resize((32, 32), Image.Resampling.BILINEAR)) / 255
    assert np.abs(found.permute(1, 2, 0).numpy() - expected).max() < 2.01 / 255


def test_settings() -> None:
    with pytest.raises(OptionError, match=r"has no weights, but --weights x\.pt"):
        Pixels(weights="x.pt")
    with pytest.raises(OptionError, match="image_size=0"):
        Pixels(image_size=0)
