"""The edm backend against the formulas of arXiv 2206.00364, diffusers' schedulers, and a closed-form denoiser."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import EDMDPMSolverMultistepScheduler, EDMEulerScheduler, UNet2DModel
from scipy.stats import norm

from dcprune.backends.edm import Edm
from dcprune.backends.pixels import ResidentPixels, to_uint8
from dcprune.errors import OptionError, UnknownName, WeightsError
from dcprune.interfaces import Batch, DatasetSource, Sampling
from dcprune.plugins import registry
from dcprune.reweighting import stratified_timesteps
from dcprune.testing import ShapesDataset, check_backend, preparation_context

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def edm(small: dict[str, Any]) -> Edm:
    return Edm(**small)


@pytest.fixture(scope="module")
def model(edm: Edm, loud: Callable[[torch.nn.Module], torch.nn.Module]) -> torch.nn.Module:
    return loud(edm.build(num_classes=10, sample_shape=(1, 8, 8), seed=0)).eval()


def test_contract_of_a_backend(small: dict[str, Any]) -> None:
    check_backend(Edm, settings=small)


def test_contract_with_colour_and_without_classes(small: dict[str, Any]) -> None:
    colours: Any = ShapesDataset(num_samples=8, num_classes=0, channels=3)
    check_backend(Edm, settings=small, dataset=colours)


# --- noise levels -----------------------------------------------------------------------------------------------------


def test_timesteps_are_quantiles_of_the_log_normal_distribution(small: dict[str, Any]) -> None:
    backend = Edm(**small, p_mean=-0.4, p_std=1.7)
    timesteps = torch.tensor([0, 1, 499_999, 500_000, 900_000, 999_999])
    expected = np.exp(norm.ppf((timesteps.numpy() + 0.5) / 1e6, loc=-0.4, scale=1.7))
    np.testing.assert_allclose(backend.sigmas(timesteps), expected, rtol=1e-5)


def test_the_outermost_timesteps_lie_beyond_the_sampled_range(edm: Edm) -> None:
    first, last = edm.sigmas(torch.tensor([0, edm.num_train_timesteps - 1])).tolist()
    assert first < edm.sigma_min
    assert last > edm.sigma_max


def test_stratified_timesteps_spread_over_the_distribution_of_sigma(edm: Edm) -> None:
    labels = torch.tensor([0, 1] * 50)
    timesteps = stratified_timesteps(labels, 2, 0.3, edm.num_train_timesteps)
    for label in (0, 1):
        logs = edm.sigmas(timesteps[labels == label]).log().sort().values.numpy()
        shares = norm.cdf(logs, loc=-1.2, scale=1.2)
        np.testing.assert_allclose(np.diff(shares), 1 / 50, atol=1e-4)


# --- loss -------------------------------------------------------------------------------------------------------------


def test_the_loss_is_the_papers_weighted_error_of_the_denoiser(
    edm: Edm, model: torch.nn.Module, data: ResidentPixels, batch_of: Callable[..., Any]
) -> None:
    """Equation 7 and 8 with the c_skip, c_out, c_in, c_noise and lambda of table 1, in float64."""
    batch, timesteps, noise = batch_of(data, edm.num_train_timesteps)
    found = edm.per_sample_loss(model, batch, timesteps, noise, torch.Generator())
    sigma = edm.sigmas(timesteps).double()[:, None, None, None]
    sigma_data = 0.5
    x = batch.x0.double() + sigma * noise.double()
    c_skip = sigma_data**2 / (sigma**2 + sigma_data**2)
    c_out = sigma * sigma_data / (sigma**2 + sigma_data**2).sqrt()
    c_in = 1 / (sigma**2 + sigma_data**2).sqrt()
    weight = (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2
    labels = torch.where(batch.dropped, 10, batch.labels)
    with torch.no_grad():
        network = model.double()(c_in * x, 0.25 * sigma.flatten().log(), labels).sample
        model.float()
    denoised = c_skip * x + c_out * network
    expected = (weight * (denoised - batch.x0.double()) ** 2).mean((1, 2, 3))
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-5)


def test_a_dropped_label_does_not_matter_and_a_kept_one_does(
    edm: Edm, model: torch.nn.Module, data: ResidentPixels, batch_of: Callable[..., Any]
) -> None:
    batch, timesteps, noise = batch_of(data, edm.num_train_timesteps)
    relabelled = Batch(batch.x0, (batch.labels + 1) % 10, batch.dropped)
    once, again = (
        edm.per_sample_loss(model, each, timesteps, noise, torch.Generator()) for each in (batch, relabelled)
    )
    torch.testing.assert_close(once[batch.dropped], again[batch.dropped])
    assert bool((once[~batch.dropped] - again[~batch.dropped]).abs().gt(1e-6).all())


def test_a_network_that_knows_nothing_has_a_loss_near_one_at_every_noise_level(
    edm: Edm, fashion: DatasetSource
) -> None:
    """Preconditioning makes the target of F unit variance when sigma_data is the data's: here it is measured."""
    data = edm.prepare(fashion, preparation_context())
    centred = data.pixels.float() / 127.5 - 1
    fitted = Edm(**{**edm.settings(), "sigma_data": float((centred**2).mean().sqrt())})
    silent = fitted.build(num_classes=10, sample_shape=(1, 8, 8), seed=0)
    with torch.no_grad():
        silent.get_parameter("conv_out.weight").zero_()
        silent.get_parameter("conv_out.bias").zero_()
    batch = Batch(centred, data.labels, torch.zeros(24, dtype=torch.bool))
    noise = torch.randn(centred.shape, generator=torch.Generator().manual_seed(0))
    for timestep in (0, 300_000, 700_000, 999_999):
        timesteps = torch.full((24,), timestep)
        loss = fitted.per_sample_loss(silent, batch, timesteps, noise, torch.Generator()).mean()
        assert loss.item() == pytest.approx(1.0, abs=0.1)


# --- sampling ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", Edm.samplers)
def test_an_image_depends_on_its_seed_and_label_alone(edm: Edm, model: torch.nn.Module, sampler: str) -> None:
    labels, seeds = torch.arange(7), list(range(50, 57))
    sampling = Sampling(sampler, 5, 2.0)
    whole = edm.sample(model, labels, seeds, sampling)
    parts = [edm.sample(model, labels[part], seeds[part], sampling) for part in (slice(0, 3), slice(3, 7))]
    assert int((whole.int() - torch.cat(parts).int()).abs().max()) <= 1
    for other in (
        edm.sample(model, labels, [9, *seeds[1:]], sampling),
        edm.sample(model, (labels + 1) % 10, seeds, sampling),
    ):
        assert int((whole[0].int() - other[0].int()).abs().max()) > 1


@pytest.mark.parametrize("steps", [1, 2, 18])
def test_sigmas_are_those_of_diffusers(edm: Edm, steps: int) -> None:
    scheduler = EDMEulerScheduler()
    scheduler.set_timesteps(steps)
    np.testing.assert_allclose(edm.trajectory(steps), scheduler.sigmas, rtol=1e-5)


@pytest.mark.parametrize(
    ("sampler", "scheduler"), [("euler", EDMEulerScheduler), ("dpmsolver++", EDMDPMSolverMultistepScheduler)]
)
def test_a_saved_model_samples_alike_in_diffusers(
    edm: Edm, model: torch.nn.Module, tmp_path: Path, sampler: str, scheduler: Any
) -> None:
    edm.save(model, tmp_path)
    unet = UNet2DModel.from_pretrained(tmp_path / "unet").eval()
    scheduler = scheduler.from_pretrained(tmp_path / "scheduler", lower_order_final=False)
    scheduler.set_timesteps(8)
    noise = torch.randn((1, 8, 8), generator=torch.Generator().manual_seed(4))[None]
    x = noise * scheduler.sigmas[0]
    label, null, w = torch.tensor([3]), torch.tensor([10]), 0.7
    for timestep in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, timestep)
        with torch.no_grad():
            conditional, unconditional = (unet(scaled, timestep, each).sample for each in (label, null))
        output = (1 + w) * conditional - w * unconditional
        x = scheduler.step(output, timestep, x).prev_sample
    found = edm.sample(model, label, [4], Sampling(sampler, 8, 1 + w))
    assert int((found.int() - to_uint8(x).int()).abs().max()) <= 1


def heun_by_hand(
    denoise: Any, x: torch.Tensor, sigmas: list[float], churn: tuple[float, float, float, float], draw: Any
) -> torch.Tensor:
    """Algorithm 2 of the paper, line by line, in float64; without churn it is algorithm 1."""
    s_churn, s_tmin, s_tmax, s_noise = churn
    steps = len(sigmas) - 1
    for t, t_next in pairwise(sigmas):
        gamma = min(s_churn / steps, math.sqrt(2) - 1) if s_tmin <= t <= s_tmax else 0.0
        t_hat = t + gamma * t
        if gamma:
            x = x + math.sqrt(t_hat**2 - t**2) * s_noise * draw()
        d = (x - denoise(x, t_hat)) / t_hat
        x_next = x + (t_next - t_hat) * d
        if t_next:
            d_next = (x_next - denoise(x_next, t_next)) / t_next
            x_next = x + (t_next - t_hat) * (d / 2 + d_next / 2)
        x = x_next
    return x


@pytest.mark.parametrize(
    ("sampler", "churn"), [("heun", (0.0, 0.0, 0.0, 1.0)), ("heun-churn", (6.0, 0.05, 20.0, 1.01))]
)
def test_heun_is_the_papers_algorithm(
    small: dict[str, Any], model: torch.nn.Module, sampler: str, churn: tuple[float, float, float, float]
) -> None:
    """On diffusers' preconditioning; the noise of the churn comes from the image's own generator."""
    backend = Edm(**small, s_churn=6.0, s_tmin=0.05, s_tmax=20.0, s_noise=1.01)
    scheduler = EDMEulerScheduler()

    def denoise(x: torch.Tensor, sigma: float) -> torch.Tensor:
        level = torch.tensor(sigma)
        scaled = scheduler.precondition_inputs(x, level).float()
        with torch.no_grad():
            output = model(scaled, scheduler.precondition_noise(level), torch.tensor([3])).sample
        denoised: torch.Tensor = scheduler.precondition_outputs(x, output.double(), level)
        return denoised

    generator = torch.Generator().manual_seed(11)

    def draw() -> torch.Tensor:
        return torch.randn((1, 8, 8), generator=generator)[None].double()

    sigmas = backend.trajectory(9)
    expected = heun_by_hand(denoise, draw() * sigmas[0], sigmas, churn, draw)
    found = backend.sample(model, torch.tensor([3]), [11], Sampling(sampler, 9, 1.0))
    assert int((found.int() - to_uint8(expected).int()).abs().max()) <= 1
    assert len(np.unique(found)) > 10


class GaussianDenoiser(torch.nn.Module):
    """The F whose D is the exact denoiser of data N(mean, scale^2): the probability flow then has a closed form."""

    def __init__(self, mean: float, scale: float, sigma_data: float) -> None:
        super().__init__()
        self.down_blocks = torch.nn.ModuleList()
        self.anchor = torch.nn.Parameter(torch.zeros(()))
        self.mean, self.scale, self.sigma_data = mean, scale, sigma_data
        self.config = SimpleNamespace(num_class_embeds=None, sample_size=8, in_channels=1)
        self.evaluations = 0

    def forward(
        self, scaled: torch.Tensor, times: torch.Tensor, labels: None, return_dict: bool
    ) -> tuple[torch.Tensor]:
        self.evaluations += 1
        sigma = (4 * times).exp()[:, None, None, None]
        total = (sigma**2 + self.sigma_data**2).sqrt()
        x = scaled * total
        posterior = (self.scale**2 * x + sigma**2 * self.mean) / (self.scale**2 + sigma**2)
        return ((posterior - (self.sigma_data / total) ** 2 * x) / (sigma * self.sigma_data / total),)


@pytest.mark.parametrize(
    ("sampler", "steps", "evaluations", "tolerance"),
    [("heun", 18, 35, 0.05), ("heun", 60, 119, 0.003), ("euler", 300, 300, 0.02), ("dpmsolver++", 60, 60, 0.01)],
)
def test_the_deterministic_samplers_solve_the_probability_flow_of_a_gaussian(
    edm: Edm, sampler: str, steps: int, evaluations: int, tolerance: float
) -> None:
    """x(sigma) - mean shrinks with sqrt(scale^2 + sigma^2), so the noise n ends at mean + n * scale (almost)."""
    mean, scale = 0.1, 0.2
    network = GaussianDenoiser(mean, scale, edm.sigma_data)
    found = edm.sample(network, torch.tensor([0, 0]), [1, 2], Sampling(sampler, steps, 1.0))
    noise = torch.stack([torch.randn((1, 8, 8), generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)])
    start = noise * edm.sigma_max - mean
    expected = mean + start * scale / math.sqrt(scale**2 + edm.sigma_max**2)
    assert network.evaluations == evaluations
    assert float((found.float() / 127.5 - 1 - expected).abs().max()) < tolerance + 1 / 255


def test_churn_keeps_the_distribution_of_a_gaussian(small: dict[str, Any]) -> None:
    backend = Edm(**small, s_noise=1.0)
    network = GaussianDenoiser(0.1, 0.2, backend.sigma_data)
    found = backend.sample(network, torch.zeros(40, dtype=torch.int64), range(40), Sampling("heun-churn", 60, 1.0))
    pixels = found.float() / 127.5 - 1
    assert float(pixels.mean()) == pytest.approx(0.1, abs=0.02)
    assert float(pixels.std()) == pytest.approx(0.2, rel=0.05)
    plain = backend.sample(network, torch.zeros(40, dtype=torch.int64), range(40), Sampling("heun", 60, 1.0))
    assert float((plain.float() - found.float()).abs().mean()) > 5


def test_unknown_samplers_are_named(edm: Edm, model: torch.nn.Module) -> None:
    with pytest.raises(UnknownName, match="Did you mean 'heun'"):
        edm.sample(model, torch.tensor([0]), [0], Sampling("huen", 2, 1.0))
    with pytest.raises(OptionError, match="num_inference_steps=0"):
        edm.sample(model, torch.tensor([0]), [0], Sampling("heun", 0, 1.0))


# --- settings, presets, files -----------------------------------------------------------------------------------------


def test_paper_preset_is_the_published_recipe() -> None:
    preset = Edm.presets["paper"]
    backend = Edm(**preset.model)
    with torch.device("meta"):
        built = backend.build(num_classes=10, sample_shape=(3, 32, 32), seed=0)
    assert sum(parameter.numel() for parameter in built.parameters()) == 59_024_643  # the paper's own: 55.7M
    assert (backend.sigma_data, backend.p_mean, backend.p_std) == (0.5, -1.2, 1.2)
    assert (backend.sigma_min, backend.sigma_max, backend.rho) == (0.002, 80, 7)
    training = preset.training
    assert training["epochs"] * 50_000 == 200e6
    assert training["lr_warmup_epochs"] * 50_000 == 10e6
    assert training["ema_decay"] == pytest.approx(0.5 ** (512 / 500_000), abs=1e-5)
    assert (training["batch_size"], training["learning_rate"], training["max_grad_norm"]) == (512, 1e-3, None)
    assert (training["label_dropout"], preset.model["dropout"]) == (0.0, 0.13)
    assert preset.sampling == Sampling("heun", 18, 1.0)


def test_images_far_from_sigma_data_are_reported_with_the_setting_that_fits(
    small: dict[str, Any], fashion: DatasetSource, notes: Callable[[], Any]
) -> None:
    first = notes()
    data = Edm(**small, sigma_data=0.3).prepare(fashion, preparation_context(first))
    measured = float((data.pixels.float() / 127.5 - 1).std())
    assert f"--set sigma_data={measured:.2f}" in first.notes[0]
    again = notes()
    Edm(**small, sigma_data=round(measured, 2)).prepare(fashion, preparation_context(again))
    assert again.notes == []


def test_settings_are_json_and_rebuild_the_backend(small: dict[str, Any]) -> None:
    settings = json.loads(json.dumps(Edm(**small, rho=5.0).settings()))
    assert registry().create("backend", "edm", settings).settings() == Edm(**small, rho=5.0).settings()
    assert set(settings) == set(Edm.__init__.__annotations__) - {"return"}


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"sigma_data": 0.0}, "sigma_data=0"),
        ({"p_std": math.inf}, "p_std"),
        ({"p_mean": math.nan}, "p_mean"),
        ({"sigma_min": 90.0}, "sigma_min=90"),
        ({"rho": -7.0}, "rho"),
        ({"s_churn": -1.0}, "s_churn"),
        ({"s_tmin": 60.0}, "s_tmin=60"),
        ({"attention_levels": (4,)}, "attention_levels"),
    ],
)
def test_settings_that_do_not_fit_are_named(small: dict[str, Any], settings: dict[str, Any], named: str) -> None:
    with pytest.raises(OptionError, match=named):
        registry().create("backend", "edm", {**small, **settings})


def test_folders_that_hold_no_model_are_named(edm: Edm, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="edm"):
        edm.load(tmp_path)
