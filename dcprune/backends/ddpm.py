"""DDPM in pixel space: a class-conditional U-Net of diffusers, trained on the noise."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import diffusers
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, UNet2DModel

from dcprune.backends.ddpm_presets import PAPER, TINY
from dcprune.backends.pixels import ResidentPixels, fit_square, pad_to_multiple, resident, to_uint8
from dcprune.backends.samplers import (
    PredictionType,
    TimestepSpacing,
    ancestral_mean,
    ancestral_std,
    ddim_step,
    predictions,
    timestep_grid,
)
from dcprune.errors import OptionError, UnknownName, WeightsError
from dcprune.interfaces import Batch, DatasetSource, Preset, Progress, Sampling


class Ddpm:
    """Denoising diffusion probabilistic model (Ho et al. 2020, arXiv 2006.11239) with classifier-free guidance.

    The network is diffusers' `UNet2DModel` with K + 1 class embeddings, of which the last is the null condition; for
    class-less data it has none. With the defaults, 3 channels and 10 classes it has 38,312,323 parameters, of the
    38.6M of the recipe that the paper's numbers match (FutureXiang/Diffusion, `cifar_conditional`).

    Args:
        resolution: side of the square images; None keeps the dataset's size, padded with black to a multiple of the
            network's down-sampling factor (28 becomes 32).
        block_out_channels: channels of each level; each level after the first halves the resolution.
        layers_per_block: residual blocks of a level on the way down; one more on the way up.
        attention_levels: levels with self-attention, counted from 0; the middle always has it.
        norm_num_groups: groups of every group normalisation.
        time_scale_shift: the embedding scales and shifts (adaptive group normalisation) instead of only shifting.
        dropout: of every residual block.
        prediction_type: what the network predicts.
        beta_schedule, beta_start, beta_end, num_train_timesteps: the forward process.
        timestep_spacing: which timesteps a sampler with fewer steps visits.
        snr_gamma: weighs the loss by min(SNR, gamma) / SNR in terms of epsilon (Hang et al. 2023, arXiv 2303.09556);
            None leaves it unweighted.

    Raises:
        OptionError: settings that contradict each other.
    """

    presets: ClassVar[Mapping[str, Preset]] = {"paper": PAPER, "tiny": TINY}
    samplers: ClassVar[Sequence[str]] = ("ddim", "ddpm")

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
        beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "linear",
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        num_train_timesteps: int = 1000,
        timestep_spacing: TimestepSpacing = "leading",
        snr_gamma: float | None = None,
    ) -> None:
        self.resolution = resolution
        self.block_out_channels = tuple(block_out_channels)
        self.layers_per_block = layers_per_block
        self.attention_levels = tuple(attention_levels)
        self.norm_num_groups = norm_num_groups
        self.time_scale_shift = time_scale_shift
        self.dropout = dropout
        self.prediction_type: PredictionType = prediction_type
        self.beta_schedule = beta_schedule
        self.beta_start = beta_start
        self.beta_end = beta_end
        self.num_train_timesteps = num_train_timesteps
        self.timestep_spacing: TimestepSpacing = timestep_spacing
        self.snr_gamma = snr_gamma
        self._check()
        self.noise_scheduler = DDPMScheduler(
            num_train_timesteps=num_train_timesteps,
            beta_start=beta_start,
            beta_end=beta_end,
            beta_schedule=beta_schedule,
            prediction_type=prediction_type,
            timestep_spacing=timestep_spacing,
        )
        self._alpha_bars: list[float] = self.noise_scheduler.alphas_cumprod.tolist()

    def settings(self) -> dict[str, Any]:
        """Every constructor argument, tuples as lists."""
        return {
            "resolution": self.resolution,
            "block_out_channels": list(self.block_out_channels),
            "layers_per_block": self.layers_per_block,
            "attention_levels": list(self.attention_levels),
            "norm_num_groups": self.norm_num_groups,
            "time_scale_shift": self.time_scale_shift,
            "dropout": self.dropout,
            "prediction_type": self.prediction_type,
            "beta_schedule": self.beta_schedule,
            "beta_start": self.beta_start,
            "beta_end": self.beta_end,
            "num_train_timesteps": self.num_train_timesteps,
            "timestep_spacing": self.timestep_spacing,
            "snr_gamma": self.snr_gamma,
        }

    @property
    def downsampling(self) -> int:
        """Factor between the image and the network's lowest level."""
        return int(2 ** (len(self.block_out_channels) - 1))

    def to_resolution(self, images: torch.Tensor) -> torch.Tensor:
        """Images of any size at the model's: uint8 [B, C, H, W] -> uint8 [B, C, H', W']."""
        if self.resolution is None:
            return pad_to_multiple(images, self.downsampling)
        return fit_square(images, self.resolution)

    def prepare(self, dataset: DatasetSource, device: torch.device, progress: Progress) -> ResidentPixels:
        """All images as uint8 [N, C, H, W] in the device's memory.

        Raises:
            DatasetError: an image cannot be decoded, or images differ in size and no `resolution` is set.
        """
        return resident(dataset, self.to_resolution, device, progress)

    def build(self, *, num_classes: int, sample_shape: tuple[int, ...], seed: int) -> torch.nn.Module:
        """A `UNet2DModel` with random weights, laid out channels-last."""
        channels, height, width = sample_shape
        levels = range(len(self.block_out_channels))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model: torch.nn.Module = UNet2DModel(
                sample_size=height if height == width else (height, width),
                in_channels=channels,
                out_channels=channels,
                layers_per_block=self.layers_per_block,
                block_out_channels=self.block_out_channels,
                down_block_types=tuple(self._block_type(level, "Down") for level in levels),
                up_block_types=tuple(self._block_type(level, "Up") for level in reversed(levels)),
                attention_head_dim=None,
                norm_num_groups=self.norm_num_groups,
                resnet_time_scale_shift="scale_shift" if self.time_scale_shift else "default",
                dropout=self.dropout,
                num_class_embeds=num_classes + 1 if num_classes else None,
            )
        return model.to(memory_format=torch.channels_last)

    def per_sample_loss(
        self,
        model: torch.nn.Module,
        batch: Batch,
        timesteps: torch.Tensor,
        noise: torch.Tensor,
        generator: torch.Generator,
    ) -> torch.Tensor:
        """Mean squared error of the prediction over pixels, float32 [B]; nothing is drawn."""
        x_t = self.noise_scheduler.add_noise(batch.x0, noise, timesteps)
        null = _null_label(model)
        labels = None if null is None else torch.where(batch.dropped, null, batch.labels)
        prediction = _forward(model, x_t, timesteps, labels)
        loss = F.mse_loss(prediction, self._target(batch.x0, noise, timesteps), reduction="none").flatten(1).mean(1)
        return loss if self.snr_gamma is None else loss * self._min_snr_weights(timesteps, self.snr_gamma)

    @torch.inference_mode()
    def sample(
        self, model: torch.nn.Module, labels: torch.Tensor, seeds: Sequence[int], sampling: Sampling
    ) -> torch.Tensor:
        """Images uint8 [B, C, H, W] on the model's device.

        All noise of image i is drawn on the CPU by a generator seeded with `seeds[i]`. With `guidance_scale` 1 + w the
        noise estimate is (1 + w) eps(label) - w eps(null); w = 0 and class-less models need no null pass.

        Raises:
            UnknownName: no such sampler.
            OptionError: more steps than the model was trained with.
        """
        if sampling.sampler not in self.samplers:
            raise UnknownName("sampler of backend 'ddpm'", sampling.sampler, self.samplers)
        grid = timestep_grid(self.num_train_timesteps, sampling.num_inference_steps, self.timestep_spacing)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        device = next(model.parameters()).device
        shape = _sample_shape(model)
        x_t = _noise(generators, shape, device)
        for timestep, following in itertools.zip_longest(grid, grid[1:]):
            alpha_bar = self._alpha_bars[timestep]
            alpha_bar_next = 1.0 if following is None else self._alpha_bars[following]
            output = _guided(model, x_t, timestep, labels.to(device), sampling.guidance_scale)
            x0, epsilon = predictions(output, x_t, alpha_bar, self.prediction_type)
            if sampling.sampler == "ddim":
                x_t = ddim_step(x0, epsilon, alpha_bar_next)
                continue
            x_t = ancestral_mean(x0, x_t, alpha_bar, alpha_bar_next)
            if following is not None:
                x_t = x_t + ancestral_std(alpha_bar, alpha_bar_next) * _noise(generators, shape, device)
        return to_uint8(x_t)

    def save(self, model: torch.nn.Module, folder: Path) -> None:
        """Write a pipeline folder: `unet/`, `scheduler/` and the index that diffusers' pipelines open."""
        settings = {name: value for name, value in _config(model).items() if name != "_name_or_path"}
        with torch.device("meta"):
            unet = UNet2DModel.from_config(settings)
        state = {name: tensor.cpu().contiguous() for name, tensor in model.state_dict().items()}
        unet.load_state_dict(state, assign=True)
        unet.save_pretrained(folder / "unet")
        self.noise_scheduler.save_pretrained(folder / "scheduler")
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
        try:
            model: torch.nn.Module = UNet2DModel.from_pretrained(folder / "unet", local_files_only=True)
        except (OSError, ValueError, RuntimeError) as error:
            raise WeightsError(f"{folder} does not hold a model of the ddpm backend: {error}") from error
        return model.eval().to(memory_format=torch.channels_last)

    def _block_type(self, level: int, direction: str) -> str:
        return f"{'Attn' if level in self.attention_levels else ''}{direction}Block2D"

    def _target(self, x0: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        if self.prediction_type == "epsilon":
            return noise
        if self.prediction_type == "sample":
            return x0
        velocity: torch.Tensor = self.noise_scheduler.get_velocity(x0, noise, timesteps)
        return velocity

    def _min_snr_weights(self, timesteps: torch.Tensor, gamma: float) -> torch.Tensor:
        alpha_bar: torch.Tensor = self.noise_scheduler.alphas_cumprod.to(timesteps.device)[timesteps]
        snr = alpha_bar / (1 - alpha_bar)
        denominator = {"epsilon": snr, "v_prediction": snr + 1, "sample": torch.ones_like(snr)}[self.prediction_type]
        return snr.clamp(max=gamma) / denominator

    def _check(self) -> None:
        channels, groups = self.block_out_channels, self.norm_num_groups
        if not channels or any(width <= 0 or width % groups for width in channels) or groups < 1:
            raise OptionError(f"block_out_channels={channels} are not multiples of norm_num_groups={groups}.")
        if self.layers_per_block < 1 or self.num_train_timesteps < 1:
            raise OptionError("layers_per_block and num_train_timesteps must be at least 1.")
        if any(not 0 <= level < len(channels) for level in self.attention_levels):
            raise OptionError(f"attention_levels={self.attention_levels} name levels outside 0 to {len(channels) - 1}.")
        if not 0 <= self.dropout < 1:
            raise OptionError(f"dropout={self.dropout} is outside [0, 1).")
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise OptionError(f"beta_start={self.beta_start}, beta_end={self.beta_end}: need 0 < start <= end < 1.")
        if self.snr_gamma is not None and not self.snr_gamma > 0:
            raise OptionError(f"snr_gamma={self.snr_gamma} is not above 0.")
        if self.resolution is not None and (self.resolution < 1 or self.resolution % self.downsampling):
            raise OptionError(
                f"resolution={self.resolution} is not a multiple of {self.downsampling}, the down-sampling factor of "
                f"{len(channels)} levels."
            )


def _null_label(model: torch.nn.Module) -> int | None:
    """Index of the null condition, or None for a class-less model."""
    embeddings: int | None = _config(model).num_class_embeds
    return None if embeddings is None else embeddings - 1


def _sample_shape(model: torch.nn.Module) -> tuple[int, int, int]:
    config = _config(model)
    size = config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    return config.in_channels, height, width


def _config(model: torch.nn.Module) -> Any:
    """The settings that diffusers keeps on a model."""
    return model.config


def _forward(
    model: torch.nn.Module, x_t: torch.Tensor, timesteps: torch.Tensor | int, labels: torch.Tensor | None
) -> torch.Tensor:
    """The network's output in float32, whatever autocast made of it."""
    output: torch.Tensor = model(
        x_t.contiguous(memory_format=torch.channels_last), timesteps, labels, return_dict=False
    )[0]
    return output.float()


def _guided(
    model: torch.nn.Module, x_t: torch.Tensor, timestep: int, labels: torch.Tensor, guidance_scale: float
) -> torch.Tensor:
    null = _null_label(model)
    if null is None or guidance_scale == 1:
        return _forward(model, x_t, timestep, None if null is None else labels)
    both = torch.cat([labels, torch.full_like(labels, null)])
    conditional, unconditional = _forward(model, torch.cat([x_t, x_t]), timestep, both).chunk(2)
    return unconditional + guidance_scale * (conditional - unconditional)


def _noise(generators: Sequence[torch.Generator], shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
    return torch.stack([torch.randn(shape, generator=generator) for generator in generators]).to(device)
