"""Steps of the reverse diffusion, as functions of the cumulative signal level `alpha_bar` at two timesteps.

They are written out here because diffusers' DDIM and DDPM schedulers assume that the number of inference steps divides
the number of training steps, and lose part of the trajectory when it does not. Where it does, the tests find the same
results.
"""

from __future__ import annotations

import math
from typing import Literal

import torch

from dcprune.errors import OptionError

PredictionType = Literal["epsilon", "v_prediction", "sample"]
TimestepSpacing = Literal["leading", "trailing"]


def timestep_grid(num_train_timesteps: int, num_inference_steps: int, spacing: TimestepSpacing) -> list[int]:
    """Distinct timesteps in [0, T), descending; `leading` ends at 0, `trailing` starts at T - 1.

    Raises:
        OptionError: fewer than one inference step, or more than T.
    """
    if not 1 <= num_inference_steps <= num_train_timesteps:
        raise OptionError(f"num_inference_steps={num_inference_steps} is outside [1, {num_train_timesteps}].")
    stride = num_train_timesteps / num_inference_steps
    if spacing == "leading":
        return [math.floor(index * stride) for index in reversed(range(num_inference_steps))]
    return [round(index * stride) - 1 for index in range(num_inference_steps, 0, -1)]


def predictions(
    output: torch.Tensor, x_t: torch.Tensor, alpha_bar: float, prediction_type: PredictionType
) -> tuple[torch.Tensor, torch.Tensor]:
    """Clean sample, clipped to [-1, 1], and noise that a model's output stands for; both like `x_t`.

    The noise is the model's own, from before the clipping.
    """
    signal, noise = math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)
    if prediction_type == "epsilon":
        x0, epsilon = (x_t - noise * output) / signal, output
    elif prediction_type == "v_prediction":
        x0, epsilon = signal * x_t - noise * output, signal * output + noise * x_t
    else:
        x0, epsilon = output, (x_t - signal * output) / noise
    return x0.clamp(-1, 1), epsilon


def ddim_step(x0: torch.Tensor, epsilon: torch.Tensor, alpha_bar_next: float) -> torch.Tensor:
    """Deterministic step (Song et al. 2021, arXiv 2010.02502, equation 12 with sigma = 0)."""
    return math.sqrt(alpha_bar_next) * x0 + math.sqrt(1 - alpha_bar_next) * epsilon


def ancestral_mean(x0: torch.Tensor, x_t: torch.Tensor, alpha_bar: float, alpha_bar_next: float) -> torch.Tensor:
    """Mean of q(x_next | x_t, x0) (Ho et al. 2020, arXiv 2006.11239, equation 7)."""
    alpha = alpha_bar / alpha_bar_next
    to_x0 = math.sqrt(alpha_bar_next) * (1 - alpha) / (1 - alpha_bar)
    to_x_t = math.sqrt(alpha) * (1 - alpha_bar_next) / (1 - alpha_bar)
    return to_x0 * x0 + to_x_t * x_t


def ancestral_std(alpha_bar: float, alpha_bar_next: float) -> float:
    """Standard deviation of q(x_next | x_t, x0), 0 at the last step (the same, `beta tilde`)."""
    return math.sqrt((1 - alpha_bar_next) / (1 - alpha_bar) * (1 - alpha_bar / alpha_bar_next))
