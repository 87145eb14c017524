"""Our reverse steps against diffusers' schedulers, wherever those are exact."""

from __future__ import annotations

import itertools

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from dcprune.backends.samplers import (
    PredictionType,
    TimestepSpacing,
    ancestral_mean,
    ancestral_std,
    ddim_step,
    predictions,
    timestep_grid,
)
from dcprune.errors import OptionError

PREDICTION_TYPES: list[PredictionType] = ["epsilon", "v_prediction", "sample"]
SPACINGS: list[TimestepSpacing] = ["leading", "trailing"]
SHAPE = (2, 1, 4, 4)


def outputs(count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(SHAPE, generator=generator, dtype=torch.float64) for _ in range(count)]


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("steps", [1, 10, 25, 100, 1000])
def test_grid_is_diffusers_where_the_steps_divide(steps: int, spacing: TimestepSpacing) -> None:
    scheduler = DDIMScheduler(timestep_spacing=spacing)
    scheduler.set_timesteps(steps)
    assert timestep_grid(1000, steps, spacing) == scheduler.timesteps.tolist()


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("steps", [3, 7, 30, 600, 999])
def test_grid_spans_the_whole_range_where_they_do_not(steps: int, spacing: TimestepSpacing) -> None:
    grid = timestep_grid(1000, steps, spacing)
    assert len(grid) == len(set(grid)) == steps
    assert grid == sorted(grid, reverse=True)
    gaps = [before - after for before, after in itertools.pairwise(grid)]
    assert max(gaps) - min(gaps) <= 1
    first, last = (999 - max(gaps), 0) if spacing == "leading" else (999, max(gaps))
    assert grid[0] >= first
    assert grid[-1] <= last


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_impossible_numbers_of_steps_are_refused(steps: int) -> None:
    with pytest.raises(OptionError, match=f"num_inference_steps={steps}"):
        timestep_grid(1000, steps, "leading")


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_ddim_is_diffusers(prediction_type: PredictionType, spacing: TimestepSpacing) -> None:
    scheduler = DDIMScheduler(prediction_type=prediction_type, timestep_spacing=spacing)
    scheduler.set_timesteps(20)
    alpha_bars = scheduler.alphas_cumprod.tolist()
    x_t, *each = outputs(21)
    ours = theirs = x_t
    grid = timestep_grid(1000, 20, spacing)
    for timestep, following, output in zip(grid, [*grid[1:], None], each, strict=True):
        theirs = scheduler.step(output, timestep, theirs).prev_sample
        x0, epsilon = predictions(output, ours, alpha_bars[timestep], prediction_type)
        ours = ddim_step(x0, epsilon, 1.0 if following is None else alpha_bars[following])
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_ancestral_sampling_is_diffusers(prediction_type: PredictionType) -> None:
    scheduler = DDPMScheduler(prediction_type=prediction_type)
    scheduler.set_timesteps(20)
    alpha_bars = scheduler.alphas_cumprod.tolist()
    x_t, *each = outputs(21)
    ours = theirs = x_t
    grid = timestep_grid(1000, 20, "leading")
    for timestep, following, output in zip(grid, [*grid[1:], None], each, strict=True):
        noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(timestep), dtype=torch.float64)
        theirs = scheduler.step(output, timestep, theirs, generator=torch.Generator().manual_seed(timestep)).prev_sample
        alpha_bar, alpha_bar_next = alpha_bars[timestep], 1.0 if following is None else alpha_bars[following]
        x0, _ = predictions(output, ours, alpha_bar, prediction_type)
        ours = ancestral_mean(x0, ours, alpha_bar, alpha_bar_next) + ancestral_std(alpha_bar, alpha_bar_next) * noise
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_the_right_answer_is_recovered_from_every_prediction_type() -> None:
    x0, noise = outputs(2)
    x0 = x0.clamp(-1, 1)
    alpha_bar = 0.3
    x_t = alpha_bar**0.5 * x0 + (1 - alpha_bar) ** 0.5 * noise
    velocity = alpha_bar**0.5 * noise - (1 - alpha_bar) ** 0.5 * x0
    targets: dict[PredictionType, torch.Tensor] = {"epsilon": noise, "sample": x0, "v_prediction": velocity}
    for prediction_type, output in targets.items():
        found_x0, found_noise = predictions(output, x_t, alpha_bar, prediction_type)
        torch.testing.assert_close(found_x0, x0)
        torch.testing.assert_close(found_noise, noise)
