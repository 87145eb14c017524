"""Activations of small U-Nets against hooks on diffusers' own forward pass."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DModel

from dcprune.backends.ddpm import Ddpm
from dcprune.backends.pixels import pad_to_multiple
from dcprune.encoders.ddae import Ddae, truncate
from dcprune.errors import OptionError, WeightsError
from dcprune.interfaces import EncoderContext
from dcprune.testing import ShapesDataset, check_encoder, preparation_context

Context = Callable[..., EncoderContext]


def unet(**options: Any) -> Any:
    """Three levels of which the middle one has attention, with two blocks down and three up: nine blocks."""
    settings: dict[str, Any] = {
        "sample_size": 16,
        "block_out_channels": (8, 16, 24),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 2,
        "norm_num_groups": 4,
        "dropout": 0.3,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = UNet2DModel(**{**settings, **options})
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ddae") / "model"
    unet().save_pretrained(path / "unet")
    DDPMScheduler(beta_schedule="squaredcos_cap_v2").save_pretrained(path / "scheduler")
    return path


@pytest.mark.parametrize("block", range(1, 10))
@torch.inference_mode()
def test_activations_are_those_of_the_whole_network(block: int, folder: Path, context: Context) -> None:
    model = UNet2DModel.from_pretrained(folder / "unet").eval()
    up_block, number = model.up_blocks[(block - 1) // 3], (block - 1) % 3
    has_attention = (block - 1) // 3 == 1
    module = up_block.attentions[number] if has_attention else up_block.resnets[number]
    activations: list[torch.Tensor] = []
    module.register_forward_hook(lambda *args: activations.append(args[2]))
    pixels = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    noise = torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(5)).expand(3, -1, -1, -1)
    timesteps = torch.full((3,), 10)
    x_t = DDPMScheduler.from_pretrained(folder / "scheduler").add_noise(pixels, noise, timesteps)
    model(x_t, timesteps)
    encoder = Ddae(weights=str(folder), block=block, noise_seed=5)
    info = encoder.load(context(ShapesDataset()))
    expected = activations[0].mean((2, 3))
    assert (info.dim, expected.shape[1]) == ((24, 16, 8)[(block - 1) // 3],) * 2
    assert info.layer == f"up_blocks[{(block - 1) // 3}].resnets[{number}], globally average-pooled"
    torch.testing.assert_close(encoder.encode(pixels), expected, rtol=1e-4, atol=1e-5)


def test_the_sixth_block_of_the_papers_network(context: Context) -> None:
    """256 channels at 8 x 8 of a 32 x 32 image, in the network that `dcprune train --preset paper` builds."""
    backend = Ddpm(**Ddpm.presets["paper"].model)
    with torch.device("meta"):
        model: Any = backend.build(num_classes=0, sample_shape=(3, 32, 32), seed=0)
    parts = list(model.up_blocks)
    assert truncate(model, 6) == "up_blocks[1].resnets[2]"
    assert list(model.up_blocks) == parts[:2]
    with torch.inference_mode():
        maps = model(torch.zeros(1, 3, 32, 32, device="meta"), torch.zeros(1, device="meta"), return_dict=False)[0]
    assert maps.shape == (1, 256, 8, 8)


@torch.inference_mode()
def test_a_run_that_padded_its_images_pads_them(context: Context, tmp_path: Path) -> None:
    """Grey images of 14 pixels in a run without a resolution of its own, as the ddpm backend trains it."""
    backend = Ddpm(block_out_channels=(8, 16, 24), layers_per_block=2, attention_levels=(), norm_num_groups=4)
    model = backend.build(num_classes=0, sample_shape=(1, 16, 16), seed=0)
    (tmp_path / "run" / "model").mkdir(parents=True)
    backend.save(model, tmp_path / "run" / "model")
    record = {"format": "dcprune.run/1", "backend": "ddpm", "model": backend.settings(), "dataset": {"uri": "shapes"}}
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    data = ShapesDataset(size=14, channels=1)
    images = torch.from_numpy(data.array).permute(0, 3, 1, 2)
    expected = backend.prepare(data, preparation_context())
    flips = torch.zeros(len(data), dtype=torch.bool)
    for path in ("run", "run/model", "run/model/unet"):
        encoder = Ddae(weights=str(tmp_path / path))
        info = encoder.load(context(data))
        assert info.details == {"trained_on": "shapes"}
        found = encoder.preprocess(images)
        assert torch.equal(found[:, :1], expected.x0(torch.arange(len(data)), flips, torch.Generator()))
    assert torch.equal(found[:, :1], pad_to_multiple(images, 4).float().div(127.5).sub(1))
    assert encoder.preprocess(torch.zeros(1, 3, 40, 50, dtype=torch.uint8)).shape == (1, 3, 16, 16)
    assert encoder.encode(found).shape == (len(data), info.dim)


@torch.inference_mode()
def test_an_embedding_does_not_depend_on_its_place(folder: Path, context: Context) -> None:
    """One draw of noise for all images: the same image twice is the same embedding."""
    encoder = Ddae(weights=str(folder))
    encoder.load(context(ShapesDataset()))
    pixels = torch.rand(1, 3, 16, 16) * 2 - 1
    torch.testing.assert_close(encoder.encode(pixels.expand(5, -1, -1, -1)), encoder.encode(pixels).expand(5, -1))


def test_contract(folder: Path, tmp_path: Path) -> None:
    check_encoder(Ddae, weights=str(folder))
    unet(in_channels=1, out_channels=1).save_pretrained(tmp_path / "grey")
    check_encoder(Ddae, weights=str(tmp_path / "grey"), settings={"block": "9", "timestep": "1000"})
    assert Ddae(weights="x").downloads(tmp_path) == []


@torch.inference_mode()
def test_a_conditional_run_needs_its_null_class(tmp_path: Path, context: Context) -> None:
    model = unet(num_class_embeds=4)
    model.save_pretrained(tmp_path / "conditional" / "unet")
    with pytest.raises(WeightsError, match=r"class-conditional.*--unconditional.*null_class=true"):
        Ddae(weights=str(tmp_path / "conditional")).load(context(ShapesDataset()))
    encoder = Ddae(weights=str(tmp_path / "conditional"), null_class=True, block=9, timestep=1)
    encoder.load(context(ShapesDataset()))
    activations: list[torch.Tensor] = []
    model.up_blocks[2].resnets[2].register_forward_hook(lambda *args: activations.append(args[2]))
    pixels = torch.rand(1, 3, 16, 16) * 2 - 1
    noise = torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(0))[None]
    step = torch.zeros(1, dtype=torch.long)
    model(DDPMScheduler().add_noise(pixels, noise, step), step, torch.tensor([3]))
    torch.testing.assert_close(encoder.encode(pixels), activations[0].mean((2, 3)), rtol=1e-4, atol=1e-5)


def test_what_cannot_be_embedded_with(folder: Path, tmp_path: Path, context: Context) -> None:
    def refused(kind: type[Exception], weights: Path, **settings: Any) -> str:
        with pytest.raises(kind) as caught:
            Ddae(weights=str(weights), **settings).load(context(ShapesDataset()))
        return str(caught.value)

    with pytest.raises(OptionError, match="dcprune train DATASET --unconditional"):
        Ddae()
    with pytest.raises(OptionError, match="block=0"):
        Ddae(weights="x", block=0)
    assert "block=10 of ddae is beyond the 9 blocks" in refused(OptionError, folder, block=10)
    assert "timestep=1001 of ddae is beyond 1000" in refused(OptionError, folder, timestep=1001)
    assert "this one is unconditional" in refused(OptionError, folder, null_class=True)
    assert "does not exist: a run folder" in refused(WeightsError, tmp_path / "absent")
    unet(in_channels=4, out_channels=4).save_pretrained(tmp_path / "latent")
    assert "no pixel-space DDPM" in refused(WeightsError, tmp_path / "latent")
    unet(sample_size=(16, 24)).save_pretrained(tmp_path / "oblong")
    assert "no pixel-space DDPM" in refused(WeightsError, tmp_path / "oblong")
    skips = unet(up_block_types=("UpBlock2D", "SkipUpBlock2D", "UpBlock2D"))
    skips.save_pretrained(tmp_path / "skip")
    assert "Only U-Nets of AttnUpBlock2D and UpBlock2D" in refused(WeightsError, tmp_path / "skip")
    (folder.parent / "run.json").write_text(json.dumps({"format": "dcprune.run/1", "backend": "edm"}))
    assert "no pixel-space DDPM" in refused(WeightsError, folder)
    (folder.parent / "run.json").unlink()
