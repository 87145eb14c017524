"""How a model may be sampled: guided, if it takes a condition and learned something without one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from dcprune.errors import OptionError, UnknownName
from dcprune.interfaces import Backend, Sampling


def check_sampling(sampling: Sampling, backend: Backend) -> None:
    """Refuse sampling that a backend cannot do.

    Raises:
        UnknownName: no such sampler.
        OptionError: a number out of range.
    """
    if sampling.sampler not in backend.samplers:
        raise UnknownName("sampler of this backend", sampling.sampler, backend.samplers)
    most = backend.num_train_timesteps
    if not 1 <= sampling.num_inference_steps <= most:
        raise OptionError(f"num_inference_steps={sampling.num_inference_steps} is outside [1, {most}].")
    if not math.isfinite(sampling.guidance_scale):
        raise OptionError(f"guidance_scale={sampling.guidance_scale} is not a finite number.")


def fitted(sampling: Sampling, backend: Backend) -> Sampling:
    """A recipe's way of sampling, as far as settings of the backend leave it.

    Its sampler, else the backend's first one, and no more steps than there are timesteps.
    """
    sampler = sampling.sampler if sampling.sampler in backend.samplers else backend.samplers[0]
    return replace(
        sampling, sampler=sampler, num_inference_steps=min(sampling.num_inference_steps, backend.num_train_timesteps)
    )


def guided(sampling: Sampling, asked: float | None, training: Mapping[str, Any], backend: Backend) -> Sampling:
    """Sampling with the guidance that was asked for, if a model that was trained like this can have any.

    Args:
        sampling: how a recipe draws; an unconditional model takes its `guidance_scale` for 1.
        asked: `guidance_scale` that a user wants instead; None for the recipe's.
        training: the options of the training, see `dcprune.training.config.TrainingConfig`.
        backend: what the model belongs to.

    Raises:
        OptionError: a `guidance_scale` other than 1 with a model that knows no classes, or whose labels were never
            dropped, so that its null condition is still random.
    """
    if training.get("unconditional"):
        if asked not in (None, 1):
            raise OptionError(f"guidance_scale={asked}: an unconditional model has no condition to guide with; use 1.")
        return replace(sampling, guidance_scale=1.0)
    found = sampling if asked is None else replace(sampling, guidance_scale=asked)
    learns_null = training["label_dropout"] > 0 or getattr(backend, "knows_null_condition", False)
    if found.guidance_scale != 1 and not learns_null:
        raise OptionError(
            f"guidance_scale={found.guidance_scale} compares with what the model says to no label, and label_dropout=0 "
            "never trains that. Sample with --guidance-scale 1, or train with a label_dropout above 0."
        )
    return found
