"""The two ways from data to noise that `dit` knows, and how to walk them back.

On both, x = signal x0 + noise_level epsilon, and timesteps ascend with the noise.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

# The network's answer at a time in [0, 1000): [B, C, H, W] -> [B, C, H, W].
Network = Callable[[torch.Tensor, float], torch.Tensor]


class Path(Protocol):
    """A way from data to noise, and what a network learns along it.

    Attributes:
        num_train_timesteps: T; training timesteps are integers in [0, T).
        samplers: names that `sample` knows.
    """

    num_train_timesteps: int
    samplers: Sequence[str]

    def noised(self, x0: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Samples `x0` [B, ...] at `timesteps` int64 [B], in its shape."""

    def target(self, x0: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """What the network should answer, like `x0`."""

    def times(self, timesteps: torch.Tensor) -> torch.Tensor:
        """What the network is told for `timesteps` int64 [B]: float32 [B] in [0, 1000)."""

    def sample(self, sampler: str, network: Network, x: torch.Tensor, steps: int) -> torch.Tensor:
        """From noise `x` to data, both [B, ...], in `steps` steps."""

    def scheduler(self) -> DDIMScheduler | FlowMatchEulerDiscreteScheduler:
        """The scheduler of diffusers that walks this path."""


class Diffusion:
    """DDPM's chain with linear betas, on which the network predicts the noise."""

    num_train_timesteps = 1000
    samplers: Sequence[str] = ("ddim",)

    def __init__(self) -> None:
        self._scheduler = DDIMScheduler(
            beta_start=1e-4, beta_end=0.02, clip_sample=False, set_alpha_to_one=True, timestep_spacing="trailing"
        )
        self._alphas_cumprod: torch.Tensor = self._scheduler.alphas_cumprod
        self._on_device: dict[torch.device, torch.Tensor] = {}

    def noised(self, x0: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        kept = self._kept(timesteps.device)[timesteps].view(-1, *[1] * (x0.ndim - 1))
        return kept.sqrt() * x0 + (1 - kept).sqrt() * noise

    def target(self, x0: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        return noise

    def times(self, timesteps: torch.Tensor) -> torch.Tensor:
        return timesteps.float()

    def sample(self, sampler: str, network: Network, x: torch.Tensor, steps: int) -> torch.Tensor:
        """DDIM with eta 0 (Song et al. 2021, arXiv 2010.02502), from T - 1 on."""
        stride = self.num_train_timesteps / steps
        places = [round(number * stride) - 1 for number in range(steps, 0, -1)]
        kept = [*self._alphas_cumprod[places].double().tolist(), 1.0]
        for place, (now, following) in zip(places, itertools.pairwise(kept), strict=True):
            epsilon = network(x, place)
            x0 = (x - (1 - now) ** 0.5 * epsilon) / now**0.5
            x = following**0.5 * x0 + (1 - following) ** 0.5 * epsilon
        return x

    def scheduler(self) -> DDIMScheduler:
        return self._scheduler

    def _kept(self, device: torch.device) -> torch.Tensor:
        """Cumulative signal variance [T]; copied to a device once."""
        found = self._on_device.get(device)
        if found is None:
            found = self._on_device[device] = self._alphas_cumprod.to(device)
        return found


class Flow:
    """The straight path x = (1 - t) x0 + t epsilon, on which the network predicts the velocity epsilon - x0.

    Flow matching (Lipman et al., arXiv 2210.02747) with the linear interpolant of SiT (Ma et al., arXiv 2401.08740).
    Timestep k of a million stands for t = (k + 1/2) / T, which is as good as continuous. The network is told 1000 t.
    """

    num_train_timesteps = 1_000_000
    samplers: Sequence[str] = ("heun", "euler")

    def noised(self, x0: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        time = self.times(timesteps).view(-1, *[1] * (x0.ndim - 1)) / 1000
        return torch.lerp(x0, noise, time)

    def target(self, x0: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        return noise - x0

    def times(self, timesteps: torch.Tensor) -> torch.Tensor:
        return (timesteps.float() + 0.5) * (1000 / self.num_train_timesteps)

    def sample(self, sampler: str, network: Network, x: torch.Tensor, steps: int) -> torch.Tensor:
        """The ordinary differential equation dx / dt = velocity from t = 1 to 0 in equal steps.

        `euler` evaluates the network once a step, `heun` twice, but once in the last.
        """
        for number in range(steps, 0, -1):
            time, following = number / steps, (number - 1) / steps
            velocity = network(x, 1000 * time)
            ahead = x + (following - time) * velocity
            if sampler == "heun" and following > 0:
                velocity = 0.5 * (velocity + network(ahead, 1000 * following))
                ahead = x + (following - time) * velocity
            x = ahead
        return x

    def scheduler(self) -> FlowMatchEulerDiscreteScheduler:
        return FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=1.0)
