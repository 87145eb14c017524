"""What a training would take, from a few timed updates."""

from __future__ import annotations

import resource
import shutil
import sys
from pathlib import Path
from typing import Any, Final

import torch

from dcprune.devices import device_name, dtype_name
from dcprune.training.trainer import Trainer

TIMED_STEPS: Final = 3


def estimate(trainer: Trainer, output: Path, *, missing_bytes: int = 0) -> dict[str, Any]:
    """Do a few updates and extrapolate.

    Args:
        trainer: at its start, with all phases of the run; it is of no use afterwards.
        output: where the run would be written.
        missing_bytes: of samples that the run would hold in memory and this trainer does not.

    Returns:
        `parameters`, `updates`, `images_seen`, `flops_per_image` and `flops` (all updates), `seconds_per_update` and
        `seconds` (without compilation, checkpoints and sample grids), `memory_bytes` (peak, of the device or, on a CPU,
        of the process), `disk_bytes` (checkpoints, one more while the last is written, and the model) and
        `disk_free_bytes`, `device`, `dtype`, `processes`, and whether the network would be `compiled`.
    """
    config, updates = trainer.config, trainer.total_steps
    seconds = trainer.seconds_per_step(TIMED_STEPS)
    weights = sum(tensor.nbytes for tensor in trainer.model.state_dict().values())
    return {
        "parameters": trainer.num_parameters,
        "updates": updates,
        "images_seen": updates * config.batch_size,
        "flops_per_image": trainer.flops_per_step() // config.batch_size,
        "flops": updates * trainer.flops_per_step(),
        "seconds_per_update": float(f"{seconds:.3g}"),
        "seconds": float(f"{seconds * updates:.3g}"),
        "memory_bytes": peak_memory(trainer.device) + missing_bytes,
        "disk_bytes": (config.keep_checkpoints + 1) * trainer.checkpoint_bytes + weights,
        "disk_free_bytes": free_disk_bytes(output),
        "device": device_name(trainer.device),
        "dtype": dtype_name(trainer.dtype),
        "processes": trainer.processes.count,
        "compiled": trainer.will_compile(),
    }


def peak_memory(device: torch.device) -> int:
    """Bytes, of a GPU or of this process, at most so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes if sys.platform == "darwin" else kilobytes * 1024


def free_disk_bytes(path: Path) -> int:
    """Of the disk where a file or folder is, or would be."""
    path = path.absolute()
    return shutil.disk_usage(next(each for each in (path, *path.parents) if each.exists())).free
