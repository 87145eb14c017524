from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from dcprune.training.config import TrainingConfig
from dcprune.training.objectives import WeightedLoss
from dcprune.training.schedule import Phase, RowStream, learning_rate, phase_steps, plan_sha256, warmup_steps

CPU = torch.device("cpu")


def config(**options: object) -> TrainingConfig:
    return TrainingConfig.resolve({}, {"batch_size": 128, **options})


def test_updates_shrink_with_the_coreset_at_fixed_epochs() -> None:
    full, _ = phase_steps(config(epochs=2000), 50_000, 50_000)
    tenth, _ = phase_steps(config(epochs=2000), 5_000, 50_000)
    assert full == 781_250
    assert tenth == 78_125


def test_fixed_steps_do_not_depend_on_the_coreset() -> None:
    assert phase_steps(config(steps=1000), 10, 50_000) == phase_steps(config(steps=1000), 50_000, 50_000) == (1000, 0)


def test_annealing_splits_epochs_and_steps() -> None:
    coreset, full = phase_steps(config(epochs=80, anneal=0.875), 1_280, 12_800)
    assert (coreset, full) == (70 * 10, 10 * 100)
    assert phase_steps(config(steps=80, anneal=0.875), 1_280, 12_800) == (70, 10)


def test_a_short_run_has_one_update() -> None:
    assert phase_steps(config(epochs=0.001), 3, 3) == (1, 0)


def test_learning_rate_warms_up_then_follows_its_schedule() -> None:
    constant = config(epochs=100, learning_rate=1e-4, lr_warmup_epochs=13)
    warmup = warmup_steps(constant, 1_280)
    assert warmup == 130
    assert learning_rate(constant, 0, 1000, warmup) == pytest.approx(1e-4 / 130)
    assert learning_rate(constant, 129, 1000, warmup) == learning_rate(constant, 999, 1000, warmup) == 1e-4
    cosine = config(steps=110, learning_rate=1.0, lr_schedule="cosine", lr_warmup_steps=10)
    assert learning_rate(cosine, 9, 110, 10) == learning_rate(cosine, 10, 110, 10) == 1.0
    assert learning_rate(cosine, 60, 110, 10) == pytest.approx(0.5)
    assert learning_rate(cosine, 109, 110, 10) == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.99)))


@pytest.mark.parametrize("batch_size", [1, 4, 10, 23, 57])
def test_every_epoch_visits_every_row_once(batch_size: int) -> None:
    rows = torch.arange(100, 123)
    stream = RowStream(rows, batch_size=batch_size, seed=5, device=CPU)
    steps = math.ceil(3 * 23 / batch_size)
    order = torch.cat([stream.at(step) for step in range(steps)])[: 3 * 23].view(3, 23)
    assert all(sorted(epoch.tolist()) == rows.tolist() for epoch in order)
    assert order[0].tolist() != order[1].tolist()


def test_the_order_does_not_depend_on_batch_size_or_on_where_it_starts() -> None:
    rows = torch.arange(11)
    by_four = RowStream(rows, batch_size=4, seed=1, device=CPU)
    by_two = RowStream(rows, batch_size=2, seed=1, device=CPU)
    first = torch.cat([by_four.at(step) for step in range(10)])
    assert first.tolist() == torch.cat([by_two.at(step) for step in range(20)]).tolist()
    assert RowStream(rows, batch_size=4, seed=1, device=CPU).at(7).tolist() == by_four.at(7).tolist()
    assert (
        first.tolist()
        != torch.cat([RowStream(rows, batch_size=4, seed=2, device=CPU).at(step) for step in range(10)]).tolist()
    )


def test_weighted_rows_occur_in_proportion() -> None:
    weights = torch.tensor([0.25] * 20 + [1.75] * 20, dtype=torch.float64)
    stream = RowStream(torch.arange(40), weights, batch_size=40, seed=0, device=CPU)
    epochs = [torch.bincount(stream.at(epoch), minlength=40) for epoch in range(200)]
    assert all(int(counts.sum()) == 40 for counts in epochs)
    assert all(int(counts[:20].max()) <= 1 and int(counts[20:].min()) >= 1 for counts in epochs)
    mean = torch.stack(epochs).double().mean(0)
    # Systematic resampling leaves a row's count between the two nearest integers: its variance is at most 1/4.
    torch.testing.assert_close(mean, weights, atol=4 * 0.5 / math.sqrt(200), rtol=0)


def test_equal_weights_shuffle_plainly() -> None:
    stream = RowStream(torch.arange(50), torch.full((50,), 0.7).double(), batch_size=50, seed=0, device=CPU)
    for epoch in range(20):
        assert sorted(stream.at(epoch).tolist()) == list(range(50))


def test_plans_that_differ_have_different_hashes() -> None:
    labels = np.zeros(6, dtype=np.int64)
    alike = WeightedLoss(np.ones(2), labels, CPU)
    tilted = WeightedLoss(np.array([0.5, 1.5]), np.array([0, 0, 0, 1, 1, 1]), CPU)
    rows = torch.arange(6)
    plans = [
        [Phase(rows, 4, alike)],
        [Phase(rows, 5, alike)],
        [Phase(rows[:5], 4, alike)],
        [Phase(rows, 4, tilted)],
        [Phase(rows, 4, alike, torch.ones(6, dtype=torch.float64))],
        [Phase(rows, 4, alike), Phase(rows, 4, alike)],
    ]
    assert len({plan_sha256(plan) for plan in plans}) == len(plans)
    assert plan_sha256(plans[0]) == plan_sha256([Phase(torch.arange(6), 4, alike)])
