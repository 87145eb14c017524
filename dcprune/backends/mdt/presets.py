"""Recipes of the mdt backend."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from dcprune.presets import Preset, Sampling

_GUIDED = Sampling(sampler="ddpm", num_inference_steps=250, guidance_scale=3.8)

_TRAINING: dict[str, Any] = {
    "epochs": 60,
    "batch_size": 256,
    "learning_rate": 5e-4,
    "optimizer": "adan",
    "max_grad_norm": 1.0,
    "ema_decay": 0.9999,
    "ema_ramp": False,
    "label_dropout": 0.1,
    "horizontal_flip": True,
}

PRESETS: Final[Mapping[str, Preset]] = {
    "paper": Preset(
        model={"size": "S", "patch_size": 2, "resolution": 256},
        training=_TRAINING,
        sampling=_GUIDED,
        proxy_epochs=6,
        num_samples=50_000,
        summary="MDTv2-S/2 on ImageNet at 256 pixels as in the paper: 38.5M parameters, 60 epochs",
    ),
    "xl-2": Preset(
        model={"size": "XL", "patch_size": 2, "resolution": 256, "weights": "released"},
        training={**_TRAINING, "epochs": 5, "learning_rate": 1e-4},
        sampling=_GUIDED,
        proxy_epochs=1,
        num_samples=50_000,
        summary="goes on from the released MDTv2-XL/2 (ImageNet at 256 pixels): 742M parameters, 5 epochs",
    ),
    "xl-2-v1": Preset(
        model={
            "version": 1,
            "size": "XL",
            "patch_size": 2,
            "resolution": 256,
            "snr_gamma": None,
            "weights": "released",
        },
        training={**_TRAINING, "epochs": 5, "learning_rate": 1e-4, "optimizer": "adamw"},
        sampling=_GUIDED,
        proxy_epochs=1,
        num_samples=50_000,
        summary="goes on from the released MDT-XL/2 of the first version: 700M parameters, 5 epochs",
    ),
    "tiny": Preset(
        model={
            "hidden_size": 96,
            "depth": 4,
            "num_heads": 3,
            "decode_layer": 2,
            "patch_size": 2,
            "resolution": 64,
            "flips": False,
        },
        training={
            "epochs": 30,
            "batch_size": 32,
            "learning_rate": 3e-3,
            "optimizer": "adan",
            "lr_schedule": "cosine",
            "lr_warmup_steps": 50,
            "ema_decay": 0.995,
            "label_dropout": 0.1,
            "horizontal_flip": False,
            "log_every": 20,
            "checkpoint_every": 200,
        },
        sampling=Sampling(sampler="ddpm", num_inference_steps=50, guidance_scale=1.5),
        proxy_epochs=10,
        num_samples=1000,
        summary="under 1M parameters, for latents of 8x8 or 16x16; minutes on two cores",
    ),
}
