from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import DDIMPipeline, DDPMPipeline, DDPMScheduler, UNet2DModel
from torch.utils.flop_counter import FlopCounterMode

from dcprune.backends.ddpm import Ddpm
from dcprune.backends.pixels import ResidentPixels, to_uint8
from dcprune.errors import OptionError, UnknownName, WeightsError
from dcprune.interfaces import Batch, Sampling
from dcprune.plugins import registry
from dcprune.testing import ShapesDataset, check_backend


@pytest.fixture(scope="module")
def model(backend: Ddpm, loud: Callable[[torch.nn.Module], torch.nn.Module]) -> torch.nn.Module:
    return loud(backend.build(num_classes=10, sample_shape=(1, 8, 8), seed=0)).eval()


def test_contract_of_a_backend(small: dict[str, Any]) -> None:
    check_backend(Ddpm, settings=small)


def test_contract_with_colour_and_without_classes(small: dict[str, Any]) -> None:
    colours: Any = ShapesDataset(num_samples=8, num_classes=0, channels=3)
    check_backend(Ddpm, settings=small, dataset=colours)


# --- presets ----------------------------------------------------------------------------------------------------------


def parameters(preset: str, shape: tuple[int, int, int]) -> int:
    backend = registry().create("backend", "ddpm", Ddpm.presets[preset].model)
    with torch.device("meta"):
        built = backend.build(num_classes=10, sample_shape=shape, seed=0)
    return sum(parameter.numel() for parameter in built.parameters())


def test_paper_preset_is_the_published_recipe() -> None:
    assert parameters("paper", (3, 32, 32)) == 38_312_835  # the recipe's own network: 38,575,491
    preset = Ddpm.presets["paper"]
    backend = Ddpm(**preset.model)
    down = [backend.unet._block_type(level, "Down") for level in range(4)]
    assert down == ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"]  # attention at 16x16
    betas = backend.noise_scheduler.betas
    assert [float(betas[0]), float(betas[-1])] == pytest.approx([1e-4, 0.02])
    assert len(betas) == 1000
    assert preset.training["epochs"] == preset.proxy_epochs == 2000
    assert preset.sampling == Sampling("ddim", 100, 1.3)
    assert (preset.num_samples, preset.model["dropout"]) == (50_000, 0.1)
    assert (backend.prediction_type, backend.snr_gamma, backend.use_clipped_model_output) == ("epsilon", None, True)
    assert preset.training == {
        "epochs": 2000,
        "batch_size": 128,
        "learning_rate": 1e-4,
        "optimizer": "adam",
        "lr_warmup_epochs": 13,
        "max_grad_norm": 1.0,
        "ema_decay": 0.9999,
        "label_dropout": 0.1,
        "horizontal_flip": True,
    }


@pytest.mark.parametrize(
    ("preset", "shape", "millions", "giga"),
    [
        ("paper", (3, 32, 32), 38.3, 12.4),
        ("small-32", (3, 32, 32), 6.9, 2.9),
        ("medium-64", (3, 64, 64), 27.7, 18.0),
        ("tiny", (1, 16, 16), 0.6, 0.046),
    ],
)
def test_presets_are_as_large_as_they_say(
    preset: str, shape: tuple[int, int, int], millions: float, giga: float
) -> None:
    backend = registry().create("backend", "ddpm", Ddpm.presets[preset].model)
    meta = torch.device("meta")
    with meta:
        built = backend.build(num_classes=10, sample_shape=shape, seed=0).eval()
    with FlopCounterMode(display=False) as counter:
        one = torch.ones(1, dtype=torch.int64, device=meta)
        built(torch.empty(1, *shape, device=meta), one, one)
    assert sum(parameter.numel() for parameter in built.parameters()) / 1e6 == pytest.approx(millions, abs=0.06)
    assert counter.get_total_flops() / 1e9 == pytest.approx(giga, rel=0.05)


# --- loss -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_the_loss_is_the_squared_error_that_diffusers_would_give(
    small: dict[str, Any],
    prediction_type: str,
    data: ResidentPixels,
    model: torch.nn.Module,
    batch_of: Callable[..., Any],
) -> None:
    backend = registry().create("backend", "ddpm", {**small, "prediction_type": prediction_type})
    batch, timesteps, noise = batch_of(data)
    found = backend.per_sample_loss(model, batch, timesteps, noise, torch.Generator())
    scheduler = DDPMScheduler()
    targets = {"epsilon": noise, "sample": batch.x0, "v_prediction": scheduler.get_velocity(batch.x0, noise, timesteps)}
    labels = torch.tensor([10 if drop else int(label) for drop, label in zip(batch.dropped, batch.labels, strict=True)])
    output = model(scheduler.add_noise(batch.x0, noise, timesteps), timesteps, labels).sample
    expected = torch.stack(
        [F.mse_loss(one, other) for one, other in zip(output, targets[prediction_type], strict=True)]
    )
    torch.testing.assert_close(found, expected)


def test_a_dropped_label_does_not_matter_and_a_kept_one_does(
    backend: Ddpm, data: ResidentPixels, model: torch.nn.Module, batch_of: Callable[..., Any]
) -> None:
    batch, timesteps, noise = batch_of(data)
    relabelled = Batch(batch.x0, (batch.labels + 1) % 10, batch.dropped)
    once, again = (
        backend.per_sample_loss(model, each, timesteps, noise, torch.Generator()) for each in (batch, relabelled)
    )
    torch.testing.assert_close(once[batch.dropped], again[batch.dropped])
    assert bool((once[~batch.dropped] - again[~batch.dropped]).abs().gt(1e-5).all())


def test_a_loss_does_not_depend_on_the_batch_around_it(
    backend: Ddpm, data: ResidentPixels, model: torch.nn.Module, batch_of: Callable[..., Any]
) -> None:
    batch, timesteps, noise = batch_of(data)
    whole = backend.per_sample_loss(model, batch, timesteps, noise, torch.Generator())
    one = Batch(batch.x0[5:6], batch.labels[5:6], batch.dropped[5:6])
    alone = backend.per_sample_loss(model, one, timesteps[5:6], noise[5:6], torch.Generator())
    torch.testing.assert_close(alone, whole[5:6])


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_min_snr_weighs_one_and_the_same_error_alike_in_every_prediction_type(
    small: dict[str, Any],
    prediction_type: str,
    data: ResidentPixels,
    model: torch.nn.Module,
    batch_of: Callable[..., Any],
) -> None:
    """An error in x0 counts min(SNR, gamma), whatever the network predicts."""
    plain, weighted = (
        registry().create("backend", "ddpm", {**small, "prediction_type": prediction_type, "snr_gamma": gamma})
        for gamma in (None, 5.0)
    )
    batch, timesteps, noise = batch_of(data)
    ratio = weighted.per_sample_loss(model, batch, timesteps, noise, torch.Generator()) / plain.per_sample_loss(
        model, batch, timesteps, noise, torch.Generator()
    )
    alpha_bar = DDPMScheduler().alphas_cumprod[timesteps]
    snr = alpha_bar / (1 - alpha_bar)
    x0_error_per_output_error = {"epsilon": 1 / snr, "v_prediction": 1 - alpha_bar, "sample": torch.ones_like(snr)}
    torch.testing.assert_close(ratio / x0_error_per_output_error[prediction_type], snr.clamp(max=5.0))


@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample"])
def test_a_schedule_that_ends_in_pure_noise_trains_and_samples(
    small: dict[str, Any],
    prediction_type: str,
    data: ResidentPixels,
    model: torch.nn.Module,
    batch_of: Callable[..., Any],
) -> None:
    settings = {"prediction_type": prediction_type, "timestep_spacing": "trailing", "rescale_betas_zero_snr": True}
    backend = registry().create("backend", "ddpm", {**small, **settings})
    assert float(backend.noise_scheduler.alphas_cumprod[-1]) == 0
    batch, _, noise = batch_of(data)
    last = torch.full((8,), 999)
    losses = backend.per_sample_loss(model, batch, last, noise, torch.Generator())
    other = Batch(-batch.x0, batch.labels, batch.dropped)
    with torch.no_grad():
        output = model(noise, last, torch.where(batch.dropped, 10, batch.labels)).sample
    target = -batch.x0 if prediction_type == "v_prediction" else batch.x0
    torch.testing.assert_close(losses, ((output - target) ** 2).mean((1, 2, 3)))
    assert not torch.allclose(losses, backend.per_sample_loss(model, other, last, noise, torch.Generator()))
    for sampler in Ddpm.samplers:
        images = backend.sample(model, torch.tensor([3, 4]), [1, 2], Sampling(sampler, 5, 1.5))
        assert len(images.unique()) > 10


# --- sampling ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", Ddpm.samplers)
def test_an_image_depends_on_its_seed_and_label_alone(backend: Ddpm, model: torch.nn.Module, sampler: str) -> None:
    labels, seeds = torch.arange(7), list(range(50, 57))
    sampling = Sampling(sampler, 6, 2.0)
    whole = backend.sample(model, labels, seeds, sampling)
    parts = [backend.sample(model, labels[part], seeds[part], sampling) for part in (slice(0, 3), slice(3, 7))]
    assert int((whole.int() - torch.cat(parts).int()).abs().max()) <= 1
    backwards = backend.sample(model, labels.flip(0), seeds[::-1], sampling).flip(0)
    assert int((whole.int() - backwards.int()).abs().max()) <= 1
    for other in (
        backend.sample(model, labels, [9, *seeds[1:]], sampling),
        backend.sample(model, (labels + 1) % 10, seeds, sampling),
    ):
        assert int((whole[0].int() - other[0].int()).abs().max()) > 1


def test_guidance_is_diffusers_scale(small: dict[str, Any], backend: Ddpm, model: torch.nn.Module) -> None:
    """One DDIM step from T - 1 to the image, guided by hand: (1 + w) eps_c - w eps_null."""
    last = Ddpm(**small, timestep_spacing="trailing")
    scheduler = DDPMScheduler()
    noise = torch.randn((1, 8, 8), generator=torch.Generator().manual_seed(4))[None]
    label = torch.tensor([3])
    conditional, null = (model(noise, 999, each).sample for each in (label, torch.tensor([10])))
    w = 0.3
    guided = (1 + w) * conditional - w * null
    alpha_bar = scheduler.alphas_cumprod[999]
    x0 = ((noise - (1 - alpha_bar).sqrt() * guided) / alpha_bar.sqrt()).clamp(-1, 1)
    found = last.sample(model, label, [4], Sampling("ddim", 1, 1 + w))
    assert int((found.int() - to_uint8(x0).int()).abs().max()) <= 1


def test_without_guidance_the_null_condition_is_not_computed(backend: Ddpm, model: torch.nn.Module) -> None:
    sizes: list[int] = []
    hook = model.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    backend.sample(model, torch.tensor([1, 2]), [0, 1], Sampling("ddim", 2, 1.0))
    backend.sample(model, torch.tensor([1, 2]), [0, 1], Sampling("ddim", 2, 1.5))
    hook.remove()
    assert sizes == [2, 2, 4, 4]


def test_unknown_samplers_are_named(backend: Ddpm, model: torch.nn.Module) -> None:
    with pytest.raises(UnknownName, match="Did you mean 'ddim'"):
        backend.sample(model, torch.tensor([0]), [0], Sampling("ddin", 2, 1.0))


# --- files ------------------------------------------------------------------------------------------------------------


def test_a_saved_model_opens_with_diffusers(backend: Ddpm, model: torch.nn.Module, tmp_path: Path) -> None:
    backend.save(model, tmp_path)
    unet = UNet2DModel.from_pretrained(tmp_path / "unet", use_safetensors=True)
    for name, tensor in model.state_dict().items():
        assert torch.equal(unet.state_dict()[name], tensor)
    assert DDPMScheduler.from_pretrained(tmp_path / "scheduler").config.prediction_type == "epsilon"
    assert unet.config.num_class_embeds == 11


def test_a_class_less_model_samples_in_diffusers_own_pipelines(backend: Ddpm, tmp_path: Path) -> None:
    unconditional = backend.build(num_classes=0, sample_shape=(1, 8, 8), seed=1).eval()
    backend.save(unconditional, tmp_path)
    pipeline = DDIMPipeline.from_pretrained(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(generator=torch.Generator().manual_seed(7), num_inference_steps=10, output_type="np").images[0]
    ours = backend.sample(unconditional, torch.tensor([0]), [7], Sampling("ddim", 10, 1.3))[0]
    np.testing.assert_allclose(ours.permute(1, 2, 0).numpy(), theirs * 255, atol=1.01)
    assert isinstance(DDPMPipeline.from_pretrained(tmp_path), DDPMPipeline)


def test_the_same_model_gives_the_same_files(backend: Ddpm, model: torch.nn.Module, tmp_path: Path) -> None:
    for name in ("once", "again"):
        (tmp_path / name).mkdir()
        backend.save(model if name == "once" else backend.load(tmp_path / "once"), tmp_path / name)
    for file in (path for path in (tmp_path / "once").rglob("*") if path.is_file()):
        assert file.read_bytes() == (tmp_path / "again" / file.relative_to(tmp_path / "once")).read_bytes(), file.name


def test_folders_that_hold_no_model_are_named(backend: Ddpm, model: torch.nn.Module, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=str(tmp_path)):
        backend.load(tmp_path)
    backend.save(model, tmp_path)
    weights = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(WeightsError, match=str(tmp_path)):
        backend.load(tmp_path)


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"block_out_channels": (8, 15)}, "block_out_channels"),
        ({"block_out_channels": ()}, "block_out_channels"),
        ({"attention_levels": (2,)}, "attention_levels"),
        ({"resolution": 9}, "resolution=9"),
        ({"dropout": 1.0}, "dropout"),
        ({"beta_start": 0.1}, "beta_start"),
        ({"snr_gamma": 0.0}, "snr_gamma"),
        ({"layers_per_block": 0}, "layers_per_block"),
        ({"prediction_type": "x0"}, "prediction_type"),
        ({"rescale_betas_zero_snr": True}, "predicting epsilon teaches nothing"),
        ({"rescale_betas_zero_snr": True, "prediction_type": "sample"}, "timestep_spacing=trailing"),
        (
            {
                "rescale_betas_zero_snr": True,
                "prediction_type": "v_prediction",
                "timestep_spacing": "trailing",
                "snr_gamma": 5.0,
            },
            "snr_gamma=5.0",
        ),
    ],
)
def test_settings_that_do_not_fit_are_named(small: dict[str, Any], settings: dict[str, Any], named: str) -> None:
    with pytest.raises(OptionError, match=named):
        registry().create("backend", "ddpm", {**small, **settings})


def test_settings_are_json_and_rebuild_the_backend(small: dict[str, Any]) -> None:
    settings = json.loads(json.dumps(Ddpm(**small).settings()))
    assert registry().create("backend", "ddpm", settings).settings() == Ddpm(**small).settings()
    assert set(settings) == set(Ddpm.__init__.__annotations__) - {"return"}
