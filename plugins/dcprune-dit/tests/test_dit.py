"""The backend `dit`: its contract, its paths against closed forms and diffusers, and a short run."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DiTTransformer2DModel, FlowMatchEulerDiscreteScheduler

import dcprune
from dcprune.errors import OptionError, OutOfTime, UnknownName, WeightsError
from dcprune.interfaces import Batch, Sampling
from dcprune.plugins import registry
from dcprune.testing import check_backend, random_autoencoder

pytest.importorskip("dcprune_dit.backend", reason="the plugin is not installed")
from dcprune_dit.backend import Dit, null_label, unwrapped
from dcprune_dit.paths import Diffusion, Flow

SMALL: dict[str, Any] = {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 8, "resolution": 32}
LATENTS = (4, 8, 8)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DCPRUNE_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An autoencoder with random weights that divides by 4."""
    folder = tmp_path_factory.mktemp("autoencoder")
    random_autoencoder().save_pretrained(folder)
    return folder


def built(backend: Dit, num_classes: int = 3) -> torch.nn.Module:
    """A network whose output is not zero, as it is at the start."""
    model = backend.build(num_classes=num_classes, sample_shape=LATENTS, seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.mark.parametrize("objective", ["epsilon", "flow"])
def test_contract(objective: str, vae: Path) -> None:
    check_backend(Dit, settings={**SMALL, "objective": objective, "vae": str(vae)})


def test_it_is_registered() -> None:
    item, _ = registry().get("backend", "dit")
    assert item.package == "dcprune-dit"
    assert item.load() is Dit


def test_a_network_starts_as_zero_and_small() -> None:
    backend = Dit(**{**dict(Dit.presets["tiny"].model), "resolution": 32})
    model = backend.build(num_classes=10, sample_shape=(4, 16, 16), seed=0)
    assert sum(each.numel() for each in model.parameters()) < 1_000_000
    with torch.no_grad():
        assert not model(torch.randn(1, 4, 16, 16), torch.tensor([3.0]), torch.tensor([1])).sample.any()


@pytest.mark.parametrize("objective", ["epsilon", "flow"])
def test_the_loss_is_the_mean_squared_error_of_the_target(objective: str) -> None:
    """And a network in training mode draws nothing: labels are dropped by the trainer alone."""
    backend = Dit(objective=objective, **SMALL)  # type: ignore[arg-type]
    model = built(backend).train()
    x0, noise = torch.randn(4, *LATENTS), torch.randn(4, *LATENTS)
    labels, dropped = torch.tensor([0, 1, 2, 1]), torch.tensor([False, True, False, False])
    timesteps = torch.tensor([0, 1, 2, 3]) * (backend.num_train_timesteps // 4)
    state = torch.get_rng_state()
    with torch.no_grad():
        found = backend.per_sample_loss(model, Batch(x0, labels, dropped), timesteps, noise, torch.Generator())
    assert torch.equal(state, torch.get_rng_state())
    seen = torch.where(dropped, 3, labels)
    if objective == "epsilon":
        x = DDIMScheduler(beta_start=1e-4, beta_end=0.02).add_noise(x0, noise, timesteps)
        times, target = timesteps.float(), noise
    else:
        t = ((timesteps + 0.5) / 1_000_000)[:, None, None, None]
        x, times, target = (1 - t) * x0 + t * noise, 1000 * t.flatten(), noise - x0
    with torch.no_grad():
        expected = (model(x, times, seen).sample - target).square().mean((1, 2, 3))
    torch.testing.assert_close(found, expected)


def test_ddim_is_that_of_diffusers() -> None:
    path, x = Diffusion(), torch.randn(2, *LATENTS)
    scheduler = path.scheduler()
    scheduler.set_timesteps(20)
    expected = x
    for t in scheduler.timesteps:
        expected = scheduler.step(torch.sin(expected * (1 + t / 1000)), t, expected).prev_sample
    found = path.sample("ddim", lambda x, t: torch.sin(x * (1 + t / 1000)), x, 20)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_euler_is_that_of_diffusers() -> None:
    path, x = Flow(), torch.randn(2, *LATENTS)
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000)
    sigmas = [number / 10 for number in range(10, 0, -1)]
    scheduler.set_timesteps(sigmas=sigmas)
    expected = x
    for t in scheduler.timesteps:
        expected = scheduler.step(torch.sin(expected + t / 1000), t, expected).prev_sample
    torch.testing.assert_close(path.sample("euler", lambda x, t: torch.sin(x + t / 1000), x, 10), expected)


@pytest.mark.parametrize(("sampler", "order"), [("euler", 1), ("heun", 2)])
def test_flow_samplers_converge_at_their_order(sampler: str, order: int) -> None:
    """Data N(0, s^2): the velocity is x (t - (1 - t) s^2) / (t^2 + (1 - t)^2 s^2), and x(0) = s x(1)."""
    s, x = 0.5, torch.linspace(-2, 2, 9, dtype=torch.float64)

    def velocity(x: torch.Tensor, time: float) -> torch.Tensor:
        t = time / 1000
        return x * (t - (1 - t) * s**2) / (t**2 + (1 - t) ** 2 * s**2)

    errors = [float((Flow().sample(sampler, velocity, x, steps) - s * x).abs().max()) for steps in (40, 80)]
    assert errors[1] < 0.02
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.25)


def test_class_less_networks_ignore_labels() -> None:
    backend = Dit(objective="flow", **SMALL)
    model = built(backend, num_classes=0)
    x0, noise, timesteps = torch.randn(2, *LATENTS), torch.randn(2, *LATENTS), torch.tensor([5, 500_000])
    kept = torch.zeros(2, dtype=torch.bool)
    losses = [
        backend.per_sample_loss(model, Batch(x0, labels, kept), timesteps, noise, torch.Generator())
        for labels in (torch.tensor([0, 0]), torch.tensor([7, 3]))
    ]
    assert torch.equal(*losses)
    assert null_label(model) == 1


def test_a_folder_opens_with_diffusers_alone(vae: Path, tmp_path: Path) -> None:
    backend = Dit(objective="flow", vae=str(vae), **SMALL)
    model = built(backend).eval()
    backend.save(model, tmp_path)
    alone = DiTTransformer2DModel.from_pretrained(tmp_path / "transformer").eval()
    x, time, label = torch.randn(1, *LATENTS), torch.tensor([300.0]), torch.tensor([2])
    with torch.no_grad():
        torch.testing.assert_close(alone(x, time, label).sample, model(x, time, label).sample)
    assert isinstance(
        FlowMatchEulerDiscreteScheduler.from_pretrained(tmp_path / "scheduler"), FlowMatchEulerDiscreteScheduler
    )
    assert json.loads((tmp_path / "vae.json").read_text())["name"] == str(vae)


def test_folders_that_do_not_fit(vae: Path, tmp_path: Path) -> None:
    backend = Dit(vae=str(vae), **SMALL)
    with pytest.raises(WeightsError, match="does not hold a model of the dit backend"):
        backend.load(tmp_path)
    backend.save(built(backend), tmp_path)
    (tmp_path / "vae.json").write_text(json.dumps({"name": "another", "sha256": "0" * 64}))
    with pytest.raises(WeightsError, match=r"autoencoder of sha256 000000000000, but .* now holds"):
        backend.sample(backend.load(tmp_path), torch.tensor([0]), [1], Sampling("ddim", 2, 1.0))
    (tmp_path / "transformer" / "diffusion_pytorch_model.safetensors").write_bytes(b"damaged")
    with pytest.raises(WeightsError, match="does not load as DiTTransformer2DModel"):
        backend.load(tmp_path)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"objective": "v"}, "objective of dit 'v'"),
        ({"num_layers": 0}, "num_layers=0"),
        ({"attention_head_dim": 3}, "no multiple of 4"),
        ({"resolution": 0}, "resolution=0"),
    ],
)
def test_settings_that_do_not_fit(settings: dict[str, Any], named: str) -> None:
    with pytest.raises((OptionError, UnknownName), match=named):
        Dit(**{**SMALL, **settings})


def test_calls_that_do_not_fit() -> None:
    backend = Dit(**SMALL, patch_size=3)
    with pytest.raises(OptionError, match="patch_size=3 of dit does not fit latents of 8x8"):
        backend.build(num_classes=1, sample_shape=LATENTS, seed=0)
    model = built(Dit(**SMALL))
    with pytest.raises(UnknownName, match="sampler of backend 'dit' 'heun'"):
        backend.sample(model, torch.tensor([0]), [1], Sampling("heun", 2, 1.0))
    with pytest.raises(OptionError, match="num_inference_steps=0"):
        backend.sample(model, torch.tensor([0]), [1], Sampling("ddim", 0, 1.0))
    with pytest.raises(TypeError, match="Linear is no network"):
        unwrapped(torch.nn.Linear(1, 1))


@pytest.mark.parametrize(("objective", "sampler"), [("epsilon", "ddim"), ("flow", "heun")])
def test_a_run_is_sampled_as_its_objective_allows(objective: str, sampler: str, vae: Path, tmp_path: Path) -> None:
    record = dcprune.train(
        "fashion-mini",
        output=tmp_path / "run",
        split="test",
        backend="dit",
        preset="tiny",
        settings={**SMALL, "vae": str(vae), "objective": objective},
        steps=1,
        batch_size=4,
        device="cpu",
    )
    assert record.sampling["sampler"] == sampler


def test_a_run_stops_goes_on_and_is_sampled(vae: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "split": "test",
        "backend": "dit",
        "preset": "tiny",
        "settings": {**SMALL, "vae": str(vae)},
        "steps": 3,
        "batch_size": 8,
        "device": "cpu",
        "dtype": "fp32",
    }
    with pytest.raises(OutOfTime):
        dcprune.train("fashion-mini", output=tmp_path / "run", max_time=1e-6, **options)
    record = dcprune.train("fashion-mini", output=tmp_path / "run", resume=True, **options)
    assert record.backend == "dit"
    assert "dcprune-dit" in [plugin.name for plugin in record.provenance.plugins]
    images = dcprune.sample(
        tmp_path / "run", output=tmp_path / "images", num_samples=10, num_inference_steps=2, device="cpu"
    )
    assert len(list(images.glob("*/*.png"))) == 10
