"""What a training shows while it goes on: the live view, the lines of a log, trackers."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from dcprune.api.runs import train
from dcprune.cli import console
from dcprune.cli.live import TrainingProgress, TrainingView, bar, most_and_least
from dcprune.errors import OptionError, OutputExists, UnknownName
from dcprune.interfaces import ClassTask, TrainingData
from dcprune.training import trackers
from dcprune.training.losses import LossSums
from dcprune.training.sharing import WHOLE
from dcprune.training.trainer import Trainer


def text_of(view: TrainingView) -> str:
    terminal = Console(file=io.StringIO(), width=100)
    with terminal.capture() as captured:
        terminal.print(view.render())
    return captured.get()


def test_the_view_shows_numbers_classes_and_what_is_left() -> None:
    view = TrainingView(Console(file=io.StringIO()), 200, "step")
    assert isinstance(view, ClassTask)
    assert "0/200" in text_of(view)
    view.advance(50)
    view.advance(0, loss=0.123456, lr=1e-4, **{"images/s": 1234.5})
    view.show_classes({"Bag": 0.25, "Coat [old]": 0.5, "Shirt": None})
    text = text_of(view)
    assert "50/200" in text
    assert "0.1235" in text
    assert "1234" in text
    rows = [line for line in text.splitlines() if "loss of" in line]
    assert ["Bag" in rows[0], "Coat [old]" in rows[1]] == [True, True]
    assert rows[1].count("█") == 2 * rows[0].count("█") == 30
    view.show_classes({"Bag": None, "Shirt": 0.1})  # a class without samples keeps what was known
    assert "Bag" in text_of(view)
    assert "Shirt" in text_of(view)


def test_many_classes_are_shown_by_their_extremes() -> None:
    values = {str(number): float(number) for number in range(100)}
    shown = most_and_least(values)
    assert list(shown)[:2] == ["99", "98"]
    assert list(shown)[-2:] == ["1", "0"]
    assert len(shown) == 20
    assert bar(1.0, 3.0) == "█" * 10
    assert bar(0.0, 3.0) == bar(float("nan"), 1.0) == bar(1.0, 0.0) == ""


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_the_live_view_and_a_file_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "settings", console.Settings())
    monkeypatch.setattr(sys, "stderr", _Terminal())
    with TrainingProgress().task("train", 10, "step") as task:
        assert isinstance(task, TrainingView)
        task.advance(3)
    with TrainingProgress().task("prepare images", 10) as task:
        assert not isinstance(task, ClassTask)
    plain = io.StringIO()
    monkeypatch.setattr(sys, "stderr", plain)
    monkeypatch.setattr(console, "_PLAIN_INTERVAL", 0.0)
    with TrainingProgress().task("train", 10, "step") as task:
        task.advance(4)  # done before a resume
        task.advance(1, loss=0.5)
        task.advance(1)
    lines = plain.getvalue().splitlines()
    assert lines[-1].startswith("train: 6/10 step")
    assert lines[-1].endswith("loss=0.5")  # also between two looks at the losses


def test_losses_of_classes_are_their_plain_means() -> None:
    sums = LossSums(3, torch.device("cpu"), WHOLE)
    rng = np.random.default_rng(0)
    losses, labels = rng.exponential(size=(4, 6)), rng.integers(0, 2, (4, 6))
    for values, classes in zip(losses, labels, strict=True):
        sums.add(torch.tensor(values.mean()), torch.from_numpy(values).float(), torch.from_numpy(classes))
        sums.updates += 1
    found = sums.read(reset=True)
    assert found.mean == pytest.approx(losses.mean())
    assert found.per_class[0] == pytest.approx(losses[labels == 0].mean())
    assert found.per_class[1] == pytest.approx(losses[labels == 1].mean())
    assert found.per_class[2] is None
    assert sums.read().updates == 0
    assert LossSums(1, torch.device("cpu"), WHOLE).read().per_class == ()


def test_a_run_tells_the_task_and_the_file_the_same(
    make_trainer: Callable[..., Trainer], data: TrainingData, tmp_path: Path
) -> None:
    shown: list[dict[str, Any]] = []

    class Watching:
        @contextmanager
        def task(self, description: str, total: int | None, unit: str = "it") -> Iterator[Watching]:
            yield self

        def advance(self, amount: int = 1, **values: float | str) -> None:
            if values:
                shown.append({**values})

        def show_classes(self, values: dict[str, float | None]) -> None:
            shown[-1]["classes"] = values

        def note(self, message: str) -> None: ...

        def warn(self, message: str) -> None: ...

    trainer = make_trainer(folder=tmp_path, steps=4)
    trainer.progress, trainer.class_names = Watching(), [f"class {label}" for label in range(10)]
    trainer.run()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [each["loss"] for each in shown] == [line["loss"] for line in lines]
    assert [each["lr"] for each in shown] == [line["lr"] for line in lines]
    for each, line in zip(shown, lines, strict=True):
        assert list(each["classes"].values()) == pytest.approx(line["class_losses"], rel=1e-4)
        assert list(each["classes"]) == trainer.class_names
    # 24 samples over 10 classes: the classes' losses average to the loss, in proportion to their samples.
    assert min(lines[0]["class_losses"]) < lines[0]["loss"] < max(lines[0]["class_losses"])


@pytest.mark.usefixtures("small_grids")
def test_tensorboard_holds_losses_and_grids(options: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = train(output=tmp_path / "run", **options, trackers=["tensorboard"])
    assert run.provenance.config["tracker"] == ["tensorboard"]
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [(each.step, each.value) for each in events.Scalars("loss")] == [
        (line["step"], pytest.approx(line["loss"])) for line in lines
    ]
    found = {each.step: each.value for each in events.Scalars("class_loss/Bag")}
    position = run.dataset.class_names.index("Bag")
    assert found == {
        line["step"]: pytest.approx(line["class_losses"][position])
        for line in lines
        if line["class_losses"][position] is not None
    }
    (grid,) = events.Images("samples")
    assert (grid.step, grid.height, grid.width) == (6, 8, 16)


def test_trackers_that_cannot_work_are_refused_first(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(UnknownName, match="Did you mean 'tensorboard'"):
        train(output=tmp_path / "run", **options, trackers=["tensorbord"])
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(OptionError, match="wandb is not installed: pip install wandb"):
        train(output=tmp_path / "run", **options, trackers=["wandb"])
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").touch()
    with pytest.raises(OutputExists):
        train(output=tmp_path / "run", **options)


def test_every_tracker_is_one_of_accelerate(tmp_path: Path) -> None:
    assert [type(trackers._open(name, tmp_path / "run")).name for name in trackers.TRACKERS] == list(trackers.TRACKERS)


@pytest.mark.usefixtures("small_grids")
def test_a_tracker_hears_everything_and_is_closed(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """trackio and wandb want an account or a server: their interface in accelerate hears what they would."""
    heard: list[tuple[str, Any]] = []

    class Recording:
        def start(self) -> None:
            heard.append(("start", None))

        def store_init_configuration(self, values: dict[str, Any]) -> None:
            heard.append(("config", values))

        def log(self, values: dict[str, Any], step: int) -> None:
            heard.append(("log", (step, values)))

        def log_images(self, values: dict[str, Any], step: int) -> None:
            heard.append(("images", (step, values)))

        def finish(self) -> None:
            heard.append(("finish", None))

    monkeypatch.setattr(trackers, "find_spec", lambda name: object())
    monkeypatch.setattr(trackers, "_open", lambda name, folder: Recording())
    train(output=tmp_path / "run", **{**options, "steps": 2}, trackers=["wandb"])
    assert [kind for kind, _ in heard] == ["start", "config", "log", "images", "finish"]
    assert heard[1][1]["backend"] == "ddpm"
    assert all(isinstance(value, int | float | str) for value in heard[1][1].values())
    step, values = heard[2][1]
    assert step == 2
    assert {"loss", "lr", "epoch", "images_per_second"} < set(values)
    step, images = heard[3][1]
    assert images["samples"].shape == (1, 8, 16, 3)
