"""Experiment trackers, through accelerate: TensorBoard, trackio and Weights & Biases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import torch

from dcprune.errors import OptionError, UnknownName

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

PROJECT: Final = "dcprune"
TRACKERS: Final = ("tensorboard", "trackio", "wandb")


class Follower(Protocol):
    """Something that wants to know what a run writes down."""

    def log(self, line: Mapping[str, Any]) -> None:
        """A line of `metrics.jsonl`."""

    def sample_grid(self, image: torch.Tensor, step: int) -> None:
        """A grid of samples, uint8 [C, H, W]."""

    def close(self) -> None:
        """The run is over, or stops."""


class Tracker:
    """A run's losses, rates and sample grids in one tracker.

    Args:
        name: one of `TRACKERS`; see `check_trackers`.
        folder: the run folder; its name is that of the run, and TensorBoard's files go there.
        config: what the run is made with, as JSON values.
        class_names: names of the classes in label order, for their losses.
    """

    def __init__(self, name: str, folder: Path, config: Mapping[str, Any], class_names: Sequence[str]) -> None:
        self.name = name
        self.class_names = class_names
        self._tracker = _open(name, folder)
        self._tracker.start()
        self._tracker.store_init_configuration(_flat(config))

    def log(self, line: Mapping[str, Any]) -> None:
        values = {key: value for key, value in line.items() if key not in ("step", "class_losses")}
        for class_name, loss in zip(self.class_names, line.get("class_losses", ()), strict=False):
            if loss is not None:
                values[f"class_loss/{class_name}"] = loss
        self._tracker.log(values, step=line["step"])

    def sample_grid(self, image: torch.Tensor, step: int) -> None:
        # TensorBoard takes NHWC by name only, the others a list of HWC.
        pixels = image.expand(3, -1, -1).permute(1, 2, 0).contiguous().cpu().numpy()[None]
        options = {"dataformats": "NHWC"} if self.name == "tensorboard" else {}
        self._tracker.log_images({"samples": pixels}, step=step, **options)

    def close(self) -> None:
        self._tracker.finish()


def check_trackers(names: Sequence[str]) -> None:
    """Refuse trackers that are not known or not installed, before anything is done.

    Raises:
        UnknownName: no such tracker.
        OptionError: it is not installed.
    """
    for name in names:
        if name not in TRACKERS:
            raise UnknownName("tracker", name, TRACKERS)
        if find_spec(name) is None:
            raise OptionError(f"The tracker {name} is not installed: pip install {name}")


def _open(name: str, folder: Path) -> GeneralTracker:
    from accelerate.tracking import TensorBoardTracker, TrackioTracker, WandBTracker

    if name == "tensorboard":
        return TensorBoardTracker("tensorboard", folder)
    if name == "trackio":
        return TrackioTracker(PROJECT, name=folder.name)
    return WandBTracker(PROJECT, name=folder.name, dir=str(folder))


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers and texts by name; what else there is as text."""
    return {
        name: value if isinstance(value, int | float | str | bool) else str(value) for name, value in config.items()
    }
