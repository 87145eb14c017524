"""Resizing on tensors against PIL, which the libraries' own transforms use."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from torchvision import transforms

from dcprune.encoders.preprocessing import Preprocessing

CPU = torch.device("cpu")


def images() -> list[np.ndarray[Any, Any]]:
    """A photo, a small part of one, and noise, which is the worst case."""
    photo = load_sample_image("flower.jpg")
    noise = np.random.default_rng(0).integers(0, 256, (300, 280, 3), dtype=np.uint8)
    return [photo, np.ascontiguousarray(photo[100:130, 200:240]), noise]


def batch(image: np.ndarray[Any, Any]) -> torch.Tensor:
    return torch.from_numpy(image.copy()).permute(2, 0, 1)[None]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [32, 224, 299])
def test_pixels_are_those_of_pil(interpolation: Any, size: int) -> None:
    for image in images():
        theirs = transforms.Compose(
            [
                transforms.Resize(size, transforms.InterpolationMode(interpolation)),
                transforms.CenterCrop(size - 8),
            ]
        )(Image.fromarray(image))
        ours = Preprocessing(size - 8, size, CPU, interpolation=interpolation).resized(batch(image))
        assert ours.dtype == torch.uint8
        difference = np.abs(ours[0].permute(1, 2, 0).numpy().astype(int) - np.asarray(theirs).astype(int))
        assert difference.max() <= 2
        assert (difference > 0).mean() < 0.1


@pytest.mark.parametrize("fit", ["shorter", "longer", "squash"])
def test_normalisation_and_grey(fit: Any) -> None:
    """Levels 0 and 255 end at (0 - mean) / std and (1 - mean) / std; grey is three equal channels."""
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 2.0)
    prepare = Preprocessing(8, 8, CPU, mean, std, fit=fit, fill=(255, 255, 255))
    white = torch.full((2, 1, 20, 30), 255, dtype=torch.uint8)
    for image, level in ((white, 1.0), (white * 0, 0.0)):
        pixels = prepare(image)
        assert (pixels.dtype, pixels.shape) == (torch.float32, (2, 3, 8, 8))
        for channel in range(3):
            found = pixels[:, channel, 4]
            assert torch.allclose(found, torch.full_like(found, (level - mean[channel]) / std[channel]), atol=1e-6)
    noise = torch.randint(0, 256, (2, 1, 20, 30), dtype=torch.uint8)
    torch.testing.assert_close(prepare(noise), prepare(noise.expand(-1, 3, -1, -1)))


def test_borders_of_the_longer_fit() -> None:
    prepare = Preprocessing(16, 16, CPU, (0.0,) * 3, (1.0,) * 3, fit="longer", fill=(51, 102, 153))
    pixels = prepare(torch.full((1, 3, 10, 40), 255, dtype=torch.uint8))[0]
    assert torch.allclose(pixels[:, 6:10], torch.ones(3, 4, 16))
    for rows in (slice(0, 6), slice(10, 16)):
        assert torch.allclose(pixels[:, rows], torch.tensor([0.2, 0.4, 0.6]).view(3, 1, 1).expand(3, 6, 16))
    assert prepare(torch.zeros(1, 3, 1, 5000, dtype=torch.uint8)).shape == (1, 3, 16, 16)
    assert prepare.shorter_side is None


def test_what_is_written_down() -> None:
    assert Preprocessing(8, 9, CPU, interpolation="bicubic").describe() == {
        "resize": 9,
        "crop": 8,
        "interpolation": "bicubic, antialiased, shorter side",
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "grey": "repeated to 3 channels",
    }


@pytest.mark.gpu
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [32, 224, 299])
def test_a_gpu_gives_the_same_pixels(interpolation: Any, size: int) -> None:
    for image in images():
        cpu, gpu = (
            Preprocessing(size, size, torch.device(name), interpolation=interpolation) for name in ("cpu", "cuda")
        )
        difference = gpu.resized(batch(image).cuda()).cpu().int() - cpu.resized(batch(image)).int()
        assert difference.abs().max() <= 2
