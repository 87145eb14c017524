"""Steps of the reverse diffusion, as functions of the signal and noise levels at two points of the trajectory.

They are written out here, and tested against diffusers' schedulers, because those assume that the number of inference
steps divides the number of training steps and lose part of the trajectory when it does not, clip DPM-Solver's x0 only
through a quantile over every image, and find their own place in the trajectory by waiting for the device.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch

from dcprune.errors import OptionError

PredictionType = Literal["epsilon", "v_prediction", "sample"]
TimestepSpacing = Literal["leading", "trailing"]


class Level(NamedTuple):
    """x = signal * x0 + noise * epsilon."""

    signal: float
    noise: float

    @property
    def half_log_snr(self) -> float:
        """ln(signal / noise), the lambda of the DPM-Solver papers; infinite at either end."""
        if self.signal == 0 or self.noise == 0:
            return math.inf if self.noise == 0 else -math.inf
        return math.log(self.signal / self.noise)


CLEAN = Level(1.0, 0.0)


def variance_preserving(alpha_bar: float) -> Level:
    """The level of a DDPM timestep with the cumulative signal variance `alpha_bar`."""
    return Level(math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar))


def timestep_grid(num_train_timesteps: int, num_inference_steps: int, spacing: TimestepSpacing) -> list[int]:
    """Distinct timesteps in [0, T), descending; `leading` ends at 0, `trailing` starts at T - 1.

    Raises:
        OptionError: fewer than one inference step, or more than T.
    """
    check_steps(num_inference_steps, num_train_timesteps)
    stride = num_train_timesteps / num_inference_steps
    if spacing == "leading":
        return [math.floor(index * stride) for index in reversed(range(num_inference_steps))]
    return [round(index * stride) - 1 for index in range(num_inference_steps, 0, -1)]


def check_steps(num_inference_steps: int, most: int) -> None:
    """Raise OptionError for fewer than one inference step, or more than `most`."""
    if not 1 <= num_inference_steps <= most:
        raise OptionError(f"num_inference_steps={num_inference_steps} is outside [1, {most}].")


def predictions(
    output: torch.Tensor,
    x_t: torch.Tensor,
    level: Level,
    prediction_type: PredictionType,
    *,
    use_clipped_model_output: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Clean sample, clipped to [-1, 1], and noise that a model's output stands for; both like `x_t`.

    The noise is the model's own, from before the clipping, or with `use_clipped_model_output` what the clipped sample
    leaves of `x_t`.
    """
    signal, noise = level
    if prediction_type == "epsilon":
        x0, epsilon = (x_t - noise * output) / signal, output
    elif prediction_type == "v_prediction":
        x0, epsilon = signal * x_t - noise * output, signal * output + noise * x_t
    else:
        x0, epsilon = output, (x_t - signal * output) / noise
    x0 = x0.clamp(-1, 1)
    return x0, (x_t - signal * x0) / noise if use_clipped_model_output else epsilon


def ddim_step(x0: torch.Tensor, epsilon: torch.Tensor, following: Level) -> torch.Tensor:
    """Deterministic step (Song et al. 2021, arXiv 2010.02502, equation 12 with sigma = 0)."""
    return following.signal * x0 + following.noise * epsilon


def ancestral_mean(x0: torch.Tensor, x_t: torch.Tensor, level: Level, following: Level) -> torch.Tensor:
    """Mean of q(x_next | x_t, x0) (Ho et al. 2020, arXiv 2006.11239, equation 7)."""
    alpha = (level.signal / following.signal) ** 2
    to_x0 = following.signal * (1 - alpha) / level.noise**2
    to_x_t = math.sqrt(alpha) * (following.noise / level.noise) ** 2
    return to_x0 * x0 + to_x_t * x_t


def ancestral_std(level: Level, following: Level) -> float:
    """Standard deviation of q(x_next | x_t, x0), 0 at the last step (the same, `beta tilde`)."""
    return following.noise / level.noise * math.sqrt(1 - (level.signal / following.signal) ** 2)


def dpm_solver_step(
    x_t: torch.Tensor,
    x0: torch.Tensor,
    level: Level,
    following: Level,
    before: tuple[torch.Tensor, Level] | None,
) -> torch.Tensor:
    """DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, algorithm 2), first order at both ends of the trajectory.

    Args:
        x_t: where the trajectory is.
        x0: the clean sample that the network predicts there.
        level: the level there.
        following: the level to step to.
        before: prediction and level of the step before; None at the first step.
    """
    if following.noise == 0:
        return x0
    half_log_snr = level.half_log_snr
    step = following.half_log_snr - half_log_snr
    decay = math.exp(-step)
    slope = x0
    if before is not None:
        x0_before, level_before = before
        slope = x0 + 0.5 * step / (half_log_snr - level_before.half_log_snr) * (x0 - x0_before)
    return following.noise / level.noise * x_t + following.signal * (1 - decay) * slope
