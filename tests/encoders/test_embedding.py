"""Running images through an encoder: order, sizes, batches, workers, errors; and the `embed` function."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

import dcprune
from dcprune import formats
from dcprune.artifacts import EncoderInfo
from dcprune.embedding import encode_images, load_encoder
from dcprune.encoders.resnet import ResNet18
from dcprune.errors import DatasetError, MissingInput, OptionError, UnknownName
from dcprune.interfaces import Download, EncoderChoice, EncoderContext
from dcprune.sources import identify
from dcprune.testing import ShapesDataset

CPU: dict[str, Any] = {"device": torch.device("cpu"), "dtype": torch.float32}
SMALL: dict[str, Any] = {"width": 8, "epochs": 1}


class MeanColour:
    """An encoder that can be checked by hand: the mean of every channel, whatever the size of the image."""

    shorter_side: int | None = None
    compilable = False

    def __init__(self, *, weights: str | None = None) -> None:
        self.batches: list[int] = []

    def downloads(self, cache_dir: Path) -> list[Download]:
        return []

    def load(self, context: EncoderContext) -> EncoderInfo:
        return EncoderInfo(name="mean", dim=3, weights="none", weights_sha256=None, layer="mean", preprocessing={})

    def preprocess(self, images: torch.Tensor) -> torch.Tensor:
        return images.float().mean((2, 3), keepdim=True).expand(-1, 3, 2, 2)

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        self.batches.append(len(pixels))
        return pixels.mean((2, 3))


def mixed(count: int) -> list[NDArray[np.uint8]]:
    """Images of several sizes in no order."""
    rng = np.random.default_rng(0)
    sizes = rng.choice([3, 5, 8], (count, 2))
    return [rng.integers(0, 256, (int(h), int(w), 3), dtype=np.uint8) for h, w in sizes]


@pytest.mark.parametrize("num_workers", [0, 1, 3])
@pytest.mark.parametrize("batch_size", [1, 7, 20, 64])
def test_rows_follow_the_indices(batch_size: int, num_workers: int) -> None:
    images = mixed(20)
    indices = np.random.default_rng(1).permutation(20)[:17]
    encoder = MeanColour()
    found = encode_images(encoder, images.__getitem__, indices, batch_size=batch_size, num_workers=num_workers, **CPU)
    expected = np.stack([images[index].mean((0, 1)) for index in indices])
    assert found.dtype == np.float32
    assert np.allclose(found, expected, atol=1e-3)
    full = min(batch_size, 17)
    assert encoder.batches == [full] * -(-17 // full)  # every batch has one shape


@pytest.mark.parametrize("channels", [1, 3])
def test_network_gives_the_same_rows_in_other_batches(context: Callable[..., EncoderContext], channels: int) -> None:
    data = ShapesDataset(num_samples=30, channels=channels)
    encoder = ResNet18(**SMALL)
    encoder.load(context(data))
    indices = np.arange(30)
    whole = encode_images(encoder, data.image, indices, batch_size=30, num_workers=2, **CPU)
    for batch_size, num_workers in ((1, 0), (7, 3)):
        parts = encode_images(encoder, data.image, indices, batch_size=batch_size, num_workers=num_workers, **CPU)
        assert np.allclose(parts, whole, rtol=1e-4, atol=1e-5)
    backwards = encode_images(encoder, data.image, indices[::-1].copy(), batch_size=8, **CPU)
    assert np.allclose(backwards[::-1], whole, rtol=1e-4, atol=1e-5)


def test_progress_counts_every_image(recorder: Any) -> None:
    images = mixed(11)
    encode_images(
        MeanColour(), images.__getitem__, np.arange(11), batch_size=4, progress=recorder, description="look", **CPU
    )
    assert (recorder.tasks, recorder.done) == (["look"], 11)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_error_of_one_image_stops_everything(num_workers: int) -> None:
    loaded: set[int] = set()

    def load(index: int) -> NDArray[np.uint8]:
        loaded.add(index)
        if index == 5:
            raise DatasetError("image 5 is broken")
        return np.zeros((2, 2, 3), dtype=np.uint8)

    before = set(threading.enumerate())
    with pytest.raises(DatasetError, match="image 5"):
        encode_images(MeanColour(), load, np.arange(10_000), batch_size=4, num_workers=num_workers, **CPU)
    assert len(loaded) < 100
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize(
    ("count", "batch_size", "num_workers", "reason"),
    [(0, 4, 1, "no images"), (4, 0, 1, "batches of 0"), (4, 4, -1, "with -1 workers")],
)
def test_numbers_out_of_range(count: int, batch_size: int, num_workers: int, reason: str) -> None:
    with pytest.raises(OptionError, match=reason):
        encode_images(
            MeanColour(), mixed(4).__getitem__, np.arange(count), batch_size=batch_size, num_workers=num_workers, **CPU
        )


def test_load_encoder_converts_settings(context: Callable[..., EncoderContext]) -> None:
    choice = EncoderChoice("resnet18", {"width": "8", "epochs": "1", "image-size": "20"})
    _, info = load_encoder(choice, context(ShapesDataset()))
    assert (info.dim, info.settings["image_size"]) == (64, 20)
    with pytest.raises(UnknownName, match=r"'widht'\. Did you mean 'width'"):
        load_encoder(EncoderChoice("resnet18", {"widht": "4"}), context(ShapesDataset()))
    with pytest.raises(OptionError, match="width='wide'"):
        load_encoder(EncoderChoice("resnet18", {"width": "wide"}), context(ShapesDataset()))


def test_embed(recorder: Any) -> None:
    data = ShapesDataset(num_samples=30)
    options: dict[str, Any] = {"settings": SMALL, "device": "cpu", "dtype": "fp32"}
    embeddings = dcprune.embed(data, "resnet18", progress=recorder, **options)
    assert embeddings.embeddings.shape == (30, 64)
    assert embeddings.labels is not None
    assert data.labels is not None
    assert np.array_equal(embeddings.labels, data.labels)
    assert np.array_equal(embeddings.indices, np.arange(30))
    assert embeddings.ids is None
    assert embeddings.dataset == identify(data)
    assert embeddings.provenance.config == {
        "dataset": data.uri,
        "encoder": "resnet18",
        "weights": None,
        "set": embeddings.encoder.settings,
        "split": "train",
        "pseudo_classes": None,
        "on_error": "fail",
        "dtype": "fp32",
        "store": "fp32",
        "decode": "scaled",
        "compile": "off",
        "seed": 0,
        "batch_size": 256,
    }
    again = dcprune.embed(data, "resnet18", num_workers=0, **{**options, "settings": embeddings.encoder.settings})
    assert again.header == embeddings.header
    assert np.array_equal(again.embeddings[:], embeddings.embeddings[:])


def test_embed_a_folder_of_unlike_images(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(8):
        folder = tmp_path / "images" / ("cat", "dog")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (20 + number, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    embeddings = dcprune.embed(tmp_path / "images", settings=SMALL, device="cpu", dtype="fp32", batch_size=3)
    assert embeddings.ids is not None
    assert embeddings.ids[:2] == ("cat/0.png", "cat/2.png")
    assert embeddings.dataset.class_names == ("cat", "dog")
    formats.write_embeddings(embeddings, tmp_path / "e.safetensors")
    assert formats.read_embeddings(tmp_path / "e.safetensors").ids == embeddings.ids
    (tmp_path / "images" / "cat" / "9.jpg").write_bytes(b"broken")
    with pytest.raises(DatasetError, match=r"cat.9\.jpg"):
        dcprune.embed(tmp_path / "images", settings=SMALL, device="cpu", dtype="fp32")


def test_weights_file_is_an_input_of_the_artifact(tmp_path: Path) -> None:
    data = ShapesDataset()
    path = tmp_path / "weights.pt"
    from dcprune.encoders.residual import initialised

    torch.save(initialised(4, "cifar", 0, seed=0).state_dict(), path)
    embeddings = dcprune.embed(data, weights=str(path), device="cpu", dtype="fp32")
    assert [(each.path, each.sha256) for each in embeddings.provenance.inputs] == [(str(path), formats.sha256(path))]
    assert embeddings.encoder.weights_sha256 == formats.sha256(path)


def test_embed_refuses_what_it_cannot_find() -> None:
    with pytest.raises(UnknownName, match=r"'resnet81'.*'resnet18'"):
        dcprune.embed(ShapesDataset(), "resnet81")
    with pytest.raises(MissingInput, match="nowhere"):
        dcprune.embed("./nowhere")
    with pytest.raises(OptionError, match="fp8"):
        dcprune.embed(ShapesDataset(), dtype="fp8")
