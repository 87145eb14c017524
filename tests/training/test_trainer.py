from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from dcprune.errors import ArtifactError, TrainingDiverged
from dcprune.interfaces import TrainingData
from dcprune.training import checkpoint
from dcprune.training.ema import Ema, decay_at
from dcprune.training.objectives import WeightedLoss
from dcprune.training.run_folder import grid, png_bytes
from dcprune.training.schedule import Phase
from dcprune.training.trainer import Trainer

Make = Callable[..., Trainer]


def weights_of(model: torch.nn.Module) -> bytes:
    return b"".join(tensor.contiguous().numpy().tobytes() for tensor in model.state_dict().values())


def lines_of(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "images_per_second"} for line in lines]


def interrupt() -> None:
    raise KeyboardInterrupt


def crash() -> None:
    raise MemoryError


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Filled by the first test that needs it: the run that all resumed runs must equal."""
    return {"folder": tmp_path_factory.mktemp("uninterrupted")}


@pytest.fixture
def whole(uninterrupted: dict[str, Any], make_trainer: Make) -> dict[str, Any]:
    if "model" not in uninterrupted:
        trainer = make_trainer(folder=uninterrupted["folder"])
        trainer.run()
        uninterrupted.update(model=weights_of(trainer.model), ema=weights_of(trainer.ema.model))
    return uninterrupted


@pytest.mark.parametrize(
    ("stop", "saved_at"),
    [
        (interrupt, 5),
        (lambda: signal.raise_signal(signal.SIGINT), 5),
        (lambda: signal.raise_signal(signal.SIGTERM), 5),
        (crash, 3),
    ],
    ids=["KeyboardInterrupt", "SIGINT", "SIGTERM", "crash"],
)
def test_a_resumed_run_ends_with_the_same_weights(
    stop: Callable[[], None],
    saved_at: int,
    whole: dict[str, Any],
    make_trainer: Make,
    scripted: Any,
    tmp_path: Path,
) -> None:
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises((KeyboardInterrupt, MemoryError)):
        make_trainer(folder=tmp_path, progress=scripted(5, stop)).run()
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    newest = checkpoint.latest(tmp_path)
    assert newest is not None
    assert newest.name == f"step-{saved_at:08d}"

    resumed = make_trainer(folder=tmp_path)
    assert resumed.resume(tmp_path)
    assert resumed.step == saved_at
    resumed.run()
    assert weights_of(resumed.model) == whole["model"]
    assert weights_of(resumed.ema.model) == whole["ema"]
    assert lines_of(tmp_path) == lines_of(whole["folder"])
    finals = [
        load_file(path / "checkpoints/step-00000008/optimizer.safetensors") for path in (tmp_path, whole["folder"])
    ]
    assert all(torch.equal(finals[0][name], tensor) for name, tensor in finals[1].items())


def test_the_seed_decides(whole: dict[str, Any], make_trainer: Make) -> None:
    again, other = make_trainer(), make_trainer(seed=1)
    torch.manual_seed(123)  # what the caller did before does not matter, and is not disturbed
    before = torch.get_rng_state()
    again.run()
    other.run()
    assert weights_of(again.model) == whole["model"]
    assert weights_of(other.model) != whole["model"]
    assert torch.equal(before, torch.get_rng_state())


def test_checkpoints_are_few_and_nothing_unfinished_is_left(
    whole: dict[str, Any], make_trainer: Make, tmp_path: Path
) -> None:
    leftover = tmp_path / "checkpoints" / ".step-00000001.killed.tmp"
    leftover.mkdir(parents=True)
    assert checkpoint.latest(tmp_path) is None
    make_trainer(folder=tmp_path, keep_checkpoints=1).run()
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-00000008"]
    names = sorted(path.name for path in (whole["folder"] / "checkpoints").iterdir())
    assert names == ["step-00000006", "step-00000008"]


def test_a_second_interrupt_in_the_middle_of_an_update_saves_nothing(make_trainer: Make, tmp_path: Path) -> None:
    trainer = make_trainer(folder=tmp_path)

    def twice(*_: object) -> torch.Tensor:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("the second signal must stop at once")

    trainer.phases = (Phase(trainer.phases[0].rows, 8, _Objective(twice)),)
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    assert checkpoint.latest(tmp_path) is None


class _Objective:
    def __init__(self, reduce: Callable[..., torch.Tensor]) -> None:
        self.reduce = reduce

    def describe(self) -> str:
        return "scripted"


def test_a_damaged_checkpoint_is_named(make_trainer: Make, tmp_path: Path) -> None:
    make_trainer(folder=tmp_path).run()
    newest = checkpoint.latest(tmp_path)
    assert newest is not None
    broken = newest / "ema.safetensors"
    broken.write_bytes(broken.read_bytes()[:-100])
    with pytest.raises(ArtifactError, match=r"step-00000008.*Remove it"):
        make_trainer(folder=tmp_path).resume(tmp_path)


def test_a_checkpoint_of_other_data_is_refused(make_trainer: Make, data: TrainingData, tmp_path: Path) -> None:
    make_trainer(folder=tmp_path, steps=3).run()
    with pytest.raises(ArtifactError, match="other samples"):
        make_trainer(folder=tmp_path, steps=3, seed=4).resume(tmp_path)
    objective = WeightedLoss(np.ones(10), data.labels.numpy(), torch.device("cpu"))
    fewer = Phase(torch.arange(len(data) - 1), 3, objective)
    with pytest.raises(ArtifactError, match="other samples"):
        make_trainer(folder=tmp_path, steps=3, phases=[fewer]).resume(tmp_path)


def test_a_loss_that_is_not_finite_stops_the_run_before_it_is_saved(make_trainer: Make, tmp_path: Path) -> None:
    trainer = make_trainer(folder=tmp_path, checkpoint_every=5, log_every=4)

    def poisoned(per_sample_loss: torch.Tensor, *_: object) -> torch.Tensor:
        return per_sample_loss.mean() * (float("nan") if trainer.step == 1 else 1.0)

    trainer.phases = (Phase(trainer.phases[0].rows, 8, _Objective(poisoned)),)
    with pytest.raises(TrainingDiverged, match="learning_rate"):
        trainer.run()
    assert trainer.step == 4
    assert checkpoint.latest(tmp_path) is None


def test_each_phase_sees_its_own_rows_and_objective(make_trainer: Make, data: TrainingData) -> None:
    seen: list[tuple[str, set[int]]] = []

    def recorder(name: str) -> _Objective:
        def reduce(per_sample_loss: torch.Tensor, model: torch.nn.Module, draw: Any) -> torch.Tensor:
            seen.append((name, set(draw.batch.labels.tolist())))
            return per_sample_loss.mean()

        return _Objective(reduce)

    kept = torch.nonzero(data.labels < 3).flatten()
    rest = torch.nonzero(data.labels >= 3).flatten()
    phases = [Phase(kept, 2, recorder("coreset")), Phase(rest, 3, recorder("full"))]
    trainer = make_trainer(phases=phases, steps=5)
    trainer.run()
    assert [name for name, _ in seen] == ["coreset"] * 2 + ["full"] * 3
    assert all(labels <= {0, 1, 2} for _, labels in seen[:2])
    assert all(labels.isdisjoint({0, 1, 2}) for _, labels in seen[2:])
    assert trainer.images_seen == 60


def test_only_the_rows_of_the_phase_are_read(
    make_trainer: Make, data: TrainingData, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: set[int] = set()
    original = data.x0

    def x0(rows: torch.Tensor, flip: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        read.update(rows.tolist())
        return original(rows, flip, generator)

    monkeypatch.setattr(data, "x0", x0)
    kept = torch.arange(0, 40, 3)
    objective = WeightedLoss(np.ones(10), data.labels[kept].numpy(), torch.device("cpu"))
    make_trainer(phases=[Phase(kept, 4, objective)]).run()
    assert read == set(kept.tolist())


def test_metrics_and_grids_are_written_as_the_run_goes(make_trainer: Make, tmp_path: Path) -> None:
    images = torch.arange(3 * 64, dtype=torch.uint8).view(3, 1, 8, 8)
    options = {"steps": 4, "sample_every": 2, "learning_rate": 0.01, "lr_warmup_steps": 4}
    make_trainer(folder=tmp_path, draw_images=lambda _: images, **options).run()
    lines = lines_of(tmp_path)
    assert [line["step"] for line in lines] == [2, 4]
    assert [line["epoch"] for line in lines] == [pytest.approx(2 * 12 / 40), pytest.approx(4 * 12 / 40)]
    assert [line["lr"] for line in lines] == [pytest.approx(0.005), pytest.approx(0.01)]
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == ["step-00000002.png", "step-00000004.png"]
    with Image.open(tmp_path / "samples" / "step-00000004.png") as image:
        drawn = np.asarray(image)
    assert drawn.shape == (16, 16)
    np.testing.assert_array_equal(drawn[8:, :8], images[2, 0])
    assert not drawn[8:, 8:].any()


def test_grids_keep_colours() -> None:
    images = torch.randint(0, 256, (5, 3, 4, 6), dtype=torch.uint8)
    tiled = grid(images, 2)
    assert tiled.shape == (3, 12, 12)
    assert torch.equal(tiled[:, 4:8, 6:], images[3])
    assert png_bytes(tiled).startswith(b"\x89PNG")


def test_the_average_follows_the_published_ramp(make_trainer: Make) -> None:
    assert decay_at(1, 0.9999) == 0
    assert decay_at(8, 0.9999) == pytest.approx(0.75)
    assert decay_at(10**7, 0.9999) == 0.9999
    model = torch.nn.Linear(2, 1, bias=False)
    ema, expected = Ema(model, 0.6), 0.0
    for step, value in enumerate([1.0, -2.0, 5.0, 3.0], start=1):
        torch.nn.init.constant_(model.weight, value)
        ema.update(model, step)
        decay = min(0.6, 1 - step ** (-2 / 3))
        expected = decay * expected + (1 - decay) * value
        averaged = ema.model.get_parameter("weight")
        assert averaged.flatten().tolist() == pytest.approx([expected] * 2)


def test_training_lowers_the_loss(make_trainer: Make, tmp_path: Path) -> None:
    make_trainer(folder=tmp_path, steps=60, log_every=15, learning_rate=1e-2, checkpoint_every=1000).run()
    losses = [line["loss"] for line in lines_of(tmp_path)]
    assert losses[-1] < 0.6 * losses[0]


def test_bfloat16_trains_like_float32_with_less_precision(make_trainer: Make, data: TrainingData) -> None:
    exact, coarse = make_trainer(), make_trainer()
    coarse.dtype = torch.bfloat16
    for trainer in (exact, coarse):
        trainer.run()
    for one, other in zip(exact.model.parameters(), coarse.model.parameters(), strict=True):
        assert other.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=0, atol=8e-3)
    assert weights_of(exact.model) != weights_of(coarse.model)
