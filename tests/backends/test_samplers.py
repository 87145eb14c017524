"""Our reverse steps against diffusers' schedulers, wherever those are exact."""

from __future__ import annotations

import itertools

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMDPMSolverMultistepScheduler,
)

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
from dcprune.errors import OptionError

PREDICTION_TYPES: list[PredictionType] = ["epsilon", "v_prediction", "sample"]
SPACINGS: list[TimestepSpacing] = ["leading", "trailing"]
SHAPE = (2, 1, 4, 4)


def levels_of(alphas_cumprod: torch.Tensor, grid: list[int]) -> list[Level]:
    return [*(variance_preserving(float(alphas_cumprod[timestep])) for timestep in grid), CLEAN]


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


@pytest.mark.parametrize("clipped", [False, True])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_ddim_is_diffusers(prediction_type: PredictionType, spacing: TimestepSpacing, clipped: bool) -> None:
    scheduler = DDIMScheduler(prediction_type=prediction_type, timestep_spacing=spacing)
    scheduler.set_timesteps(20)
    x_t, *each = outputs(21)
    ours = theirs = x_t
    grid = timestep_grid(1000, 20, spacing)
    levels = levels_of(scheduler.alphas_cumprod, grid)
    for timestep, (level, following), output in zip(grid, itertools.pairwise(levels), each, strict=True):
        theirs = scheduler.step(output, timestep, theirs, use_clipped_model_output=clipped).prev_sample
        found = predictions(output, ours, level, prediction_type, use_clipped_model_output=clipped)
        ours = ddim_step(*found, following)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_ancestral_sampling_is_diffusers(prediction_type: PredictionType) -> None:
    scheduler = DDPMScheduler(prediction_type=prediction_type)
    scheduler.set_timesteps(20)
    x_t, *each = outputs(21)
    ours = theirs = x_t
    grid = timestep_grid(1000, 20, "leading")
    levels = levels_of(scheduler.alphas_cumprod, grid)
    for timestep, (level, following), output in zip(grid, itertools.pairwise(levels), each, strict=True):
        noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(timestep), dtype=torch.float64)
        theirs = scheduler.step(output, timestep, theirs, generator=torch.Generator().manual_seed(timestep)).prev_sample
        x0, _ = predictions(output, ours, level, prediction_type)
        ours = ancestral_mean(x0, ours, level, following) + ancestral_std(level, following) * noise
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of diffusers, under numpy 2
@pytest.mark.parametrize("steps", [1, 2, 20, 100])
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_dpm_solver_is_diffusers(prediction_type: PredictionType, steps: int) -> None:
    """With thresholding at 1, diffusers clips x0 to [-1, 1] as we do."""
    scheduler = DPMSolverMultistepScheduler(
        prediction_type=prediction_type,
        timestep_spacing="trailing",
        thresholding=True,
        dynamic_thresholding_ratio=1.0,
        lower_order_final=False,
    )
    scheduler.set_timesteps(steps)
    x_t, *each = (output.float() for output in outputs(steps + 1))
    ours = theirs = x_t
    grid = timestep_grid(1000, steps, "trailing")
    assert grid == scheduler.timesteps.tolist()
    before: tuple[torch.Tensor, Level] | None = None
    levels = levels_of(scheduler.alphas_cumprod, grid)
    for timestep, (level, following), output in zip(scheduler.timesteps, itertools.pairwise(levels), each, strict=True):
        theirs = scheduler.step(output, timestep, theirs).prev_sample
        x0, _ = predictions(output, ours, level, prediction_type)
        ours = dpm_solver_step(ours, x0, level, following, before)
        before = x0, level
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("steps", [2, 18])
def test_dpm_solver_over_sigmas_is_diffusers(steps: int) -> None:
    scheduler = EDMDPMSolverMultistepScheduler(sigma_data=0.5, lower_order_final=False)
    scheduler.set_timesteps(steps)
    x, *each = (output.float() for output in outputs(steps + 1))
    ours = theirs = x * scheduler.sigmas[0]
    before: tuple[torch.Tensor, Level] | None = None
    levels = [Level(1.0, sigma) for sigma in scheduler.sigmas.tolist()]
    for timestep, (level, following), output in zip(scheduler.timesteps, itertools.pairwise(levels), each, strict=True):
        x0 = scheduler.precondition_outputs(ours, output, torch.tensor(level.noise))
        theirs = scheduler.step(output, timestep, theirs).prev_sample
        ours = dpm_solver_step(ours, x0, level, following, before)
        before = x0, level
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_a_start_without_signal_is_finite() -> None:
    """The first level of a zero-terminal-SNR schedule, by every step there is."""
    x_t, x0, later = outputs(3)
    start, middle, end = Level(0.0, 1.0), Level(0.6, 0.8), Level(0.8, 0.6)
    for prediction_type in PREDICTION_TYPES[1:]:
        assert all(bool(each.isfinite().all()) for each in predictions(x0, x_t, start, prediction_type))
    first = dpm_solver_step(x_t, x0, start, middle, None)
    torch.testing.assert_close(first, 0.8 * x_t + 0.6 * x0)  # the first-order step is DDIM's, where epsilon is x_t
    torch.testing.assert_close(ddim_step(x0, x_t, middle), first)
    second = dpm_solver_step(first, later, middle, end, (x0, start))
    torch.testing.assert_close(second, dpm_solver_step(first, later, middle, end, None))  # infinitely far back
    torch.testing.assert_close(ancestral_mean(x0, x_t, start, middle), 0.6 * x0)
    assert ancestral_std(start, middle) == pytest.approx(0.8)


def test_the_right_answer_is_recovered_from_every_prediction_type() -> None:
    x0, noise = outputs(2)
    x0 = x0.clamp(-1, 1)
    level = variance_preserving(0.3)
    x_t = level.signal * x0 + level.noise * noise
    velocity = level.signal * noise - level.noise * x0
    targets: dict[PredictionType, torch.Tensor] = {"epsilon": noise, "sample": x0, "v_prediction": velocity}
    for prediction_type, output in targets.items():
        for clipped in (False, True):
            found = predictions(output, x_t, level, prediction_type, use_clipped_model_output=clipped)
            torch.testing.assert_close(found, (x0, noise))
