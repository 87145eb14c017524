"""Recipes of the dit backend."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from dcprune.presets import Preset, Sampling

_TRAINING: dict[str, Any] = {
    "epochs": 60,
    "batch_size": 256,
    "learning_rate": 1e-4,
    "optimizer": "adamw",
    "max_grad_norm": 1.0,
    "ema_decay": 0.9999,
    "ema_ramp": False,
    "label_dropout": 0.1,
    "horizontal_flip": True,
}

PRESETS: Final[Mapping[str, Preset]] = {
    "paper": Preset(
        model={"objective": "epsilon", "resolution": 256},
        training=_TRAINING,
        sampling=Sampling(sampler="ddim", num_inference_steps=250, guidance_scale=1.5),
        proxy_epochs=6,
        num_samples=50_000,
        summary="DiT-S/2 for the paper's protocol: ImageNet at 256 pixels, 60 epochs, AdamW 1e-4",
    ),
    "sit": Preset(
        model={"objective": "flow", "resolution": 256},
        training=_TRAINING,
        sampling=Sampling(sampler="heun", num_inference_steps=125, guidance_scale=1.5),
        proxy_epochs=6,
        num_samples=50_000,
        summary="SiT-S/2: the same network and training with flow matching, about 250 evaluations by Heun",
    ),
    "tiny": Preset(
        model={
            "objective": "flow",
            "num_layers": 4,
            "num_attention_heads": 3,
            "attention_head_dim": 32,
            "resolution": 64,
            "flips": False,
        },
        training={
            "epochs": 30,
            "batch_size": 32,
            "learning_rate": 1e-3,
            "optimizer": "adamw",
            "lr_schedule": "cosine",
            "lr_warmup_steps": 50,
            "ema_decay": 0.995,
            "label_dropout": 0.1,
            "horizontal_flip": False,
            "log_every": 20,
            "checkpoint_every": 200,
        },
        sampling=Sampling(sampler="heun", num_inference_steps=20, guidance_scale=1.5),
        proxy_epochs=10,
        num_samples=1000,
        summary="under 1M parameters, for latents of 8x8 or 16x16; minutes on two cores",
    ),
}
