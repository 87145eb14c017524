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
from dcprune.errors import ArtifactError

FOLDER = "checkpoints"
_NAME = re.compile(r"step-\d{8,}")


class Position(BaseModel):
    """Where a run stands, `state.json`. All its randomness follows from `seed` and `step`.

    Attributes:
        step: updates done.
        seed: seed of the run.
        plan_sha256: hash of the run's phases, `dcprune.training.schedule.plan_sha256`.
        loss_sum, loss_count: losses since the last line of `metrics.jsonl`.
        device_seconds: time spent so far.
        scaler: state of the fp16 loss scaler; empty without one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    format: Literal["dcprune.checkpoint/1"] = "dcprune.checkpoint/1"
    step: Annotated[int, Field(ge=0)]
    seed: int
    plan_sha256: str
    loss_sum: float
    loss_count: int
    device_seconds: float
    scaler: dict[str, Any]


@dataclass(frozen=True)
class Learner:
    """Everything with tensors in it that training changes."""

    model: torch.nn.Module
    ema: torch.nn.Module
    optimizer: torch.optim.Optimizer


def save(run: Path, position: Position, learner: Learner, keep: int) -> Path:
    """Write one checkpoint into a run folder, then remove all but the newest `keep` and what a killed process left."""
    path = run / FOLDER / f"step-{position.step:08d}"
    with formats.atomic_folder(path, overwrite=True) as folder:
        save_file(_contiguous(learner.model.state_dict()), folder / "model.safetensors")
        save_file(_contiguous(learner.ema.state_dict()), folder / "ema.safetensors")
        save_file(_contiguous(_optimizer_tensors(learner.optimizer)), folder / "optimizer.safetensors")
        (folder / "state.json").write_text(json.dumps(position.model_dump(), indent=1) + "\n")
    for old in [*_complete(run)[:-keep], *(run / FOLDER).glob(".step-*.tmp")]:
        formats.remove(old)
    return path


def latest(run: Path) -> Path | None:
    """The newest complete checkpoint of a run folder, if there is one."""
    found = _complete(run)
    return found[-1] if found else None


def load(path: Path, learner: Learner) -> Position:
    """Bring a learner to where a checkpoint was written.

    Raises:
        ArtifactError: the checkpoint is damaged, or is one of another model.
    """
    try:
        position = Position.model_validate_json((path / "state.json").read_bytes())
        learner.model.load_state_dict(load_file(path / "model.safetensors"))
        learner.ema.load_state_dict(load_file(path / "ema.safetensors"))
        _load_optimizer(learner.optimizer, load_file(path / "optimizer.safetensors"))
    except (OSError, SafetensorError, ValidationError, RuntimeError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise ArtifactError(
            f"The checkpoint {path} is damaged or of another model: {reason}. Remove it to resume from the one before."
        ) from error
    return position


def _complete(run: Path) -> list[Path]:
    """Checkpoints, oldest first; one that is being written has a name of another form."""
    return sorted(
        (path for path in (run / FOLDER).glob("step-*") if _NAME.fullmatch(path.name)),
        key=lambda path: int(path.name.removeprefix("step-")),
    )


def _contiguous(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}


def _parameters(optimizer: torch.optim.Optimizer) -> list[torch.nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """State tensors under `<number of the parameter>.<name>`."""
    return {
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
        parameter = parameters[int(number)]
        alike = value.shape == parameter.shape
        slot = torch.empty_like(parameter) if alike else torch.empty_like(value, device=parameter.device)
        optimizer.state[parameter][name] = slot.detach().copy_(value)
