"""Recipes of a backend: plain values, so that the help can name them before anything heavy is imported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Sampling:
    """How images are drawn from a trained model.

    Attributes:
        sampler: a name the backend knows (`"ddim"`, `"heun"`).
        num_inference_steps: steps along the trajectory; a second-order step evaluates the network twice.
        guidance_scale: 1 + w; 1 samples without guidance, 0 without the condition.
    """

    sampler: str = "ddim"
    num_inference_steps: int = 100
    guidance_scale: float = 1.3


@dataclass(frozen=True)
class Preset:
    """A named recipe of a backend.

    Attributes:
        model: settings of the backend's constructor.
        training: fields of `dcprune.training.config.TrainingConfig`.
        sampling: how its samples are drawn.
        proxy_epochs: epochs of the DRO proxy in this recipe.
        num_samples: images that an evaluation draws.
        summary: one line for the help.
    """

    model: Mapping[str, Any]
    training: Mapping[str, Any]
    sampling: Sampling
    proxy_epochs: float
    num_samples: int
    summary: str = ""
