"""The loss against distributions of torch, the law of Bayes, and its own definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from torch.distributions import Normal, kl_divergence

from dcprune.backends.mdt.objective import NUM_TRAIN_TIMESTEPS, LearnedVarianceLoss, alphas_cumprod

KEPT = torch.from_numpy(alphas_cumprod())
TIMESTEPS = torch.tensor([0, 1, 2, 17, 250, 600, 998, 999])


def sample(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Output [8, 4, 3, 3], clean latents and noise [8, 2, 3, 3]."""
    generator = torch.Generator().manual_seed(seed)
    x0, noise, error, fraction = (torch.randn(8, 2, 3, 3, generator=generator, dtype=torch.float64) for _ in range(4))
    return torch.cat([noise + 0.3 * error, fraction], dim=1), 0.6 * x0, noise


def posterior(t: int, x0: torch.Tensor, x_t: torch.Tensor) -> Normal:
    """q(x_{t-1} | x_t, x0) as the normalised product of q(x_t | x_{t-1}) and q(x_{t-1} | x0)."""
    step = KEPT[t] / KEPT[t - 1]
    forward_precision, prior_precision = step / (1 - step), 1 / (1 - KEPT[t - 1])
    precision = forward_precision + prior_precision
    mean = (forward_precision * x_t / step.sqrt() + prior_precision * KEPT[t - 1].sqrt() * x0) / precision
    return Normal(mean, precision.rsqrt().expand_as(mean))


def bound(t: int, output: torch.Tensor, x0: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """The term of timestep t in bits, averaged over the elements of one sample."""
    x_t = KEPT[t].sqrt() * x0 + (1 - KEPT[t]).sqrt() * noise
    predicted, fraction = output.chunk(2)
    x0_predicted = (x_t - (1 - KEPT[t]).sqrt() * predicted) / KEPT[t].sqrt()
    beta = 1 - KEPT[t] / (KEPT[t - 1] if t else 1.0)
    least = posterior(max(t, 1), x0, x_t).variance.flatten()[0]
    share = (fraction + 1) / 2
    std = (0.5 * (share * beta.log() + (1 - share) * least.log())).exp()
    if t == 0:
        upper, lower = (torch.special.ndtr((x0 + edge - x0_predicted) / std) for edge in (1 / 255, -1 / 255))
        probability = torch.where(x0 < -0.999, upper, torch.where(x0 > 0.999, 1 - lower, upper - lower))
        return -probability.clamp(min=1e-12).log2().mean()
    divergence = kl_divergence(posterior(t, x0, x_t), Normal(posterior(t, x0_predicted, x_t).mean, std))
    return divergence.mean() / math.log(2)


@pytest.mark.parametrize("gamma", [5.0, 1.0, None])
def test_the_loss_is_weighted_error_plus_variational_bound(gamma: float | None) -> None:
    output, x0, noise = sample()
    found = LearnedVarianceLoss(gamma)(output.float(), x0.float(), noise.float(), TIMESTEPS)
    snr = KEPT / (1 - KEPT)
    for row, timestep in enumerate(TIMESTEPS.tolist()):
        weight = 1.0 if gamma is None else min(float(snr[timestep]), gamma) / float(snr[timestep])
        error = (output[row, :2] - noise[row]).square().mean()
        expected = weight * error + bound(timestep, output[row], x0[row], noise[row])
        # The distribution function of timestep 0 is an approximation.
        assert float(found[row]) == pytest.approx(float(expected), rel=2e-3 if timestep == 0 else 1e-4)


def test_the_schedule_is_the_linear_one_of_ddpm() -> None:
    scheduler = DDPMScheduler(num_train_timesteps=NUM_TRAIN_TIMESTEPS, beta_start=1e-4, beta_end=0.02)
    np.testing.assert_allclose(alphas_cumprod(), scheduler.alphas_cumprod, rtol=2e-5)
    x0, noise = torch.randn(8, 2, 3, 3), torch.randn(8, 2, 3, 3)
    torch.testing.assert_close(
        LearnedVarianceLoss(None).noised(x0, noise, TIMESTEPS), scheduler.add_noise(x0, noise, TIMESTEPS)
    )


def test_the_bound_teaches_the_variance_alone() -> None:
    output, x0, noise = (each.float() for each in sample())
    output.requires_grad_()
    (gradient,) = torch.autograd.grad(LearnedVarianceLoss(None)(output, x0, noise, TIMESTEPS).sum(), output)
    error = output[:, :2] - noise
    torch.testing.assert_close(gradient[:, :2], (2 * error / error[0].numel()).detach())
    assert bool((gradient[:, 2:] != 0).all())


def test_the_bound_is_least_where_the_variance_is_the_errors() -> None:
    """With an error of the noise that makes the means differ, the best variance is the posterior's plus that gap."""
    loss = LearnedVarianceLoss(None)
    fractions, nothing = torch.linspace(-1, 1, 401)[:, None, None, None], torch.zeros(401, 1, 1, 1)
    for timestep in (1, 2, 5):
        t = torch.full((401,), timestep)
        beta, before = 1 - KEPT[timestep] / KEPT[timestep - 1], KEPT[timestep - 1]
        least = beta * (1 - before) / (1 - KEPT[timestep])
        wanted = 0.5 * (beta + least)
        slope = beta / ((1 - KEPT[timestep]).sqrt() * (KEPT[timestep] / before).sqrt())
        error = ((wanted - least).sqrt() / slope).float()
        losses = loss(torch.cat([nothing + error, fractions], dim=1), nothing, nothing, t)
        best = float(fractions[losses.argmin()])
        expected = 2 * (wanted / least).log() / (beta / least).log() - 1
        assert best == pytest.approx(float(expected), abs=0.02)


def test_the_bins_of_timestep_0_share_all_probability() -> None:
    loss = LearnedVarianceLoss(None)
    bins = torch.linspace(-1, 1, 256).view(256, 1, 1, 1)
    mean, signal, amount = 0.37, float(KEPT[0].sqrt()), float((1 - KEPT[0]).sqrt())
    # The network's mean is the same for all bins: x_t is what `mean` and no noise give.
    noise = signal * (mean - bins) / amount
    predicted = torch.zeros_like(noise)
    t = torch.zeros(256, dtype=torch.int64)
    bits = loss(torch.cat([predicted, torch.ones_like(noise)], dim=1), bins, noise, t) - noise.flatten().square()
    assert float((2.0 ** -bits.double()).sum()) == pytest.approx(1, abs=1e-3)


def test_samples_do_not_touch_each_other() -> None:
    output, x0, noise = (each.float() for each in sample())
    loss = LearnedVarianceLoss(5.0)
    together = loss(output, x0, noise, TIMESTEPS)
    for row in range(8):
        own = slice(row, row + 1)
        torch.testing.assert_close(loss(output[own], x0[own], noise[own], TIMESTEPS[own]), together[own])
