"""What keeps a device busy: no waiting inside a step, and compilation where it repays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Self

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dcprune.backends.ddpm import Ddpm
from dcprune.interfaces import TrainingData
from dcprune.training import compiling
from dcprune.training.compiling import MIN_FLOPS_ON_CPU, MIN_STEPS, wanted
from dcprune.training.config import TrainingConfig
from dcprune.training.objectives import DroObjective, DroSettings, Objective, WeightedLoss
from dcprune.training.schedule import Phase, infobatch_phases
from dcprune.training.trainer import Trainer, score

CPU = torch.device("cpu")
# Operations and methods whose result the host must know before it can go on.
WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal", "is_nonzero", "_to_copy")
METHODS = ("tolist", "cpu", "numpy")


class Waiting(TorchDispatchMode):
    """Notes what would wait for a device."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[str] = []
        self._patch = pytest.MonkeyPatch()

    def __enter__(self) -> Self:
        for name in METHODS:
            self._patch.setattr(torch.Tensor, name, self._noted(name, getattr(torch.Tensor, name)))
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._patch.undo()

    def _noted(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            self.found.append(name)
            return method(*arguments, **options)

        return call

    def __torch_dispatch__(self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        if name in WAITING and not (name == "_to_copy" and "device" not in (kwargs or {})):
            self.found.append(str(function))
        return function(*args, **(kwargs or {}))


def objective_of(kind: str, backend: Ddpm, data: TrainingData) -> Objective:
    if kind == "weighted":
        return WeightedLoss(np.linspace(1, 2, 10), data.labels.numpy(), CPU)
    return DroObjective(
        backend.build(num_classes=10, sample_shape=data.sample_shape, seed=3).eval(),
        partial(score, backend, torch.float32),
        np.full(10, 0.1),
        DroSettings(),
        total_steps=9,
        held_out=None,
        device=CPU,
    )


@pytest.mark.parametrize("kind", ["weighted", "robust", "infobatch"])
@pytest.mark.parametrize("portions", [1, 2])
def test_no_step_waits_for_the_device(kind: str, portions: int, data: TrainingData, network: dict[str, Any]) -> None:
    backend = Ddpm(**network)
    options: dict[str, Any] = {"dynamic": "infobatch"} if kind == "infobatch" else {}
    config = TrainingConfig(steps=9, batch_size=8, learning_rate=1e-3, gradient_accumulation_steps=portions, **options)
    objective = objective_of("weighted" if kind == "infobatch" else kind, backend, data)
    rows = torch.arange(len(data))
    phases = infobatch_phases(rows, objective, config) if options else [Phase(rows, 9, objective)]
    trainer = Trainer(
        backend, data, config, phases, num_classes=10, device=CPU, dtype=torch.float32, strata=10 * (kind == "robust")
    )
    trainer._prepare()
    trainer._update()
    for _ in range(3):  # the rest of the first epoch, whose order is on the device
        with Waiting() as waiting:
            trainer._update()
        assert waiting.found == []
    with Waiting() as waiting:
        trainer._losses.read()
    assert waiting.found  # the instrument works


@pytest.mark.parametrize(
    ("choice", "device", "steps", "flops", "answer"),
    [
        ("off", "cuda", 10**9, 1e20, False),
        ("on", "cpu", 1, 1.0, True),
        ("auto", "cuda", MIN_STEPS, 1.0, True),
        ("auto", "cuda", MIN_STEPS - 1, 1e20, False),
        ("auto", "cpu", MIN_STEPS, MIN_FLOPS_ON_CPU, True),
        ("auto", "cpu", MIN_STEPS, MIN_FLOPS_ON_CPU / 2, False),
        ("auto", "mps", 10**9, 1e20, False),
    ],
)
def test_compilation_is_for_runs_that_are_long_enough(
    choice: Any, device: str, steps: int, flops: float, answer: bool
) -> None:
    assert wanted(choice, torch.device(device), steps, flops) == answer


def weights_of(trainer: Trainer) -> bytes:
    return b"".join(tensor.contiguous().numpy().tobytes() for tensor in trainer.model.state_dict().values())


def test_a_compiled_network_trains_the_same_model(
    make_trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the compiler's front half alone; the other half takes minutes."""
    plain = make_trainer(steps=4)
    plain.run()
    asked: dict[str, Any] = {}

    def front(model: torch.nn.Module, **settings: Any) -> Any:
        asked.update(settings)
        return original(model, backend="eager", **settings)

    original = torch.compile
    monkeypatch.setattr(torch, "compile", front)
    compiled = make_trainer(steps=4, compile="on")
    compiled.run()
    assert asked == {"dynamic": False}
    assert compiled._scorer is not compiled.model
    for mine, other in zip(compiled.model.parameters(), plain.model.parameters(), strict=True):
        # AdamW turns the rounding of gradients near 0 into parts of a step, here of up to 1e-3
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)
    assert list(compiled.model.state_dict()) == list(plain.model.state_dict())


def test_where_compilation_does_not_work_training_does(
    make_trainer: Callable[..., Trainer], scripted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(torch.nn.Module):
        def __init__(self, model: torch.nn.Module, **settings: Any) -> None:
            super().__init__()
            self._orig_mod = model

        def forward(self, *arguments: Any, **options: Any) -> Any:
            raise RuntimeError("no compiler found\nand much more")

    monkeypatch.setattr(torch, "compile", Broken)
    progress = scripted()
    trainer, plain = make_trainer(steps=3, compile="on", progress=progress), make_trainer(steps=3)
    trainer.run()
    plain.run()
    assert progress.warnings == ["torch.compile does not work here, so the network runs without it: no compiler found"]
    assert weights_of(trainer) == weights_of(plain)


def test_cuda_graphs_are_asked_for_by_name(scripted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    model = torch.nn.Linear(1, 1)

    def compile_(model: torch.nn.Module, **settings: Any) -> torch.nn.Module:
        asked.update(settings)
        return model

    monkeypatch.setattr(torch, "compile", compile_)
    compiling.compiled(model, cuda_graphs=True, trial=lambda network: network, progress=scripted())
    assert asked == {"dynamic": False, "mode": "reduce-overhead"}
