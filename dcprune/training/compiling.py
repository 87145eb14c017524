"""Whether and how a network is compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Literal, cast

import torch

from dcprune.interfaces import Progress

# A U-Net's step on two cores becomes a tenth shorter after about three minutes of compilation, so a run must be about
# half an hour long. That is said in FLOPs and not in seconds: a resumed run must decide as the first part of it did.
MIN_STEPS: Final = 500
MIN_FLOPS_ON_CPU: Final = 2.5e14


def repays(device: torch.device, steps: int, flops: float) -> bool:
    """Whether a run of so many updates and FLOPs gets back the time that compilation takes."""
    if device.type == "cuda":
        return steps >= MIN_STEPS
    return device.type == "cpu" and steps >= MIN_STEPS and flops >= MIN_FLOPS_ON_CPU


def compiled(
    model: torch.nn.Module, *, cuda_graphs: bool, trial: Callable[[torch.nn.Module], object], progress: Progress
) -> torch.nn.Module:
    """`model` compiled for fixed shapes, or `model` itself, with a warning, where compilation does not work.

    Args:
        model: it keeps its weights; the result shares them.
        cuda_graphs: replay a step as one CUDA graph.
        trial: trains one batch, to see that it works.
        progress: hears of it.

    Raises:
        torch.OutOfMemoryError: the batch does not fit.
    """
    settings: dict[str, Any] = {"dynamic": False}
    if cuda_graphs:
        settings["mode"] = "reduce-overhead"
    with progress.task("compile the network", 1, "network") as task:
        try:
            found = cast(torch.nn.Module, torch.compile(model, **settings))
            trial(found)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            progress.warn(f"torch.compile does not work here, so the network runs without it: {reason}")
            return model
        task.advance()
    return found


CompileChoice = Literal["auto", "on", "off"]


def wanted(choice: CompileChoice, device: torch.device, steps: int, flops: float) -> bool:
    """Whether to compile; `auto` asks `repays`."""
    return choice == "on" or (choice == "auto" and repays(device, steps, flops))
