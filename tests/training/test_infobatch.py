from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dcprune import formats
from dcprune.api.runs import train
from dcprune.errors import OptionError
from dcprune.interfaces import TrainingData
from dcprune.training import checkpoint
from dcprune.training.config import TrainingConfig
from dcprune.training.infobatch import BINS, DECAY, InfoBatchStream
from dcprune.training.objectives import WeightedLoss
from dcprune.training.schedule import Schedule, infobatch_phases, learning_rate
from dcprune.training.trainer import Trainer

CPU = torch.device("cpu")
T = 1000


def stream_of(count: int, batch_size: int, seed: int = 0) -> InfoBatchStream:
    rows = torch.arange(100, 100 + count)
    return InfoBatchStream(rows, batch_size=batch_size, num_train_timesteps=T, seed=seed, device=CPU)


def epochs_of(stream: InfoBatchStream, losses: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Rows and weights of one epoch after the other, when the loss of row 100 + i is `losses[i]` at every timestep."""
    while True:
        epoch, rows, weights = math.floor(stream.epochs + 1e-9), [], []
        while stream.epochs < epoch + 1 - 1e-9:
            found, weight = stream.next()
            stream.observe(torch.zeros_like(found), losses[found - 100])
            rows.append(found)
            weights.append(weight)
        yield torch.cat(rows), torch.cat(weights)


def test_the_first_epoch_has_all_and_the_next_ones_half_of_those_below_the_mean() -> None:
    losses = torch.cat([torch.full((300,), 0.5), torch.full((100,), 2.0)])
    stream = stream_of(400, 1)
    stream._usual += 1.0  # a moving average that has seen much: the losses are their own scores
    epochs = epochs_of(stream, losses)
    rows, weights = next(epochs)
    assert sorted(rows.tolist()) == list(range(100, 500))
    assert set(weights.tolist()) == {1.0}
    for _, (rows, weights) in zip(range(5), epochs, strict=False):
        assert len(set(rows.tolist())) == len(rows)
        easy = rows < 400
        assert int((~easy).sum()) == 100  # all that lie above the mean
        assert abs(int(easy.sum()) - 150) < 4 * math.sqrt(300 / 4)
        assert set(weights[easy].tolist()) == {2.0}
        assert set(weights[~easy].tolist()) == {1.0}


def test_the_expected_weight_of_every_sample_is_one() -> None:
    losses = torch.linspace(0.1, 3.0, 60)
    seen = epochs_of(stream_of(60, 1), losses)
    next(seen)
    epochs, total = 300, torch.zeros(60)
    for _, (rows, weights) in zip(range(epochs), seen, strict=False):
        total.index_add_(0, rows - 100, weights)
    assert float((total / epochs - 1).abs().max()) < 4.5 / math.sqrt(epochs)
    assert float((total / epochs - 1).abs().max()) > 0


def test_scores_are_losses_relative_to_what_is_usual_at_the_timestep() -> None:
    """Against the plain arithmetic, one sample at a time."""
    rng = np.random.default_rng(0)
    stream, scores = stream_of(7, 5), np.full(7, 3.0)
    sums, ones = np.zeros(BINS), np.zeros(BINS)
    for _ in range(30):
        rows, weights = stream.next()
        timesteps, losses = rng.integers(0, T, 5), rng.exponential(size=5).astype(np.float32)
        stream.observe(torch.from_numpy(timesteps), torch.from_numpy(losses))
        bins = timesteps * BINS // T
        for number in set(bins.tolist()):
            here = bins == number
            mean = np.average(losses[here], weights=weights.numpy()[here])
            sums[number] = DECAY * sums[number] + (1 - DECAY) * mean
            ones[number] = DECAY * ones[number] + (1 - DECAY)
        relative: dict[int, list[float]] = {}
        for row, loss, number in zip(rows.tolist(), losses, bins, strict=True):
            relative.setdefault(row - 100, []).append(loss / (sums[number] / ones[number]))
        for position, found in relative.items():
            scores[position] = max(found)
        np.testing.assert_allclose(stream.scores.numpy(), scores, rtol=1e-5)


def test_the_timestep_does_not_decide_who_is_left_out() -> None:
    """The loss is mostly a function of the timestep, and a little one of the sample."""
    count, rng = 200, np.random.default_rng(1)
    quality = torch.from_numpy(np.where(np.arange(count) < 100, 0.8, 1.25)).float()
    stream = stream_of(count, 20)
    while stream.epochs < 20:
        rows, _ = stream.next()
        timesteps = torch.from_numpy(rng.integers(0, T, 20))
        stream.observe(timesteps, quality[rows - 100] * torch.exp(-timesteps / 150))
    scores = stream.scores
    assert float((scores[:100] < scores.mean()).float().mean()) > 0.9
    assert float((scores[100:] > scores.mean()).float().mean()) > 0.9


def test_a_stream_goes_on_from_its_state() -> None:
    losses = torch.linspace(0.1, 3.0, 37)
    whole, first, second = (stream_of(37, 8) for _ in range(3))

    def step(stream: InfoBatchStream) -> list[float]:
        rows, weights = stream.next()
        stream.observe(rows, losses[rows - 100])
        return [*rows.tolist(), *weights.tolist()]

    expected = [step(whole) for _ in range(30)]
    found = [step(first) for _ in range(13)]
    second.load_state({name: value.clone() for name, value in first.state().items()})
    found += [step(second) for _ in range(17)]
    assert found == expected
    assert second.epochs == whole.epochs


def test_phases_end_by_epochs_or_by_updates() -> None:
    labels = np.zeros(80, dtype=np.int64)
    objective = WeightedLoss(np.ones(1), labels, CPU)
    by_steps = TrainingConfig(steps=16, batch_size=8, dynamic="infobatch")
    first, last = infobatch_phases(torch.arange(80), objective, by_steps)
    assert (first.steps, last.steps, first.pruned, last.pruned) == (14, 2, True, False)
    by_epochs = TrainingConfig(
        epochs=8, batch_size=8, dynamic="infobatch", lr_schedule="cosine", learning_rate=1.0, lr_warmup_steps=4
    )
    schedule = Schedule(infobatch_phases(torch.arange(80), objective, by_epochs), by_epochs, T, CPU)
    assert schedule.total_steps == 80
    stream = schedule._streams[0]
    assert isinstance(stream, InfoBatchStream)
    stream._usual += 1.0
    rates, sizes, steps, before = [], [], 0, 0.0
    while not schedule.finished:
        rates.append(learning_rate(by_epochs, schedule.position, schedule.total_steps, 4))
        rows, weights = schedule.next()
        sizes.append((schedule.number, set(rows.tolist()), weights))
        if schedule.wants_losses:
            stream.observe(torch.zeros_like(rows), torch.where(rows < 60, 0.1, 1.0))
        schedule.advance()
        steps += 1
        assert schedule.epochs > before
        before = schedule.epochs
    assert 8 <= schedule.epochs < 8 + 8 / 40  # a phase ends with a whole batch
    # The first epoch has 10 updates, each of the next six about 50 / 8, and the last epoch 10 again.
    assert 50 < steps < 65
    assert rates[0] == 0.25
    assert max(rates[1:]) == pytest.approx(1.0, abs=0.01)
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[-1] < 0.01
    full = [(rows, weights) for number, rows, weights in sizes if number == 1]
    assert set().union(*(rows for rows, _ in full)) == set(range(80))
    assert all(weights is None for _, weights in full)


def test_a_run_that_was_interrupted_ends_with_the_same_weights(
    make_trainer: Callable[..., Trainer], data: TrainingData, scripted: Any, tmp_path: Path
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    options: dict[str, Any] = {"epochs": 6, "steps": None, "batch_size": 10, "dynamic": "infobatch", "log_every": 1}
    config = TrainingConfig(**options)

    def trainer(folder: Path, progress: Any = None) -> Trainer:
        objective = WeightedLoss(np.ones(10), data.labels.numpy(), CPU)
        phases = infobatch_phases(torch.arange(len(data)), objective, config)
        return make_trainer(phases=phases, folder=folder, progress=progress, **options)

    whole = trainer(tmp_path / "whole")
    whole.run()
    assert whole.step < 6 * 4
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path / "run", scripted(9, interrupt)).run()
    resumed = trainer(tmp_path / "run")
    assert resumed.resume(tmp_path / "run")
    resumed.run()
    assert resumed.step == whole.step
    newest = [checkpoint.latest(tmp_path / name) for name in ("whole", "run")]
    for name in ("model", "ema", "optimizer", "progress"):
        one, other = (path / f"{name}.safetensors" for path in newest if path is not None)
        assert one.read_bytes() == other.read_bytes()


@pytest.mark.usefixtures("small_grids")
def test_a_run_folder_tells_how_many_updates_were_made(options: dict[str, Any], tmp_path: Path) -> None:
    run = train(output=tmp_path / "run", **{**options, "steps": None, "epochs": 8}, dynamic="infobatch")
    assert run.training["dynamic"] == run.provenance.config["dynamic"] == "infobatch"
    assert run.step == run.total_steps < 8 * 40 / 10
    assert run.ledger[0].images_seen == run.step * 10
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["step"] == run.step
    assert 8 <= last["epoch"] < 8 + 10 / 20
    assert formats.read_run(tmp_path / "run") == run
    with pytest.raises(OptionError, match="dynamic=infobatch, and now it is None"):
        train(output=tmp_path / "run", **{**options, "steps": None, "epochs": 8}, resume=True)


@pytest.mark.parametrize(
    ("other", "named"),
    [({"anneal": 0.5}, r"anneal=0\.5 does not go with it"), ({"class_weighting": "sampling"}, "class_weighting")],
)
def test_what_contradicts_it_is_refused(other: dict[str, Any], named: str) -> None:
    with pytest.raises(OptionError, match=named):
        TrainingConfig.resolve({"steps": 5}, {"dynamic": "infobatch", **other})
