"""Checkpoints of a run: complete folders of safetensors and JSON, the newest few of them."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from dcprune import formats
from dcprune.errors import ArtifactError, StorageError

FOLDER = "checkpoints"
_STEP = "step"
_NAME = re.compile(r"step-\d{8,}")


class Position(BaseModel):
    """Where a run stands, `state.json`. All its randomness follows from `seed` and `step`.

    Attributes:
        step: updates done.
        seed: seed of the run.
        plan_sha256: hash of the run's phases, `dcprune.training.schedule.plan_sha256`.
        device_seconds: time that devices were held so far.
        guard: state of `dcprune.training.guard.LossGuard`.
        scaler: state of the fp16 loss scaler; empty without one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    format: Literal["dcprune.checkpoint/1"] = "dcprune.checkpoint/1"
    step: Annotated[int, Field(ge=0)]
    seed: int
    plan_sha256: str
    device_seconds: float
    guard: dict[str, float]
    scaler: dict[str, Any]


@dataclass(frozen=True)
class Learner:
    """Everything with tensors in it that training changes.

    Attributes:
        model, ema, optimizer: as their names say.
        progress: what else a resumed run needs: the schedule with its streams and objectives, and the sums of losses.
    """

    model: torch.nn.Module
    ema: torch.nn.Module
    optimizer: torch.optim.Optimizer
    progress: dict[str, torch.Tensor]

    def files(self) -> dict[str, dict[str, torch.Tensor]]:
        """Tensors by the name of their file, without its ending; weights that are never trained are in none."""
        frozen = _frozen(self.model)
        return {
            "model": _without(frozen, self.model),
            "ema": _without(frozen, self.ema),
            "optimizer": _optimizer_tensors(self.optimizer),
            "progress": self.progress,
        }

    @property
    def num_bytes(self) -> int:
        """Size of a checkpoint, but for the files' headers."""
        return sum(tensor.nbytes for tensors in self.files().values() for tensor in tensors.values())


def save(run: Path, position: Position, learner: Learner, keep: int) -> Path:
    """Write one checkpoint into a run folder, then remove all but the newest `keep` and what a killed process left.

    Raises:
        StorageError: it cannot be written; the checkpoints before it are untouched.
    """
    path = run / FOLDER / f"step-{position.step:08d}"
    if not path.exists():
        try:
            with formats.atomic_folder(path) as folder:
                for name, tensors in learner.files().items():
                    save_file(_contiguous(tensors), folder / f"{name}.safetensors")
                (folder / "state.json").write_text(json.dumps(position.model_dump(), indent=1) + "\n")
        except (OSError, SafetensorError) as error:
            raise StorageError(_unwritten(run, position, learner, error)) from error
    tidy(run, keep)
    return path


def tidy(run: Path, keep: int) -> None:
    """Remove all checkpoints but the newest `keep`, and what a killed process left half-written or half-removed."""
    for old in _complete(run)[:-keep]:
        # A folder that is half removed must not look like a checkpoint.
        formats.remove(old.replace(old.with_name(f".{old.name}.old.tmp")))
    for leftover in (run / FOLDER).glob(".step-*.tmp"):
        formats.remove(leftover)


def _unwritten(run: Path, position: Position, learner: Learner, error: Exception) -> str:
    newest = latest(run)
    kept = f"The newest checkpoint is {newest}." if newest else "There is no earlier checkpoint."
    reason = getattr(error, "strerror", None) or str(error)
    return (
        f"The checkpoint of step {position.step} ({learner.num_bytes / 1e6:.1f} MB) cannot be written to "
        f"{run / FOLDER}: {reason}. {kept} Make room and continue with --resume."
    )


def latest(run: Path) -> Path | None:
    """The newest complete checkpoint of a run folder, if there is one."""
    found = _complete(run)
    return found[-1] if found else None


def step_of(path: Path | None) -> int:
    """Updates done at a checkpoint; 0 for none."""
    return 0 if path is None else int(path.name.removeprefix("step-"))


def load(path: Path, learner: Learner) -> tuple[Position, dict[str, torch.Tensor]]:
    """Bring a learner's model, average and optimizer to where a checkpoint was written.

    Returns:
        The position, and the tensors of `Learner.progress`.

    Raises:
        ArtifactError: the checkpoint is damaged, or is one of another model.
    """
    try:
        position = Position.model_validate_json((path / "state.json").read_bytes())
        frozen = _frozen(learner.model)
        for network, name in ((learner.model, "model"), (learner.ema, "ema")):
            untouched = {key: value for key, value in network.state_dict().items() if key in frozen}
            network.load_state_dict({**untouched, **load_file(path / f"{name}.safetensors")})
        _load_optimizer(learner.optimizer, load_file(path / "optimizer.safetensors"))
        return position, load_file(path / "progress.safetensors")
    except (OSError, SafetensorError, ValidationError, RuntimeError, KeyError, IndexError) as error:
        reason = str(error).splitlines()[0]
        raise ArtifactError(
            f"The checkpoint {path} is damaged or of another model: {reason}. Remove it to resume from the one before."
        ) from error


def _complete(run: Path) -> list[Path]:
    """Checkpoints, oldest first; one that is being written or removed has a name of another form."""
    return sorted(
        (path for path in (run / FOLDER).glob("step-*") if _NAME.fullmatch(path.name)),
        key=step_of,
    )


def _frozen(model: torch.nn.Module) -> frozenset[str]:
    """Names of the weights that are never trained."""
    return frozenset(name for name, parameter in model.named_parameters() if not parameter.requires_grad)


def _without(names: frozenset[str], network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in network.state_dict().items() if name not in names}


def _contiguous(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}


def _parameters(optimizer: torch.optim.Optimizer) -> list[torch.nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """State tensors under `<number of the parameter>.<name>`, and under `step.<number of the group>` its counter.

    Adam counts updates for every parameter, Adan for a group.
    """
    counters = {
        f"{_STEP}.{number}": torch.tensor(group[_STEP])
        for number, group in enumerate(optimizer.param_groups)
        if _STEP in group
    }
    return counters | {
        f"{number}.{name}": value
        for number, parameter in enumerate(_parameters(optimizer))
        for name, value in optimizer.state[parameter].items()
    }


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    """The inverse of `_optimizer_tensors`.

    Fused optimizers walk parameter and state in memory order, so a state must lie as its parameter does
    (channels_last), which a file does not remember.
    """
    parameters = _parameters(optimizer)
    for key, value in tensors.items():
        number, _, name = key.partition(".")
        if number == _STEP:
            optimizer.param_groups[int(name)][_STEP] = int(value)
            continue
        parameter = parameters[int(number)]
        alike = value.shape == parameter.shape
        slot = torch.empty_like(parameter) if alike else torch.empty_like(value, device=parameter.device)
        optimizer.state[parameter][name] = slot.detach().copy_(value)
