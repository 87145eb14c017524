"""Recipes of the ddpm backend."""

from __future__ import annotations

from dcprune.interfaces import Preset, Sampling

PAPER = Preset(
    model={"dropout": 0.1},
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
    summary="CIFAR-10 as in the paper: 38.3M parameters at 32x32, 2000 epochs",
)

TINY = Preset(
    model={
        "resolution": 16,
        "block_out_channels": (16, 32, 64),
        "layers_per_block": 1,
        "attention_levels": (),
        "norm_num_groups": 8,
        "time_scale_shift": False,
        "dropout": 0.0,
        "prediction_type": "sample",
        "beta_schedule": "squaredcos_cap_v2",
        "timestep_spacing": "trailing",
    },
    training={
        "epochs": 5,
        "batch_size": 32,
        "learning_rate": 2e-3,
        "optimizer": "adamw",
        "lr_schedule": "cosine",
        "lr_warmup_steps": 50,
        "ema_decay": 0.995,
        "label_dropout": 0.1,
        "horizontal_flip": False,
        "log_every": 20,
        "checkpoint_every": 200,
    },
    sampling=Sampling(sampler="ddim", num_inference_steps=25, guidance_scale=1.5),
    proxy_epochs=2,
    num_samples=500,
    summary="under 1M parameters at 16x16, a minute on two cores",
)
