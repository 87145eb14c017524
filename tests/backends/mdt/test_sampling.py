"""Sampling against diffusers' scheduler, a network that knows the answer, and the formula of the guidance."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from diffusers import DDPMScheduler

from dcprune.backends.mdt import sampling
from dcprune.backends.mdt.network import MaskedTransformer
from dcprune.backends.mdt.objective import alphas_cumprod
from dcprune.backends.noise import ImageNoise
from dcprune.errors import OptionError
from tests.backends.mdt.conftest import network_of, shape_of

CPU = torch.device("cpu")
LABELS = torch.tensor([2, 0])


class Known(MaskedTransformer):
    """Says what `answer` says; written as a network so that the sampler can ask for its shape."""

    def __init__(self, answer: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        super().__init__(shape_of())
        self.answer = answer

    def forward(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        labels: torch.Tensor,
        order: torch.Tensor | None = None,
        present: torch.Tensor | None = None,
    ) -> torch.Tensor:
        return self.answer(latents, timesteps, labels)


def guided(model: torch.nn.Module, scale: float = 1.0, channels: int = 3) -> sampling.PowerCosineGuidance:
    return sampling.PowerCosineGuidance(model, LABELS, guidance_scale=scale, power=4.0, channels=channels)


@pytest.mark.parametrize("steps", [2, 7, 40])
def test_the_chain_is_that_of_diffusers_with_a_learned_range(steps: int) -> None:
    model = network_of()
    with torch.no_grad():
        found = sampling.ancestral(guided(model), steps, ImageNoise([11, 12], (3, 6, 6), CPU))
    scheduler = DDPMScheduler(beta_start=1e-4, beta_end=0.02, variance_type="learned_range", clip_sample=False)
    scheduler.set_timesteps(timesteps=sampling.respaced(steps))
    for row, seed in enumerate((11, 12)):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(1, 3, 6, 6, generator=generator)
        for timestep in scheduler.timesteps:
            with torch.no_grad():
                output = model(x, timestep[None], LABELS[row : row + 1])
            x = scheduler.step(output, timestep, x, generator=generator).prev_sample
        torch.testing.assert_close(found[row], x[0], rtol=2e-3, atol=2e-3 * float(x.abs().max()))


@pytest.mark.parametrize("sampler", [sampling.ancestral, sampling.ddim, sampling.dpm_solver])
@pytest.mark.parametrize("steps", [1, 3, 20])
def test_a_network_that_knows_the_latents_is_led_to_them(
    sampler: Callable[[sampling.PowerCosineGuidance, int, ImageNoise], torch.Tensor], steps: int
) -> None:
    clean, kept = 3 * torch.randn(2, 3, 6, 6), torch.from_numpy(alphas_cumprod()).float()

    def answer(x: torch.Tensor, timesteps: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        level = kept[timesteps][:, None, None, None]
        return torch.cat([(x - level.sqrt() * clean) / (1 - level).sqrt(), torch.zeros_like(x)], dim=1)

    found = sampler(guided(Known(answer)), steps, ImageNoise([0, 1], (3, 6, 6), CPU))
    torch.testing.assert_close(found, clean, rtol=1e-3, atol=5e-3)


def test_the_learned_variance_lies_between_the_two_of_ddpm() -> None:
    for timestep, level, following in list(sampling._trajectory(5))[:-1]:
        signal = (level.signal / following.signal) ** 2
        beta = 1 - signal
        tilde = beta * following.noise**2 / level.noise**2
        lowest, highest, middle = (float(sampling.learned_std(torch.tensor(f), level, following)) for f in (-1, 1, 0.0))
        assert lowest**2 == pytest.approx(tilde, rel=1e-4), timestep
        assert highest**2 == pytest.approx(beta, rel=1e-4)
        assert middle**2 == pytest.approx(math.sqrt(beta * tilde), rel=1e-4)


def test_guidance_grows_along_the_trajectory_and_leaves_channels_alone() -> None:
    def answer(x: torch.Tensor, timesteps: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return labels[:, None, None, None] + torch.arange(6.0)[None, :, None, None].expand(len(x), 6, 6, 6)

    x, null = torch.zeros(2, 3, 6, 6), 4
    network = guided(Known(answer), scale=3.8, channels=2)
    for timestep in (999, 700, 300, 0):
        scale = 1 + 2.8 * (1 - math.cos(math.pi * (1 - timestep / 1000) ** 4)) / 2
        assert network.scale(timestep) == pytest.approx(scale)
        noise, fraction = network(x, timestep)
        for row, label in enumerate(LABELS.tolist()):
            values = [null + scale * (label - null), 1 + null + scale * (label - null), 2 + label]
            assert noise[row, :, 0, 0].tolist() == pytest.approx(values, abs=1e-5)
            assert fraction[row, :, 0, 0].tolist() == [3 + label, 4 + label, 5 + label]
    assert network.scale(0) == pytest.approx(3.8)
    assert network.scale(999) == pytest.approx(1)


def test_without_guidance_one_pass_is_enough() -> None:
    seen: list[torch.Tensor] = []

    def answer(x: torch.Tensor, timesteps: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        seen.append(labels)
        return torch.zeros(len(x), 6, 6, 6)

    for scale in (1.0, 0.0, 2.0):
        guided(Known(answer), scale)(torch.zeros(2, 3, 6, 6), 5)
    assert [labels.tolist() for labels in seen] == [[2, 0], [4, 4], [2, 0, 4, 4]]


@pytest.mark.parametrize(("steps", "named"), [(0, r"num_inference_steps=0"), (1001, "num_inference_steps=1001")])
def test_numbers_of_steps_out_of_range(steps: int, named: str) -> None:
    with pytest.raises(OptionError, match=named):
        sampling.respaced(steps)


def test_timesteps_are_spread_from_end_to_end() -> None:
    assert sampling.respaced(1) == [0]
    assert sampling.respaced(2) == [999, 0]
    assert sampling.respaced(1000) == list(range(999, -1, -1))
    spaced = sampling.respaced(250)
    assert (len(set(spaced)), spaced[0], spaced[-1]) == (250, 999, 0)
    assert {one - other for one, other in pairwise(spaced)} == {4, 5}
