"""Autoencoder latents against diffusers' own `encode`, with random weights that `save_pretrained` wrote."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from PIL import Image
from sklearn.datasets import load_sample_image

from dcprune.encoders.vae import Vae
from dcprune.errors import OptionError, WeightsError
from dcprune.interfaces import EncoderContext
from dcprune.testing import ShapesDataset, check_encoder, random_autoencoder

Context = Callable[..., EncoderContext]


@pytest.fixture(scope="module")
def model() -> Any:
    return random_autoencoder(scaling_factor=0.3, shift_factor=0.1)


@pytest.fixture(scope="module")
def folder(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vae") / "autoencoder"
    model.save_pretrained(path)
    return path


def photo() -> Image.Image:
    return Image.fromarray(load_sample_image("china.jpg")[50:350, 100:380])


@pytest.mark.parametrize(("pool", "dim"), [("avg4", 64), ("mean", 4), ("flatten", 4 * 8 * 8)])
@torch.inference_mode()
def test_latents_are_those_of_diffusers(pool: Any, dim: int, model: Any, folder: Path, context: Context) -> None:
    encoder = Vae(str(folder), pool=pool, image_size=32)
    info = encoder.load(context(ShapesDataset()))
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = (model.encode(pixels).latent_dist.mode() - 0.1) * 0.3
    expected = {
        "avg4": latents.reshape(2, 4, 4, 2, 4, 2).mean((3, 5)).flatten(1),
        "mean": latents.mean((2, 3)),
        "flatten": latents.flatten(1),
    }[pool]
    assert (info.dim, expected.shape) == (dim, (2, dim))
    torch.testing.assert_close(encoder.encode(pixels), expected, rtol=1e-4, atol=1e-4)


def test_preprocessing(folder: Path, context: Context) -> None:
    encoder = Vae(str(folder), image_size=64)
    encoder.load(context(ShapesDataset()))
    image = photo().resize((80, 64), Image.Resampling.BICUBIC)
    ours = encoder.preprocess(torch.from_numpy(np.array(image)).permute(2, 0, 1)[None])[0]
    expected = torch.from_numpy(np.array(image)[:, 8:72]).permute(2, 0, 1) / 127.5 - 1
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)


def test_contract(folder: Path) -> None:
    check_encoder(Vae, argument=str(folder), settings={"image_size": "16"})
    check_encoder(Vae, argument="org/name", weights=str(folder), settings={"image_size": "16", "pool": "flatten"})


def test_a_pipeline_folder_holds_one(folder: Path, model: Any, tmp_path: Path, context: Context) -> None:
    model.save_pretrained(tmp_path / "pipeline" / "vae")
    info = Vae(str(tmp_path / "pipeline"), image_size=16).load(context(ShapesDataset()))
    assert info.weights_sha256 == Vae(str(folder), image_size=16).load(context(ShapesDataset())).weights_sha256


def test_repositories_of_the_hub(model: Any, tmp_path: Path, context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    encoder = Vae("org/name@v1/vae", image_size=16)
    files = encoder.downloads(tmp_path / "cache")
    assert [file.url for file in files] == [
        "hf://org/name@v1/vae/config.json",
        "hf://org/name@v1/vae/diffusion_pytorch_model.safetensors",
    ]
    with pytest.raises(WeightsError, match=r"HF_HUB_OFFLINE.*org/name/resolve/v1/vae/config\.json"):
        encoder.load(context(ShapesDataset()))
    model.save_pretrained(files[0].path.parent)
    assert encoder.load(context(ShapesDataset())).weights == "hub org/name@v1/vae"
    assert Vae("stabilityai/sd-vae-ft-mse").downloads(tmp_path)[0].url == "hf://stabilityai/sd-vae-ft-mse/config.json"


def test_settings_out_of_range(folder: Path, context: Context) -> None:
    with pytest.raises(OptionError, match="Unknown pool 'max'"):
        Vae(str(folder), pool="max")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="image_size=0"):
        Vae(str(folder), image_size=0)
    with pytest.raises(OptionError, match="neither a folder nor a repository"):
        Vae("nowhere")
    for pool, size, step in (("avg4", 24, 16), ("flatten", 30, 4)):
        with pytest.raises(OptionError, match=f"image_size={size} of vae is not a multiple of {step} pixels"):
            Vae(str(folder), pool=pool, image_size=size).load(context(ShapesDataset()))  # type: ignore[arg-type]


def test_folders_that_do_not_fit(folder: Path, tmp_path: Path, context: Context) -> None:
    def message(path: Path) -> str:
        with pytest.raises(WeightsError) as caught:
            Vae("org/name", weights=str(path), image_size=16).load(context(ShapesDataset()))
        return str(caught.value)

    assert "does not exist: a folder of an AutoencoderKL" in message(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    assert "has no config.json" in message(tmp_path / "empty")
    (tmp_path / "file").write_text("text")
    assert "is not a folder" in message(tmp_path / "file")
    UNet2DModel(
        sample_size=8,
        block_out_channels=(4,),
        attention_head_dim=None,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        norm_num_groups=2,
    ).save_pretrained(tmp_path / "unet")
    assert "holds UNet2DModel, not AutoencoderKL" in message(tmp_path / "unet")
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.json").write_bytes((folder / "config.json").read_bytes())
    assert "has no diffusion_pytorch_model.safetensors" in message(tmp_path / "bare")
    (tmp_path / "bare" / "diffusion_pytorch_model.safetensors").write_bytes(b"damaged")
    assert "does not load as AutoencoderKL" in message(tmp_path / "bare")
    (tmp_path / "bare" / "config.json").write_text("{")
    assert "cannot be read" in message(tmp_path / "bare")


@torch.inference_mode()
def test_tensors_that_are_missing(model: Any, tmp_path: Path, context: Context) -> None:
    from safetensors.torch import load_file, save_file

    model.save_pretrained(tmp_path / "part")
    path = tmp_path / "part" / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    del state["encoder.conv_in.weight"]
    save_file(state, path)
    with pytest.raises(WeightsError, match=r"encoder\.conv_in\.weight"):
        Vae(str(tmp_path / "part"), image_size=16).load(context(ShapesDataset()))
