"""Shapes of U-Nets that presets of several backends share, and how such a network is trained."""

from __future__ import annotations

from typing import Any

# Under 1M parameters.
TINY_16: dict[str, Any] = {
    "resolution": 16,
    "block_out_channels": (16, 32, 64),
    "layers_per_block": 1,
    "attention_levels": (),
    "norm_num_groups": 8,
    "time_scale_shift": False,
    "dropout": 0.0,
}

# 6.9M parameters; 2.9 GFLOP forward and about 8.7 GFLOP of training for one image of 32x32.
SMALL_32: dict[str, Any] = {
    "resolution": None,
    "block_out_channels": (64, 128, 128),
    "layers_per_block": 2,
    "attention_levels": (2,),
    "norm_num_groups": 32,
    "time_scale_shift": True,
    "dropout": 0.0,
}

# 27.7M parameters; 18 GFLOP forward and about 54 GFLOP of training for one image of 64x64.
MEDIUM_64: dict[str, Any] = {
    "resolution": 64,
    "block_out_channels": (64, 128, 256, 256),
    "layers_per_block": 2,
    "attention_levels": (2, 3),
    "norm_num_groups": 32,
    "time_scale_shift": True,
    "dropout": 0.0,
}

# A minute on two cores for the embedded images.
TINY_TRAINING: dict[str, Any] = {
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
}

# 60,000 images of 32x32: 11,719 updates and 2.6e16 FLOP, which is minutes on a data-centre GPU.
SMALL_TRAINING: dict[str, Any] = {
    "epochs": 50,
    "batch_size": 256,
    "learning_rate": 5e-4,
    "optimizer": "adamw",
    "lr_schedule": "cosine",
    "lr_warmup_steps": 500,
    "ema_decay": 0.999,
    "label_dropout": 0.1,
    "horizontal_flip": False,
    "log_every": 50,
    "checkpoint_every": 2000,
}

# 100,000 images of 64x64: 78,125 updates and 1.1e18 FLOP, which is hours on a data-centre GPU.
MEDIUM_TRAINING: dict[str, Any] = {
    "epochs": 200,
    "batch_size": 256,
    "learning_rate": 3e-4,
    "optimizer": "adamw",
    "lr_schedule": "cosine",
    "lr_warmup_steps": 1000,
    "ema_decay": 0.9995,
    "label_dropout": 0.1,
    "horizontal_flip": False,
    "log_every": 100,
    "checkpoint_every": 5000,
}
