"""Runs that are killed, run out of disk or time, or are asked to stop."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from typer.testing import CliRunner

from dcprune import formats
from dcprune.api.runs import train
from dcprune.artifacts import Coreset
from dcprune.backends.ddpm import Ddpm
from dcprune.cli import live
from dcprune.cli.app import app
from dcprune.errors import OptionError, OutOfMemory, OutOfTime, StorageError
from dcprune.interfaces import Batch, DatasetSource
from dcprune.training import checkpoint
from dcprune.training.interrupt import seconds_of
from dcprune.training.trainer import Trainer

Make = Callable[..., Trainer]


@pytest.fixture(scope="module")
def attempts(
    tmp_path_factory: pytest.TempPathFactory, fashion: DatasetSource, make_coreset: Callable[..., Coreset]
) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("killed")
    formats.write_coreset(make_coreset(fashion, np.arange(0, 4000, 200)), folder / "coreset.json")
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("killed.py")), str(folder), "23"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_run_that_was_killed_resumes_to_the_same_bytes(attempts: dict[str, Any]) -> None:
    assert attempts["operations"] > 80
    assert len(attempts["attempts"]) == -(-attempts["operations"] // 23)
    whole = attempts["whole"]
    assert whole["names"] == ["checkpoints", "metrics.jsonl", "model", "run.json", "samples"]
    assert [line["step"] for line in whole["lines"]] == [1, 2, 3, 4]
    for each in attempts["attempts"]:
        assert each.pop("died")
        assert each.pop("resumed")
        assert each == whole


@contextmanager
def largest_file(limit: int) -> Iterator[None]:
    """No file may grow beyond `limit` bytes, which a write then reports as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_without_room_leaves_the_checkpoint_before(make_trainer: Make, scripted: Any, tmp_path: Path) -> None:
    make_trainer(folder=tmp_path / "whole").run()
    trainer = make_trainer(folder=tmp_path / "run")
    size = sum(file.stat().st_size for file in (tmp_path / "whole/checkpoints/step-00000008").iterdir())
    limits = largest_file(size // 10)
    trainer.progress = scripted(4, limits.__enter__)
    try:
        with pytest.raises(StorageError, match=r"step 6 \(.* MB\).*too large.*step-00000003.*--resume"):
            trainer.run()
    finally:
        limits.__exit__(None, None, None)
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["step-00000003"]
    resumed = make_trainer(folder=tmp_path / "run")
    assert resumed.resume(tmp_path / "run")
    resumed.run()
    for name in ("model", "ema", "optimizer", "progress"):
        file = f"checkpoints/step-00000008/{name}.safetensors"
        assert (tmp_path / "run" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


@pytest.mark.usefixtures("small_grids")
def test_a_model_that_cannot_be_written_is_named_and_its_run_goes_on_from_there(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(self: Ddpm, model: Any, folder: Path) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as patch:
        patch.setattr(Ddpm, "save", full)
        with pytest.raises(StorageError, match=r"model cannot be written: .*No space left.*--resume"):
            train(output=tmp_path / "run", **options)
    assert train(output=tmp_path / "run", **options, resume=True).model_sha256 is not None


@pytest.mark.usefixtures("small_grids")
def test_a_batch_that_no_memory_holds_is_no_bug(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    original = Ddpm.per_sample_loss

    def too_large(self: Ddpm, model: torch.nn.Module, batch: Batch, *arguments: Any) -> torch.Tensor:
        if len(batch.labels) == 10:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return original(self, model, batch, *arguments)

    monkeypatch.setattr(Ddpm, "per_sample_loss", too_large)
    with pytest.raises(OutOfMemory, match=r"batch of 10 on 1 devices in 1 portions.*--gradient-accumulation-steps"):
        train(output=tmp_path / "run", **options)


@pytest.mark.usefixtures("small_grids")
def test_sigterm_before_the_first_update_is_an_interrupt(
    files: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(live, "TrainingProgress", lambda: signal.raise_signal(signal.SIGTERM))
    done = CliRunner().invoke(app, ["train", "--coreset", str(files / "coreset.json"), "-o", str(tmp_path / "run")])
    assert (done.exit_code, done.stderr) == (130, "Error: Interrupted.\n")
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert not (tmp_path / "run").exists()


def test_a_log_that_cannot_be_written_is_named(
    make_trainer: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    trainer = make_trainer(folder=tmp_path)
    original = Path.open

    def full(self: Path, *arguments: Any, **options: Any) -> Any:
        if self.name == "metrics.jsonl":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))
        return original(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(StorageError, match=r"metrics.jsonl cannot be written: No space left"):
        trainer.run()


def test_a_run_in_small_pieces_of_time_ends_with_the_same_bytes(make_trainer: Make, tmp_path: Path) -> None:
    make_trainer(folder=tmp_path / "whole", steps=4).run()
    for piece in range(1, 5):
        trainer = make_trainer(folder=tmp_path / "run", steps=4)
        assert trainer.resume(tmp_path / "run") == (piece > 1)
        if piece < 4:
            with pytest.raises(OutOfTime, match=f"step {piece} of 4; the state is saved.*--resume"):
                trainer.run(deadline=time.monotonic())
            assert checkpoint.step_of(checkpoint.latest(tmp_path / "run")) == piece
        else:
            trainer.run(deadline=time.monotonic())
    file = "checkpoints/step-00000004/ema.safetensors"
    assert (tmp_path / "run" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [(3600, 3600), ("90", 90), ("90s", 90), ("55m", 3300), ("1h30m", 5400), ("1.5h", 5400), ("2d", 172_800)],
)
def test_durations_are_read(text: str | int, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "-5", "soon", "5x", "1.2.3h", "30m1h", "nan", "inf"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(OptionError, match="max_time"):
        seconds_of(text)


@pytest.mark.usefixtures("small_grids")
def test_the_command_line_saves_says_so_and_exits_with_130(
    files: Path, network: dict[str, Any], scripted: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = [f"--set={name}={json.dumps(value)}" for name, value in {**network, "log_every": 2}.items()]
    words = ["train", "--coreset", str(files / "coreset.json"), "--preset", "tiny", *settings, "--steps", "4"]
    words += ["--batch-size", "10", "--device", "cpu", "--dtype", "fp32", "-o", str(tmp_path / "run"), "--resume"]
    runner = CliRunner()
    done = runner.invoke(app, [*words, "--max-time", "0.001"])
    assert done.exit_code == 130
    assert done.stdout == ""
    assert "The time was over at step 1 of 4; the state is saved." in done.stderr
    with monkeypatch.context() as patch:
        progress = scripted(3, lambda: signal.raise_signal(signal.SIGTERM))
        patch.setattr(live, "TrainingProgress", lambda: progress)
        done = runner.invoke(app, words)
    assert done.exit_code == 130
    assert progress.notes == ["Resuming at step 1 of 4.", "Stopped at step 3 of 4; the state is saved."]
    done = runner.invoke(app, words)
    assert done.exit_code == 0
    assert done.stdout == f"{tmp_path / 'run'}\n"
    assert formats.read_run(tmp_path / "run").step == 4
    done = runner.invoke(app, [*words, "--max-time", "soon"])
    assert done.exit_code == 2
