from __future__ import annotations

import json
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from dcprune.errors import ArtifactError, TrainingDiverged
from dcprune.interfaces import TrainingData
from dcprune.training import checkpoint, interrupt
from dcprune.training.draws import Draw
from dcprune.training.ema import Ema, decay_at
from dcprune.training.guard import LossGuard
from dcprune.training.objectives import SameInTraining, WeightedLoss
from dcprune.training.run_folder import grid, png_bytes
from dcprune.training.schedule import Phase
from dcprune.training.trainer import Trainer

Make = Callable[..., Trainer]


def weights_of(model: torch.nn.Module) -> bytes:
    return b"".join(tensor.contiguous().numpy().tobytes() for tensor in model.state_dict().values())


def lines_of(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "images_per_second"} for line in lines]


def keyboard_interrupt() -> None:
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
        (keyboard_interrupt, 5),
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


def test_a_second_interrupt_in_the_middle_of_an_update_saves_nothing(
    make_trainer: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(interrupt, "_SAME_WISH_SECONDS", -1.0)

    def twice(draw: Draw) -> None:
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("the second signal must stop at once")

    trainer = make_trainer(folder=tmp_path, phases=[Phase(torch.arange(40), 8, _Objective(twice))])
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    assert checkpoint.latest(tmp_path) is None


def test_a_signal_that_is_passed_on_twice_is_one_wish(
    whole: dict[str, Any], make_trainer: Make, scripted: Any, tmp_path: Path
) -> None:
    def twice() -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        make_trainer(folder=tmp_path, progress=scripted(5, twice)).run()
    assert checkpoint.step_of(checkpoint.latest(tmp_path)) == 5


class _Objective:
    """The mean loss, once `hook(draw)` has been called; it may raise, or give a factor."""

    forward_passes = 0

    def __init__(self, hook: Callable[[Draw], float | None]) -> None:
        self.hook = hook

    def compile(self, compiled: Callable[[torch.nn.Module], torch.nn.Module]) -> None: ...

    def prepare(self, same_in_training: SameInTraining) -> None:
        pass

    def begin(self, whole: Draw, parts: Sequence[Draw], model: torch.nn.Module) -> None:
        pass

    def weights(self, whole: Draw, part: Draw, losses: torch.Tensor) -> torch.Tensor:
        factor = self.hook(part)
        return torch.full_like(losses, (1.0 if factor is None else factor) / len(whole))

    def describe(self) -> str:
        return "scripted"

    def state(self) -> dict[str, torch.Tensor]:
        return {}

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        pass


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
    steps = iter(range(8))

    def poisoned(draw: Draw) -> float:
        return float("nan") if next(steps) == 4 else 1.0

    phases = [Phase(torch.arange(40), 8, _Objective(poisoned))]
    trainer = make_trainer(folder=tmp_path, phases=phases, log_every=8, checkpoint_every=3)
    with pytest.raises(TrainingDiverged, match=r"step 6.*last good checkpoint is .*step-00000003.*learning_rate"):
        trainer.run()
    assert checkpoint.step_of(checkpoint.latest(tmp_path)) == 3


def test_weights_that_are_not_finite_are_not_saved(make_trainer: Make, tmp_path: Path) -> None:
    """The loss of the last update is fine; what the update did is not."""
    trainer = make_trainer(folder=tmp_path, steps=2, checkpoint_every=1, lr_warmup_steps=2, learning_rate=1e38)
    with pytest.raises(TrainingDiverged, match="weight is not finite"):
        trainer.run()
    assert checkpoint.latest(tmp_path) is None


def test_an_exploding_loss_stops_the_run(make_trainer: Make, tmp_path: Path) -> None:
    steps = iter(range(45))
    phases = [Phase(torch.arange(40), 45, _Objective(lambda _: 1.0 if next(steps) < 20 else 50.0))]
    options = {"batch_size": 80, "log_every": 5, "checkpoint_every": 15, "steps": 45}
    trainer = make_trainer(folder=tmp_path, phases=phases, **options)
    with pytest.raises(TrainingDiverged, match=r"explodes: it is [\d.]+, and was [\d.]+ at the start.*step-00000015"):
        trainer.run()
    assert trainer.step == 30


def test_checkpoints_of_before_an_explosion_stay(make_trainer: Make, tmp_path: Path) -> None:
    steps = iter(range(60))
    phases = [Phase(torch.arange(40), 60, _Objective(lambda _: 1.0 if next(steps) < 22 else 50.0))]
    options = {"batch_size": 80, "log_every": 20, "checkpoint_every": 5, "keep_checkpoints": 2, "steps": 60}
    trainer = make_trainer(folder=tmp_path, phases=phases, **options)
    with pytest.raises(TrainingDiverged, match=r"last good checkpoint is .*step-00000020"):
        trainer.run()
    assert [path.name for path in sorted((tmp_path / "checkpoints").iterdir())] == ["step-00000015", "step-00000020"]


def test_a_grid_that_cannot_be_drawn_costs_no_updates(make_trainer: Make, tmp_path: Path) -> None:
    def failing(_: torch.nn.Module) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    options = {"steps": 4, "checkpoint_every": 100}
    with pytest.raises(torch.OutOfMemoryError):
        make_trainer(folder=tmp_path, draw_images=failing, **options).run()
    resumed = make_trainer(folder=tmp_path, draw_images=failing, **options)
    assert resumed.resume(tmp_path)
    resumed.run()
    assert resumed.step == 4


def test_a_guard_waits_for_enough_samples_and_forgives_what_is_usual() -> None:
    guard = LossGuard()
    assert guard.complaint(0.01, 500) == ""  # a lucky start
    assert guard.complaint(1.99, 524) == ""
    assert guard.first == pytest.approx((0.01 * 500 + 1.99 * 524) / 1024)
    assert guard.complaint(9.0, 2000) == ""
    assert guard.complaint(11.0, 500) == ""
    assert "explodes" in guard.complaint(11.0, 600)
    assert "not finite" in guard.complaint(float("inf"), 1)


def test_each_phase_sees_its_own_rows_and_objective(make_trainer: Make, data: TrainingData) -> None:
    seen: list[tuple[str, set[int]]] = []

    def recorder(name: str) -> _Objective:
        return _Objective(lambda draw: seen.append((name, set(draw.batch.labels.tolist()))))

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
        ema.update(step)
        decay = min(0.6, 1 - step ** (-2 / 3))
        expected = decay * expected + (1 - decay) * value
        averaged = ema.model.get_parameter("weight")
        assert averaged.flatten().tolist() == pytest.approx([expected] * 2)


def test_an_average_without_a_ramp_has_one_decay(make_trainer: Make) -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(model.weight, 0.0)
    ema = Ema(model, 0.75, ramp=False)
    torch.nn.init.constant_(model.weight, 1.0)
    for step in (1, 2):
        ema.update(step)
    assert ema.model.get_parameter("weight").item() == pytest.approx(1 - 0.75**2)
    assert make_trainer(ema_ramp=False).ema.ramp is False


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
