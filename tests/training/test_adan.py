"""Adan against its published update rule, and across a checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from dcprune.errors import OptionError
from dcprune.training import checkpoint
from dcprune.training.config import TrainingConfig
from dcprune.training.trainer import _optimizer

CPU = torch.device("cpu")
BETAS = (0.98, 0.92, 0.99)


def gradients(steps: int) -> torch.Tensor:
    return torch.randn(steps, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def stepped(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, every: torch.Tensor) -> None:
    for gradient in every:
        parameter.grad = gradient.clone()
        optimizer.step()


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_updates_are_those_of_algorithm_1(decay: float) -> None:
    """Xie et al. 2022, arXiv 2208.06677, with bias-corrected averages; v averages differences of gradients."""
    config = TrainingConfig(steps=1, optimizer="adan", learning_rate=0.01, weight_decay=decay)
    parameter = nn.Parameter(torch.linspace(-1, 1, 6, dtype=torch.float64))
    expected, every = parameter.detach().clone(), gradients(12)
    stepped(_optimizer([parameter], config, CPU), parameter, every)
    m, v, n, before = (torch.zeros(6, dtype=torch.float64) for _ in range(4))
    for step, gradient in enumerate(every, start=1):
        difference = gradient - before if step > 1 else torch.zeros_like(gradient)
        m = BETAS[0] * m + (1 - BETAS[0]) * gradient
        v = BETAS[1] * v + (1 - BETAS[1]) * difference
        n = BETAS[2] * n + (1 - BETAS[2]) * (gradient + BETAS[1] * difference) ** 2
        m_hat, v_hat, n_hat = (each / (1 - beta**step) for each, beta in zip((m, v, n), BETAS, strict=True))
        expected = (expected - 0.01 * (m_hat + BETAS[1] * v_hat) / (n_hat.sqrt() + 1e-8)) / (1 + 0.01 * decay)
        before = gradient
    torch.testing.assert_close(parameter.detach(), expected)


def test_a_checkpoint_holds_all_of_its_state(tmp_path: Path) -> None:
    config = TrainingConfig(steps=1, optimizer="adan", learning_rate=0.01)
    every = gradients(9).float()

    def learner() -> checkpoint.Learner:
        model = nn.Linear(6, 1, bias=False)
        nn.init.ones_(model.weight)
        return checkpoint.Learner(
            model, nn.Linear(6, 1, bias=False), _optimizer([*model.parameters()], config, CPU), {}
        )

    def trained(one: checkpoint.Learner, rows: torch.Tensor) -> torch.Tensor:
        (weight,) = one.model.parameters()
        stepped(one.optimizer, weight, rows[:, None])
        return weight.detach()

    whole = trained(learner(), every)
    first = learner()
    trained(first, every[:5])
    position = checkpoint.Position(step=5, seed=0, plan_sha256="", device_seconds=0.0, guard={}, scaler={})
    second = learner()
    checkpoint.load(checkpoint.save(tmp_path, position, first, 1), second)
    assert torch.equal(trained(second, every[5:]), whole)


def test_betas_are_as_many_as_the_optimizer_takes() -> None:
    assert TrainingConfig(steps=1, optimizer="adan").betas == BETAS
    assert TrainingConfig(steps=1).betas == TrainingConfig(steps=1, optimizer="adamw").betas == (0.9, 0.999)
    assert TrainingConfig.resolve({"steps": 1, "optimizer": "adan"}, {"optimizer": "adamw"}).betas == (0.9, 0.999)
    with pytest.raises(OptionError, match=r"adam takes 2 betas, not \(0\.9, 0\.9, 0\.9\)"):
        TrainingConfig.resolve({"steps": 1}, {"betas": [0.9, 0.9, 0.9]})
    with pytest.raises(OptionError, match="adan takes 3 betas"):
        TrainingConfig.resolve({"steps": 1, "optimizer": "adan"}, {"betas": [0.9, 0.9]})
