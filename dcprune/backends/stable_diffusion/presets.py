"""Recipes of the sd backend."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from dcprune.presets import Preset, Sampling

PRESETS: Final[Mapping[str, Preset]] = {
    "paper": Preset(
        model={"pretrained": "CompVis/stable-diffusion-v1-4", "resolution": 256},
        training={
            "epochs": 50,
            "batch_size": 64,
            "learning_rate": 1e-5,
            "optimizer": "adamw",
            "weight_decay": 1e-2,
            "lr_warmup_steps": 500,
            "max_grad_norm": 1.0,
            "ema_decay": 0.9999,
            "label_dropout": 0.1,
            "horizontal_flip": True,
            "log_every": 50,
            "checkpoint_every": 1000,
        },
        sampling=Sampling(sampler="ddim", num_inference_steps=50, guidance_scale=5.0),
        proxy_epochs=5,
        num_samples=50_000,
        summary="Stable Diffusion v1-4 on Imagenette at 256 pixels, 50 epochs, as in the paper",
    ),
    "tiny": Preset(
        model={"pretrained": "hf-internal-testing/tiny-stable-diffusion-torch", "resolution": 64, "flips": False},
        training={
            "epochs": 20,
            "batch_size": 32,
            "learning_rate": 1e-3,
            "optimizer": "adamw",
            "weight_decay": 1e-2,
            "lr_schedule": "cosine",
            "lr_warmup_steps": 50,
            "ema_decay": 0.995,
            "label_dropout": 0.1,
            "horizontal_flip": False,
            "log_every": 20,
            "checkpoint_every": 200,
        },
        sampling=Sampling(sampler="ddim", num_inference_steps=25, guidance_scale=2.0),
        proxy_epochs=4,
        num_samples=500,
        summary="a small pipeline of your own (--set pretrained=FOLDER) at 64 pixels, minutes on two cores",
    ),
}
