"""Recipes of the edm backend."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from dcprune.backends.unet_presets import (
    MEDIUM_64,
    MEDIUM_TRAINING,
    SMALL_32,
    SMALL_TRAINING,
    TINY_16,
    TINY_TRAINING,
)
from dcprune.presets import Preset, Sampling

PRESETS: Final[Mapping[str, Preset]] = {
    # The class-conditional CIFAR-10 model of Karras et al. 2022 (NVlabs/edm, `--cond=1 --arch=ddpmpp`, FID 1.79): 200
    # million images, batch 512, Adam 1e-3 with a warm-up of 10 million images, an EMA whose half-life is half a million
    # images, dropout 0.13, labels never dropped (so there is no null condition to guide with), fp32, 18 Heun steps.
    #
    # `UNet2DModel` and this trainer differ from it in
    # - size: 59.0M parameters instead of 55.7M, for the first convolution and the embedding are twice as wide;
    # - attention: after every block of the 16x16 level on the way up, instead of after the last one;
    # - resampling: one convolution instead of a residual block;
    # - scaling: sums of branches are not multiplied by sqrt(1/2), and weights start as PyTorch starts them;
    # - conditioning: a class vector is added to the embedding after its layers instead of before them;
    # - augmentation: the horizontal flip alone, without the geometric transforms of 12 % of the images;
    # - training: the EMA's ramp is min(decay, 1 - step^(-2/3)), the learning rate's begins at the first update.
    "paper": Preset(
        model={"dropout": 0.13},
        training={
            "epochs": 4000,
            "batch_size": 512,
            "learning_rate": 1e-3,
            "optimizer": "adam",
            "lr_warmup_epochs": 200,
            "max_grad_norm": None,
            "ema_decay": 0.99929,
            "label_dropout": 0.0,
            "horizontal_flip": True,
        },
        sampling=Sampling(sampler="heun", num_inference_steps=18, guidance_scale=1.0),
        proxy_epochs=4000,
        num_samples=50_000,
        summary="CIFAR-10 as in the EDM paper: 59M parameters and 42 GFLOP forward at 32x32, 4000 epochs",
    ),
    "small-32": Preset(
        model=SMALL_32,
        training=SMALL_TRAINING,
        sampling=Sampling(sampler="heun", num_inference_steps=18, guidance_scale=1.5),
        proxy_epochs=50,
        num_samples=10_000,
        summary="images of 28 to 32 pixels: 6.9M parameters, 2.9 GFLOP forward, minutes on one GPU",
    ),
    "medium-64": Preset(
        model=MEDIUM_64,
        training=MEDIUM_TRAINING,
        sampling=Sampling(sampler="heun", num_inference_steps=18, guidance_scale=1.5),
        proxy_epochs=200,
        num_samples=50_000,
        summary="images resized to 64 pixels: 27.7M parameters, 18 GFLOP forward, hours on one GPU",
    ),
    "tiny": Preset(
        model={**TINY_16, "sigma_data": 0.64},  # that of the embedded images at 16x16
        training=TINY_TRAINING,
        sampling=Sampling(sampler="heun", num_inference_steps=12, guidance_scale=1.5),
        proxy_epochs=2,
        num_samples=500,
        summary="under 1M parameters at 16x16, a minute on two cores",
    ),
}
