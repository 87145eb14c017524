"""One process against two that share every batch. `torchrun test_processes.py FOLDER` is the second half of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from dcprune import formats
from dcprune.api import runs
from dcprune.backends.ddpm import Ddpm
from dcprune.datasets.fashion_mini import FashionMini
from dcprune.errors import OptionError
from dcprune.interfaces import DatasetRequest
from dcprune.processes import ALONE, Processes, processes
from dcprune.progress import SILENT
from dcprune.subset import Subset
from dcprune.testing import preparation_context
from dcprune.training import checkpoint
from dcprune.training.config import TrainingConfig
from dcprune.training.objectives import DroObjective, DroSettings, Objective, WeightedLoss
from dcprune.training.run_folder import RunFolder
from dcprune.training.schedule import Phase, infobatch_phases
from dcprune.training.sharing import Sharing
from dcprune.training.trainer import Trainer, score

CPU = torch.device("cpu")
NETWORK: dict[str, Any] = {
    "resolution": 8,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "attention_levels": (1,),
    "norm_num_groups": 4,
}
# What is shared, and how: uneven parts, uneven portions, dropout, scoring passes before and inside the training pass.
SCENARIOS: dict[str, dict[str, Any]] = {
    "even": {"dropout": 0.0, "batch_size": 12},
    "dropout in uneven parts": {"dropout": 0.3, "batch_size": 11},
    "portions": {"dropout": 0.3, "batch_size": 11, "gradient_accumulation_steps": 3},
    "robust in one pass": {"dropout": 0.0, "batch_size": 11, "robust": True},
    "robust with dropout in portions": {
        "dropout": 0.3,
        "batch_size": 11,
        "robust": True,
        "gradient_accumulation_steps": 2,
    },
    "robust held out": {"dropout": 0.3, "batch_size": 12, "robust": True, "held_out": True},
    "infobatch": {"dropout": 0.0, "batch_size": 9, "dynamic": "infobatch", "steps": 24},
    "compiled": {"dropout": 0.3, "batch_size": 12, "compile": "on"},
}
RUN: dict[str, Any] = {
    "dataset": "fashion-mini",
    "split": "test",
    "preset": "tiny",
    "settings": {**NETWORK, "dropout": 0.1, "log_every": 2},
    "steps": 3,
    "batch_size": 10,
    "device": "cpu",
    "dtype": "fp32",
}


class Signalling:
    """A `Progress` that sends this process a SIGTERM after so many updates."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.count = 0

    @contextmanager
    def task(self, description: str, total: int | None, unit: str = "it") -> Iterator[Signalling]:
        yield self

    def advance(self, amount: int = 1, **values: float | str) -> None:
        self.count += amount
        if self.count == self.at:
            signal.raise_signal(signal.SIGTERM)

    def note(self, message: str) -> None:
        pass

    warn = note


def trainer_of(scenario: dict[str, Any], folder: Path, team: Processes, progress: Any = SILENT) -> Trainer:
    source = FashionMini(DatasetRequest("fashion-mini"))
    rows = np.sort(np.concatenate([np.flatnonzero(np.asarray(source.labels) == label)[:5] for label in range(10)]))
    backend = Ddpm(**NETWORK, dropout=scenario["dropout"])
    data = backend.prepare(Subset(source, rows), preparation_context())
    options = {name: value for name, value in scenario.items() if name not in ("dropout", "robust", "held_out")}
    config = TrainingConfig(**{"steps": 6, "learning_rate": 1e-3, "log_every": 2, "checkpoint_every": 100, **options})
    steps = config.steps or 0
    labels = data.labels.numpy()
    kept = torch.arange(40)
    sharing = Sharing(team, config.gradient_accumulation_steps)
    objective: Objective = WeightedLoss(np.linspace(0.5, 2.0, 10), labels[:40], CPU)
    strata = 0
    if scenario.get("robust"):
        strata = 10
        reference = backend.build(num_classes=10, sample_shape=data.sample_shape, seed=7).eval()
        draws = Trainer(
            backend, data, config, [Phase(kept, 1, objective)], num_classes=10, device=CPU, dtype=torch.float32
        )
        held_out = (lambda step: draws._drawing(data, torch.arange(40, 50), step)) if scenario.get("held_out") else None
        objective = DroObjective(
            reference,
            partial(score, backend, torch.float32),
            np.bincount(labels[:40], minlength=10) / 40,
            DroSettings(eta=5.0, smoothing=0.01),
            total_steps=steps,
            held_out=held_out,
            device=CPU,
            sharing=sharing,
        )
    phases = infobatch_phases(kept, objective, config) if config.dynamic else [Phase(kept, steps, objective)]
    return Trainer(
        backend,
        data,
        config,
        phases,
        num_classes=10,
        device=CPU,
        dtype=torch.float32,
        folder=RunFolder(folder, keep_checkpoints=3),
        strata=strata,
        processes=team,
        progress=progress,
    )


def results(folder: Path) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    """Weights and state at the end, and the lines on the way."""
    newest = checkpoint.latest(folder)
    assert newest is not None
    tensors = {f"ema.{name}": tensor for name, tensor in load_file(newest / "ema.safetensors").items()}
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {**tensors, **load_file(newest / "progress.safetensors")}, lines


def counted_cuts() -> list[Any]:
    """Compile without the compiler's second half, and note every graph that is cut where gradients travel."""
    from torch._dynamo.backends.distributed import DDPOptimizer

    cut: Any = DDPOptimizer.compile_fn
    compile_: Any = torch.compile
    graphs: list[Any] = []

    def noted(self: Any, graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return cut(self, graph, inputs)

    def front(model: torch.nn.Module, **settings: Any) -> Any:
        return compile_(model, backend="aot_eager", **settings)

    DDPOptimizer.compile_fn = noted  # type: ignore[assignment, method-assign]
    torch.compile = front  # type: ignore[assignment]
    return graphs


def main() -> None:
    """What each of two processes does."""
    folder, team = Path(sys.argv[1]), processes()
    torch.set_num_threads(1)
    runs._GRID_CLASSES = runs._GRID_COLUMNS = 1
    graphs = counted_cuts()
    for name, scenario in SCENARIOS.items():
        trainer = trainer_of(scenario, folder / name, team)
        trainer.run()
        own = {parameter: value.detach().contiguous() for parameter, value in trainer.model.state_dict().items()}
        save_file(own, folder / name / f"rank-{team.rank}.safetensors")
    (folder / f"graphs-{team.rank}").write_text(str(len(graphs)))
    stopped = folder / "stopped"
    try:
        # Only the second process is asked to stop.
        trainer_of(SCENARIOS["portions"], stopped, team, Signalling(3) if team.rank else SILENT).run()
    except KeyboardInterrupt:
        (folder / f"stopped-{team.rank}").write_text(str(checkpoint.step_of(checkpoint.latest(stopped))))
    resumed = trainer_of(SCENARIOS["portions"], stopped, team)
    resumed.resume(stopped)
    resumed.run()
    record = runs.train(output=folder / "run", **RUN)
    (folder / f"record-{team.rank}").write_text(record.model_dump_json())


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes have left."""
    folder = tmp_path_factory.mktemp("shared")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*torchrun, __file__, str(folder)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return folder


def assert_close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        # Adam blows up rounding errors of gradients near 0, and that of a key's bias is 0. An update's length is 1e-3.
        if not name.endswith("to_k.bias"):
            torch.testing.assert_close(tensor, other[name], rtol=1e-4, atol=1e-4, msg=partial("{}: {}".format, name))


@pytest.mark.parametrize("name", SCENARIOS)
def test_two_processes_train_what_one_trains(name: str, shared: Path, tmp_path: Path) -> None:
    whole = {**SCENARIOS[name], "gradient_accumulation_steps": 1, "compile": "off"}
    trainer_of(whole, tmp_path, ALONE).run()
    (one, one_lines), (two, two_lines) = results(tmp_path), results(shared / name)
    assert_close(one, two)
    assert len(one_lines) == len(two_lines)
    for one_line, two_line in zip(one_lines, two_lines, strict=True):
        for key in ("step", "epoch", "lr"):
            assert one_line[key] == two_line[key]
        assert one_line["loss"] == pytest.approx(two_line["loss"], rel=1e-5)
        for mine, theirs in zip(one_line["class_losses"], two_line["class_losses"], strict=True):
            assert (mine is None and theirs is None) or mine == pytest.approx(theirs, rel=1e-3)
    first, second = (load_file(shared / name / f"rank-{rank}.safetensors") for rank in range(2))
    assert all(torch.equal(first[parameter], value) for parameter, value in second.items())


def test_compiled_graphs_are_cut_where_gradients_travel(shared: Path) -> None:
    assert all(int((shared / f"graphs-{rank}").read_text()) > 0 for rank in range(2))


def test_more_portions_than_samples_are_refused() -> None:
    with pytest.raises(OptionError, match="shared by 2 processes in portions of 2: it needs at least 4 samples"):
        Sharing(Processes(1, 2), 2).check(3)
    Sharing(Processes(1, 2), 2).check(4)


def test_portions_change_nothing(shared: Path, tmp_path: Path) -> None:
    trainer_of(SCENARIOS["portions"], tmp_path, ALONE).run()
    assert_close(results(tmp_path)[0], results(shared / "portions")[0])


def test_all_stop_when_one_is_asked_to_and_go_on_to_the_same_end(shared: Path) -> None:
    steps = {(shared / f"stopped-{rank}").read_text() for rank in range(2)}
    assert len(steps) == 1
    assert 3 <= int(steps.pop()) < 6
    (stopped, stopped_lines), (whole, lines) = results(shared / "stopped"), results(shared / "portions")
    assert all(torch.equal(stopped[name], value) for name, value in whole.items())
    assert [line["loss"] for line in stopped_lines] == pytest.approx([line["loss"] for line in lines], rel=1e-6)


@pytest.mark.usefixtures("small_grids")
def test_a_run_of_two_processes_has_one_folder(shared: Path, tmp_path: Path) -> None:
    runs.train(output=tmp_path / "run", **RUN)
    records = [(shared / f"record-{rank}").read_text() for rank in range(2)]
    assert records[0] == records[1]
    alone, together = formats.read_run(tmp_path / "run"), formats.read_run(shared / "run")
    assert together.step == alone.step == 3
    assert [cost.images_seen for cost in together.ledger] == [cost.images_seen for cost in alone.ledger]
    assert [cost.flops for cost in together.ledger] == [cost.flops for cost in alone.ledger]
    assert_close(results(tmp_path / "run")[0], results(shared / "run")[0])
    assert sorted(path.name for path in (shared / "run").iterdir()) == sorted(
        path.name for path in (tmp_path / "run").iterdir()
    )


@pytest.mark.parametrize(("size", "count", "portions"), [(12, 1, 1), (12, 2, 3), (11, 2, 3), (7, 3, 2), (6, 2, 3)])
def test_parts_cover_a_batch_once_and_in_order(size: int, count: int, portions: int) -> None:
    parts = [part for rank in range(count) for part in Sharing(Processes(rank, count), portions).portions_of(size)]
    assert [row for part in parts for row in range(size)[part]] == list(range(size))
    sizes = [part.stop - part.start for part in parts]
    assert max(sizes) - min(sizes) <= 1


if __name__ == "__main__":
    main()
