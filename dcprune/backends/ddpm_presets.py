"""Recipes of the ddpm backend."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from dcprune.backends.unet_presets import (
    MEDIUM_64,
    MEDIUM_TRAINING,
    SMALL_32,
    SMALL_TRAINING,
    TINY_16,
    TINY_TRAINING,
)
from dcprune.presets import Preset, Sampling

# A cosine schedule ends with nearly pure noise, where predicting v is well-posed and predicting epsilon is not.
_VELOCITY: dict[str, Any] = {
    "prediction_type": "v_prediction",
    "beta_schedule": "squaredcos_cap_v2",
    "timestep_spacing": "trailing",
}

PRESETS: Final[Mapping[str, Preset]] = {
    "paper": Preset(
        model={"dropout": 0.1, "use_clipped_model_output": True},
        training={
            "epochs": 2000,
            "batch_size": 128,
            "learning_rate": 1e-4,
            "optimizer": "adam",
            "lr_warmup_epochs": 13,
            "max_grad_norm": 1.0,
            "ema_decay": 0.9999,
            "label_dropout": 0.1,
            "horizontal_flip": True,
        },
        sampling=Sampling(sampler="ddim", num_inference_steps=100, guidance_scale=1.3),
        proxy_epochs=2000,
        num_samples=50_000,
        summary="CIFAR-10 as in the paper: 38.3M parameters and 12.4 GFLOP forward at 32x32, 2000 epochs",
    ),
    "small-32": Preset(
        model={**SMALL_32, **_VELOCITY},
        training=SMALL_TRAINING,
        sampling=Sampling(sampler="ddim", num_inference_steps=50, guidance_scale=1.5),
        proxy_epochs=50,
        num_samples=10_000,
        summary="images of 28 to 32 pixels: 6.9M parameters, 2.9 GFLOP forward, minutes on one GPU",
    ),
    "medium-64": Preset(
        model={**MEDIUM_64, **_VELOCITY},
        training=MEDIUM_TRAINING,
        sampling=Sampling(sampler="ddim", num_inference_steps=50, guidance_scale=1.5),
        proxy_epochs=200,
        num_samples=50_000,
        summary="images resized to 64 pixels: 27.7M parameters, 18 GFLOP forward, hours on one GPU",
    ),
    "tiny": Preset(
        model={
            **TINY_16,
            "prediction_type": "sample",
            "beta_schedule": "squaredcos_cap_v2",
            "timestep_spacing": "trailing",
        },
        training=TINY_TRAINING,
        sampling=Sampling(sampler="ddim", num_inference_steps=25, guidance_scale=1.5),
        proxy_epochs=2,
        num_samples=500,
        summary="under 1M parameters at 16x16, a minute on two cores",
    ),
}
