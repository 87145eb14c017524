"""DDPM in pixel space: a class-conditional U-Net of diffusers, trained on the noise."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import diffusers
import torch
from diffusers import DDPMScheduler

from dcprune.backends import unet
from dcprune.backends.ddpm_presets import PRESETS
from dcprune.backends.denoising import DenoisingLoss
from dcprune.backends.noise import ImageNoise
from dcprune.backends.pixels import ResidentPixels, resident, to_uint8
from dcprune.backends.samplers import (
    CLEAN,
    Level,
    PredictionType,
    TimestepSpacing,
    ancestral_mean,
    ancestral_std,
    ddim_step,
    dpm_solver_step,
    predictions,
    timestep_grid,
    variance_preserving,
)
from dcprune.errors import OptionError, UnknownName
from dcprune.interfaces import Batch, DatasetSource, PreparationContext, Preset, Sampling

BetaSchedule = Literal["linear", "scaled_linear", "squaredcos_cap_v2", "cosine"]


class Ddpm:
    """Denoising diffusion probabilistic model (Ho et al. 2020, arXiv 2006.11239) with classifier-free guidance.

    The network is diffusers' `UNet2DModel` with K + 1 class embeddings, of which the last is the null condition; for
    class-less data it has none. With the defaults, 3 channels and 10 classes it has 38,312,835 parameters, of the
    38.6M of the recipe that the paper's numbers match (FutureXiang/Diffusion, `cifar_conditional`). What differs from
    that network: time and class share one embedding instead of two that scale and shift, and the time is the integer
    timestep instead of timestep / T.

    Samplers: `ddim` (eta 0), `ddpm` (ancestral, the smaller of the two variances), `dpmsolver++` (second order,
    multistep; it always starts at T - 1, whatever `timestep_spacing` is). All clip x0 to [-1, 1] at every step.

    Args:
        resolution, block_out_channels, layers_per_block, attention_levels, norm_num_groups, time_scale_shift, dropout:
            see `dcprune.backends.unet.UNetSettings`.
        prediction_type: what the network predicts.
        beta_schedule, beta_start, beta_end, num_train_timesteps: the forward process.
        rescale_betas_zero_snr: the last timestep is pure noise (Lin et al. 2023, arXiv 2305.08891). A network that
            predicts epsilon learns nothing there, and `leading` timesteps never visit it, so both are refused.
        timestep_spacing: which timesteps a sampler with fewer steps visits.
        use_clipped_model_output: `ddim` recomputes the noise from the clipped x0, as the paper's recipe does.
        snr_gamma: weighs the loss by min(SNR, gamma) / SNR in terms of epsilon, / (SNR + 1) in terms of v, and by
            min(SNR, gamma) in terms of the sample (Hang et al. 2023, arXiv 2303.09556); None leaves it unweighted.

    Raises:
        OptionError: settings that contradict each other.
    """

    presets: ClassVar[Mapping[str, Preset]] = PRESETS
    samplers: ClassVar[Sequence[str]] = ("ddim", "ddpm", "dpmsolver++")

    def __init__(
        self,
        *,
        resolution: int | None = None,
        block_out_channels: tuple[int, ...] = (128, 256, 256, 256),
        layers_per_block: int = 2,
        attention_levels: tuple[int, ...] = (1,),
        norm_num_groups: int = 32,
        time_scale_shift: bool = True,
        dropout: float = 0.1,
        prediction_type: PredictionType = "epsilon",
        beta_schedule: BetaSchedule = "linear",
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        num_train_timesteps: int = 1000,
        rescale_betas_zero_snr: bool = False,
        timestep_spacing: TimestepSpacing = "leading",
        use_clipped_model_output: bool = False,
        snr_gamma: float | None = None,
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
        self.prediction_type: PredictionType = prediction_type
        # "cosine" is what papers call it.
        self.beta_schedule: BetaSchedule = "squaredcos_cap_v2" if beta_schedule == "cosine" else beta_schedule
        self.beta_start = beta_start
        self.beta_end = beta_end
        self.num_train_timesteps = num_train_timesteps
        self.rescale_betas_zero_snr = rescale_betas_zero_snr
        self.timestep_spacing: TimestepSpacing = timestep_spacing
        self.use_clipped_model_output = use_clipped_model_output
        self.snr_gamma = snr_gamma
        self._check()
        self.noise_scheduler = DDPMScheduler(
            num_train_timesteps=num_train_timesteps,
            beta_start=beta_start,
            beta_end=beta_end,
            beta_schedule=self.beta_schedule,
            prediction_type=prediction_type,
            rescale_betas_zero_snr=rescale_betas_zero_snr,
            timestep_spacing=timestep_spacing,
        )
        self._alpha_bars: list[float] = self.noise_scheduler.alphas_cumprod.tolist()
        self._loss = DenoisingLoss(self.noise_scheduler.alphas_cumprod, prediction_type, snr_gamma)

    def settings(self) -> dict[str, Any]:
        """Every constructor argument, tuples as lists."""
        return {
            **self.unet.as_json(),
            "prediction_type": self.prediction_type,
            "beta_schedule": self.beta_schedule,
            "beta_start": self.beta_start,
            "beta_end": self.beta_end,
            "num_train_timesteps": self.num_train_timesteps,
            "rescale_betas_zero_snr": self.rescale_betas_zero_snr,
            "timestep_spacing": self.timestep_spacing,
            "use_clipped_model_output": self.use_clipped_model_output,
            "snr_gamma": self.snr_gamma,
        }

    def to_resolution(self, images: torch.Tensor) -> torch.Tensor:
        """See `dcprune.backends.unet.UNetSettings.to_resolution`."""
        return self.unet.to_resolution(images)

    def prepare(self, dataset: DatasetSource, context: PreparationContext) -> ResidentPixels:
        """All images as uint8 [N, C, H, W] in the device's memory.

        Raises:
            DatasetError: an image cannot be decoded, or images differ in size and no `resolution` is set.
        """
        return resident(dataset, self.to_resolution, context.device, context.progress)

    def build(self, *, num_classes: int, sample_shape: tuple[int, ...], seed: int) -> torch.nn.Module:
        """A `UNet2DModel` with random weights."""
        return self.unet.build(num_classes=num_classes, sample_shape=sample_shape, seed=seed)

    def per_sample_loss(
        self,
        model: torch.nn.Module,
        batch: Batch,
        timesteps: torch.Tensor,
        noise: torch.Tensor,
        generator: torch.Generator,
    ) -> torch.Tensor:
        """Mean squared error of the prediction over pixels, float32 [B]; nothing is drawn."""
        conditions = unet.conditions(model, batch.labels, batch.dropped)
        return self._loss(lambda x_t: unet.forward(model, x_t, timesteps, conditions), batch.x0, timesteps, noise)

    @torch.inference_mode()
    def sample(
        self, model: torch.nn.Module, labels: torch.Tensor, seeds: Sequence[int], sampling: Sampling
    ) -> torch.Tensor:
        """Images uint8 [B, C, H, W] on the model's device; the device is never waited for.

        All noise of image i is drawn on the CPU by a generator seeded with `seeds[i]`.

        Raises:
            UnknownName: no such sampler.
            OptionError: more steps than the model was trained with.
        """
        steps = {"ddim": self._ddim, "ddpm": self._ancestral, "dpmsolver++": self._dpm_solver}.get(sampling.sampler)
        if steps is None:
            raise UnknownName("sampler of backend 'ddpm'", sampling.sampler, self.samplers)
        spacing = "trailing" if sampling.sampler == "dpmsolver++" else self.timestep_spacing
        grid = timestep_grid(self.num_train_timesteps, sampling.num_inference_steps, spacing)
        device = next(model.parameters()).device
        network = unet.Guided(model, labels.to(device), sampling.guidance_scale)
        noise = ImageNoise(seeds, unet.sample_shape(model), device)
        return to_uint8(steps(network, grid, noise))

    def save(self, model: torch.nn.Module, folder: Path) -> None:
        """Write a pipeline folder: `unet/`, `scheduler/` and the index that diffusers' pipelines open."""
        unet.save(model, folder, self.noise_scheduler)
        index = {
            "_class_name": "DDPMPipeline",
            "_diffusers_version": diffusers.__version__,
            "scheduler": ["diffusers", "DDPMScheduler"],
            "unet": ["diffusers", "UNet2DModel"],
        }
        (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")

    def load(self, folder: Path) -> torch.nn.Module:
        """The model of a folder that `save` wrote, on the CPU, in inference mode.

        Raises:
            WeightsError: the folder does not hold such a model.
        """
        return unet.load(folder, "ddpm")

    def _trajectory(self, grid: Sequence[int]) -> Iterator[tuple[int, Level, Level]]:
        """For each of descending timesteps: the timestep, its level, and the level to step to."""
        levels = [*(variance_preserving(self._alpha_bars[timestep]) for timestep in grid), CLEAN]
        return zip(grid, levels[:-1], levels[1:], strict=True)

    def _predictions(
        self, network: unet.Guided, x_t: torch.Tensor, timestep: int, level: Level
    ) -> tuple[torch.Tensor, torch.Tensor]:
        clipped = self.use_clipped_model_output
        output = network(x_t, timestep)
        return predictions(output, x_t, level, self.prediction_type, use_clipped_model_output=clipped)

    def _ddim(self, network: unet.Guided, grid: Sequence[int], noise: ImageNoise) -> torch.Tensor:
        x_t = noise()
        for timestep, level, following in self._trajectory(grid):
            x_t = ddim_step(*self._predictions(network, x_t, timestep, level), following)
        return x_t

    def _ancestral(self, network: unet.Guided, grid: Sequence[int], noise: ImageNoise) -> torch.Tensor:
        x_t = noise()
        for timestep, level, following in self._trajectory(grid):
            x0, _ = self._predictions(network, x_t, timestep, level)
            x_t = ancestral_mean(x0, x_t, level, following)
            if following.noise:
                x_t = x_t + ancestral_std(level, following) * noise()
        return x_t

    def _dpm_solver(self, network: unet.Guided, grid: Sequence[int], noise: ImageNoise) -> torch.Tensor:
        x_t = noise()
        before: tuple[torch.Tensor, Level] | None = None
        for timestep, level, following in self._trajectory(grid):
            x0, _ = self._predictions(network, x_t, timestep, level)
            x_t = dpm_solver_step(x_t, x0, level, following, before)
            before = x0, level
        return x_t

    def _check(self) -> None:
        if self.num_train_timesteps < 1:
            raise OptionError(f"num_train_timesteps={self.num_train_timesteps} is below 1.")
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise OptionError(f"beta_start={self.beta_start}, beta_end={self.beta_end}: need 0 < start <= end < 1.")
        if self.snr_gamma is not None and not self.snr_gamma > 0:
            raise OptionError(f"snr_gamma={self.snr_gamma} is not above 0.")
        if not self.rescale_betas_zero_snr:
            return
        if self.prediction_type == "epsilon":
            raise OptionError(
                "rescale_betas_zero_snr makes the last timestep pure noise, where predicting epsilon teaches nothing "
                "about the image. Choose prediction_type=v_prediction or sample."
            )
        if self.timestep_spacing != "trailing":
            raise OptionError(
                "rescale_betas_zero_snr needs timestep_spacing=trailing: leading timesteps never visit the last one."
            )
        if self.snr_gamma is not None:
            raise OptionError(
                f"rescale_betas_zero_snr with snr_gamma={self.snr_gamma} gives the last timestep, where sampling "
                "starts, the weight 0. Choose one of them."
            )
