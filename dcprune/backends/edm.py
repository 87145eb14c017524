"""EDM in pixel space: the preconditioned denoiser of Karras et al. on a U-Net of diffusers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from diffusers import EDMEulerScheduler

from dcprune.backends import unet
from dcprune.backends.edm_presets import PRESETS
from dcprune.backends.noise import ImageNoise
from dcprune.backends.pixels import ResidentPixels, resident, standard_deviation, to_uint8
from dcprune.backends.samplers import Level, check_steps, dpm_solver_step
from dcprune.errors import OptionError, UnknownName
from dcprune.interfaces import Batch, DatasetSource, PreparationContext, Preset, Sampling

# How far the data's standard deviation may be from sigma_data before a user hears of it.
_CLOSE = 0.2


class Edm:
    """Diffusion model of Karras et al. 2022 (arXiv 2206.00364, table 1, column "Ours") with classifier-free guidance.

    x = x0 + sigma n is denoised by D(x; sigma) = c_skip x + c_out F(c_in x; ln(sigma) / 4), where F is diffusers'
    `UNet2DModel` with the K + 1 class embeddings of the ddpm backend. ln(sigma) is normal in training with mean
    `p_mean` and standard deviation `p_std`.

    The trainer's integer timesteps are quantiles of that distribution: timestep t in [0, T) stands for
    ln(sigma) = p_mean + p_std * Phi^-1((t + 1/2) / T), so that uniform timesteps draw sigma as the paper does, evenly
    spread timesteps spread evenly over the distribution, and nothing is drawn inside the loss. T is a million, because
    then the outermost quantiles (sigma 0.0009 to 107 with the defaults) lie beyond `sigma_min` and `sigma_max`.

    Samplers, all along the sigmas of equation 5, which end with 0:

    - `heun`: algorithm 1, deterministic; N steps are 2 N - 1 network evaluations.
    - `heun-churn`: algorithm 2, with the noise of `s_churn`, `s_tmin`, `s_tmax` and `s_noise`.
    - `euler`: the first-order half of `heun`, N evaluations; diffusers' `EDMEulerScheduler`.
    - `dpmsolver++`: second order, multistep, N evaluations; diffusers' `EDMDPMSolverMultistepScheduler`.

    Args:
        resolution, block_out_channels, layers_per_block, attention_levels, norm_num_groups, time_scale_shift, dropout:
            see `dcprune.backends.unet.UNetSettings`.
        sigma_data: standard deviation of the pixels in [-1, 1]. The paper takes 0.5 for all its data sets; a value of
            the data's own is a setting and not measured, because a reference on the full data and a proxy on a coreset
            must agree on it. A dataset that lies far from it is reported when it is prepared.
        p_mean, p_std: of ln(sigma) in training.
        sigma_min, sigma_max, rho: of the sampling trajectory.
        s_churn, s_tmin, s_tmax, s_noise: of `heun-churn`; the paper's best values for its ImageNet-64 model.

    Raises:
        OptionError: settings that contradict each other.
    """

    presets: ClassVar[Mapping[str, Preset]] = PRESETS
    samplers: ClassVar[Sequence[str]] = ("heun", "heun-churn", "euler", "dpmsolver++")
    num_train_timesteps = 1_000_000

    def __init__(
        self,
        *,
        resolution: int | None = None,
        block_out_channels: tuple[int, ...] = (256, 256, 256),
        layers_per_block: int = 4,
        attention_levels: tuple[int, ...] = (1,),
        norm_num_groups: int = 32,
        time_scale_shift: bool = False,
        dropout: float = 0.13,
        sigma_data: float = 0.5,
        p_mean: float = -1.2,
        p_std: float = 1.2,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        rho: float = 7.0,
        s_churn: float = 40.0,
        s_tmin: float = 0.05,
        s_tmax: float = 50.0,
        s_noise: float = 1.003,
    ) -> None:
        self.unet = unet.UNetSettings(
            resolution=resolution,
            block_out_channels=tuple(block_out_channels),
            layers_per_block=layers_per_block,
            attention_levels=tuple(attention_levels),
            norm_num_groups=norm_num_groups,
            time_scale_shift=time_scale_shift,
            dropout=dropout,
        )
        self.sigma_data = sigma_data
        self.p_mean = p_mean
        self.p_std = p_std
        self.sigma_min = sigma_min
        self.sigma_max = sigma_max
        self.rho = rho
        self.s_churn = s_churn
        self.s_tmin = s_tmin
        self.s_tmax = s_tmax
        self.s_noise = s_noise
        self._check()
        self.noise_scheduler = EDMEulerScheduler(
            sigma_min=sigma_min, sigma_max=sigma_max, sigma_data=sigma_data, rho=rho
        )

    def settings(self) -> dict[str, Any]:
        """Every constructor argument, tuples as lists."""
        return {
            **self.unet.as_json(),
            "sigma_data": self.sigma_data,
            "p_mean": self.p_mean,
            "p_std": self.p_std,
            "sigma_min": self.sigma_min,
            "sigma_max": self.sigma_max,
            "rho": self.rho,
            "s_churn": self.s_churn,
            "s_tmin": self.s_tmin,
            "s_tmax": self.s_tmax,
            "s_noise": self.s_noise,
        }

    def to_resolution(self, images: torch.Tensor) -> torch.Tensor:
        """See `dcprune.backends.unet.UNetSettings.to_resolution`."""
        return self.unet.to_resolution(images)

    def prepare(self, dataset: DatasetSource, context: PreparationContext) -> ResidentPixels:
        """All images as uint8 [N, C, H, W] in the device's memory.

        Raises:
            DatasetError: an image cannot be decoded, or images differ in size and no `resolution` is set.
        """
        data = resident(dataset, self.to_resolution, context.device, context.progress)
        measured = standard_deviation(data.pixels)
        if abs(measured / self.sigma_data - 1) > _CLOSE:
            context.progress.note(
                f"The images' standard deviation is {measured:.2f}, sigma_data is {self.sigma_data:g}. "
                f"--set sigma_data={measured:.2f} fits them; use one value for a reference and its proxies."
            )
        return data

    def build(self, *, num_classes: int, sample_shape: tuple[int, ...], seed: int) -> torch.nn.Module:
        """A `UNet2DModel` with random weights."""
        return self.unet.build(num_classes=num_classes, sample_shape=sample_shape, seed=seed, freq_shift=1)

    def sigmas(self, timesteps: torch.Tensor) -> torch.Tensor:
        """Noise levels float32 [B] of `timesteps` int64 [B] in [0, T), ascending with them."""
        # Apple's GPUs have no float64.
        centred = (2 * timesteps + 1 - self.num_train_timesteps).to(
            torch.float32 if timesteps.device.type == "mps" else torch.float64
        )
        normal = math.sqrt(2) * torch.erfinv(centred / self.num_train_timesteps)
        return (self.p_mean + self.p_std * normal).exp().float()

    def per_sample_loss(
        self,
        model: torch.nn.Module,
        batch: Batch,
        timesteps: torch.Tensor,
        noise: torch.Tensor,
        generator: torch.Generator,
    ) -> torch.Tensor:
        """Squared error of D over pixels times (sigma^2 + sigma_data^2) / (sigma sigma_data)^2, float32 [B].

        That weight is 1 / c_out^2, so the same number is the unweighted error of F, which is what is computed. Nothing
        is drawn.
        """
        sigma = self.sigmas(timesteps)
        level, total = sigma[:, None, None, None], (sigma**2 + self.sigma_data**2).sqrt()[:, None, None, None]
        labels = unet.conditions(model, batch.labels, batch.dropped)
        output = unet.forward(model, (batch.x0 + level * noise) / total, sigma.log() / 4, labels)
        target = (level / self.sigma_data * batch.x0 - self.sigma_data * noise) / total
        return F.mse_loss(output, target, reduction="none").flatten(1).mean(1)

    @torch.inference_mode()
    def sample(
        self, model: torch.nn.Module, labels: torch.Tensor, seeds: Sequence[int], sampling: Sampling
    ) -> torch.Tensor:
        """Images uint8 [B, C, H, W] on the model's device; the device is never waited for.

        All noise of image i is drawn on the CPU by a generator seeded with `seeds[i]`. Guidance mixes the outputs of F,
        which is mixing those of D, in which F is linear.

        Raises:
            UnknownName: no such sampler.
            OptionError: fewer than one step.
        """
        steps = {"heun": self._heun, "heun-churn": self._churned, "euler": self._euler, "dpmsolver++": self._dpm_solver}
        if sampling.sampler not in steps:
            raise UnknownName("sampler of backend 'edm'", sampling.sampler, self.samplers)
        trajectory = self.trajectory(sampling.num_inference_steps)
        device = next(model.parameters()).device
        denoiser = _Denoiser(unet.Guided(model, labels.to(device), sampling.guidance_scale), self.sigma_data)
        noise = ImageNoise(seeds, unet.sample_shape(model), device)
        return to_uint8(steps[sampling.sampler](denoiser, trajectory, noise))

    def trajectory(self, num_inference_steps: int) -> list[float]:
        """The sigmas of sampling, descending from `sigma_max`: N of them (equation 5), then 0.

        Raises:
            OptionError: fewer than one step, or more than T.
        """
        check_steps(num_inference_steps, self.num_train_timesteps)
        first, last = self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho)
        gaps = max(1, num_inference_steps - 1)
        return [*((first + i / gaps * (last - first)) ** self.rho for i in range(num_inference_steps)), 0.0]

    def save(self, model: torch.nn.Module, folder: Path) -> None:
        """Write `unet/` and `scheduler/` (an `EDMEulerScheduler`) for diffusers, which has no pipeline for them.

        Guidance aside, a sampler for diffusers alone is

            unet = UNet2DModel.from_pretrained(folder / "unet").eval()
            scheduler = EDMEulerScheduler.from_pretrained(folder / "scheduler")
            scheduler.set_timesteps(18)
            x = torch.randn(1, 3, 32, 32) * scheduler.sigmas[0]
            for t in scheduler.timesteps:
                output = unet(scheduler.scale_model_input(x, t), t, class_labels=torch.tensor([0])).sample
                x = scheduler.step(output, t, x).prev_sample
        """
        unet.save(model, folder, self.noise_scheduler)

    def load(self, folder: Path) -> torch.nn.Module:
        """The model of a folder that `save` wrote, on the CPU, in inference mode.

        Raises:
            WeightsError: the folder does not hold such a model.
        """
        return unet.load(folder, "edm")

    def _heun(self, denoiser: _Denoiser, trajectory: Sequence[float], noise: ImageNoise) -> torch.Tensor:
        x = noise() * trajectory[0]
        for sigma, following in itertools.pairwise(trajectory):
            x = _heun_step(denoiser, x, sigma, following)
        return x

    def _churned(self, denoiser: _Denoiser, trajectory: Sequence[float], noise: ImageNoise) -> torch.Tensor:
        x = noise() * trajectory[0]
        churn = min(self.s_churn / (len(trajectory) - 1), math.sqrt(2) - 1)
        for sigma, following in itertools.pairwise(trajectory):
            raised = sigma
            if churn and self.s_tmin <= sigma <= self.s_tmax:
                raised = sigma * (1 + churn)
                x = x + math.sqrt(raised**2 - sigma**2) * self.s_noise * noise()
            x = _heun_step(denoiser, x, raised, following)
        return x

    def _euler(self, denoiser: _Denoiser, trajectory: Sequence[float], noise: ImageNoise) -> torch.Tensor:
        x = noise() * trajectory[0]
        for sigma, following in itertools.pairwise(trajectory):
            x = x + (following - sigma) * denoiser.slope(x, sigma)
        return x

    def _dpm_solver(self, denoiser: _Denoiser, trajectory: Sequence[float], noise: ImageNoise) -> torch.Tensor:
        x = noise() * trajectory[0]
        before: tuple[torch.Tensor, Level] | None = None
        for level, following in itertools.pairwise(Level(1.0, sigma) for sigma in trajectory):
            x0 = denoiser(x, level.noise)
            x = dpm_solver_step(x, x0, level, following, before)
            before = x0, level
        return x

    def _check(self) -> None:
        for name in ("sigma_data", "p_std", "sigma_min", "rho", "s_noise"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise OptionError(f"{name}={value} is not a finite number above 0.")
        if not math.isfinite(self.p_mean):
            raise OptionError(f"p_mean={self.p_mean} is not a finite number.")
        if not self.sigma_min < self.sigma_max < math.inf:
            raise OptionError(f"sigma_min={self.sigma_min}, sigma_max={self.sigma_max}: need 0 < min < max < infinity.")
        if not (math.isfinite(self.s_churn) and self.s_churn >= 0):
            raise OptionError(f"s_churn={self.s_churn} is not a finite number of at least 0.")
        if not 0 <= self.s_tmin <= self.s_tmax:
            raise OptionError(f"s_tmin={self.s_tmin}, s_tmax={self.s_tmax}: need 0 <= min <= max.")


class _Denoiser:
    """D(x; sigma) of one batch of images (equation 7)."""

    def __init__(self, network: unet.Guided, sigma_data: float) -> None:
        self.network = network
        self.sigma_data = sigma_data

    def __call__(self, x: torch.Tensor, sigma: float) -> torch.Tensor:
        """The clean images expected behind `x` [B, C, H, W]."""
        total = math.hypot(sigma, self.sigma_data)
        output = self.network(x / total, math.log(sigma) / 4)
        return (self.sigma_data / total) ** 2 * x + sigma * self.sigma_data / total * output

    def slope(self, x: torch.Tensor, sigma: float) -> torch.Tensor:
        """Derivative dx / dsigma along the probability flow (equation 3)."""
        return (x - self(x, sigma)) / sigma


def _heun_step(denoiser: _Denoiser, x: torch.Tensor, sigma: float, following: float) -> torch.Tensor:
    slope = denoiser.slope(x, sigma)
    euler = x + (following - sigma) * slope
    if following == 0:
        return euler
    return x + (following - sigma) * 0.5 * (slope + denoiser.slope(euler, following))
