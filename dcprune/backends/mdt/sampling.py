"""How MDT draws latents: respaced timesteps, guidance that grows along the way, a variance that was learned."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import torch

from dcprune.backends.mdt.network import unwrapped
from dcprune.backends.mdt.objective import NUM_TRAIN_TIMESTEPS, alphas_cumprod
from dcprune.backends.noise import ImageNoise
from dcprune.backends.samplers import (
    CLEAN,
    Level,
    ancestral_mean,
    ancestral_std,
    check_steps,
    ddim_step,
    dpm_solver_step,
    variance_preserving,
)


class PowerCosineGuidance:
    """A network under classifier-free guidance whose scale rises from 1, at the noisy end, to `guidance_scale`.

    s(t) = 1 + (guidance_scale - 1) (1 - cos(pi (1 - t / T)^power)) / 2, and the first channels of the noise are
    null + s (conditional - null); the others, and the variance, are the conditional ones. Scale 1, scale 0 (without the
    condition) and class-less networks need one pass over B latents instead of 2 B.

    Args:
        model: the network.
        labels: int64 [B] on its device.
        guidance_scale: where the scale ends, at t = 0.
        power: how late it rises.
        channels: how many channels are guided.
    """

    def __init__(
        self, model: torch.nn.Module, labels: torch.Tensor, *, guidance_scale: float, power: float, channels: int
    ) -> None:
        self.model = model
        self.guidance_scale = guidance_scale
        self.power = power
        self.channels = channels
        classes = unwrapped(model).shape.num_classes
        null = torch.full_like(labels, classes)
        self.both = classes > 0 and guidance_scale not in (0, 1)
        self.labels = null if classes == 0 or guidance_scale == 0 else labels
        if self.both:
            self.labels = torch.cat([labels, null])

    def scale(self, timestep: int) -> float:
        """s(t)."""
        cosine = math.cos(math.pi * (1 - timestep / NUM_TRAIN_TIMESTEPS) ** self.power)
        return 1 + (self.guidance_scale - 1) * (1 - cosine) / 2

    def __call__(self, x: torch.Tensor, timestep: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Noise and variance fraction, each float32 like `x` [B, C, H, W], at one timestep."""
        latents = torch.cat([x, x]) if self.both else x
        timesteps = torch.full((len(latents),), timestep, device=x.device)
        output: torch.Tensor = self.model(latents, timesteps, self.labels).float()
        noise, fraction = output[: len(x)].chunk(2, dim=1)
        if self.both:
            null = output[len(x) :, : self.channels]
            guided = torch.lerp(null, noise[:, : self.channels], self.scale(timestep))
            noise = torch.cat([guided, noise[:, self.channels :]], dim=1)
        return noise, fraction


def respaced(num_inference_steps: int) -> list[int]:
    """Timesteps from T - 1 down to 0, evenly spaced and rounded; just 0 for one step.

    The spacing is added up and not multiplied, which decides ties as the released samplers do.

    Raises:
        OptionError: fewer than one step, or more than T.
    """
    check_steps(num_inference_steps, NUM_TRAIN_TIMESTEPS)
    gaps = num_inference_steps - 1
    stride = (NUM_TRAIN_TIMESTEPS - 1) / max(1, gaps)
    return [round(place) for place in itertools.accumulate(itertools.repeat(stride, gaps), initial=0.0)][::-1]


def ancestral(network: PowerCosineGuidance, num_inference_steps: int, noise: ImageNoise) -> torch.Tensor:
    """Latents [B, C, H, W] by the chain of Nichol and Dhariwal (2021, arXiv 2102.09672) with its learned variance."""
    x = noise()
    for timestep, level, following in _trajectory(num_inference_steps):
        epsilon, fraction = network(x, timestep)
        x = ancestral_mean(_clean(x, epsilon, level), x, level, following)
        if following.noise:
            x = x + learned_std(fraction, level, following) * noise()
    return x


def ddim(network: PowerCosineGuidance, num_inference_steps: int, noise: ImageNoise) -> torch.Tensor:
    """Latents [B, C, H, W] by deterministic DDIM (Song et al. 2021, arXiv 2010.02502)."""
    x = noise()
    for timestep, level, following in _trajectory(num_inference_steps):
        epsilon, _ = network(x, timestep)
        x = ddim_step(_clean(x, epsilon, level), epsilon, following)
    return x


def dpm_solver(network: PowerCosineGuidance, num_inference_steps: int, noise: ImageNoise) -> torch.Tensor:
    """Latents [B, C, H, W] by DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095)."""
    x = noise()
    before: tuple[torch.Tensor, Level] | None = None
    for timestep, level, following in _trajectory(num_inference_steps):
        x0 = _clean(x, network(x, timestep)[0], level)
        x = dpm_solver_step(x, x0, level, following, before)
        before = x0, level
    return x


def learned_std(fraction: torch.Tensor, level: Level, following: Level) -> torch.Tensor:
    """Standard deviation of a step, between those of q(x_next | x_t, x0) at fraction -1 and of q(x_t | x_next) at 1."""
    largest = math.log(1 - (level.signal / following.signal) ** 2)
    least = 2 * math.log(ancestral_std(level, following))
    return torch.exp(0.5 * (least + (fraction + 1) / 2 * (largest - least)))


def _trajectory(num_inference_steps: int) -> Iterator[tuple[int, Level, Level]]:
    """For each of descending timesteps: the timestep, its level, and the level to step to."""
    timesteps, kept = respaced(num_inference_steps), alphas_cumprod()
    levels = [*(variance_preserving(float(kept[timestep])) for timestep in timesteps), CLEAN]
    return zip(timesteps, levels[:-1], levels[1:], strict=True)


def _clean(x: torch.Tensor, epsilon: torch.Tensor, level: Level) -> torch.Tensor:
    return (x - level.noise * epsilon) / level.signal
