"""`vae:REPO`: latents of an autoencoder of diffusers, pooled."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

import torch
import torch.nn.functional as F

from dcprune.artifacts import EncoderInfo
from dcprune.autoencoder import autoencoder_files, load_autoencoder
from dcprune.diffusers_folder import Folder
from dcprune.encoders.preprocessing import Preprocessing
from dcprune.errors import OptionError
from dcprune.interfaces import Download, EncoderContext

Pool = Literal["avg4", "mean", "flatten"]

_GRID = 4


class Vae:
    """Mean of the posterior of a variational autoencoder, scaled as diffusion models see it.

    The space that latent diffusion models (Rombach et al. 2022, arXiv 2112.10752) are trained in: mean latents minus
    the shift factor, times the scaling factor, of images in [-1, 1].

    Args:
        argument: a repository of the hub, `org/name[@revision][/subfolder]` (`stabilityai/sd-vae-ft-mse`,
            `CompVis/stable-diffusion-v1-4/vae`), or a folder that `save_pretrained` wrote, of an autoencoder or of a
            pipeline with one.
        weights: such a folder, instead of the repository's files.
        pool: `avg4`, the default, averages over a 4 x 4 grid: a rough layout, and a width (64 for 4 channels) that does
            not depend on the size of the images; `mean` averages over all positions (4, no layout at all); `flatten`
            keeps every position (4,096 for Stable Diffusion at 256 pixels).
        image_size: edge in pixels, a multiple of what the autoencoder divides by; 256 is what the latent backends
            train at.

    Raises:
        OptionError: no such pooling, an image size out of range, or neither a folder nor the name of a repository.
    """

    compilable = True

    def __init__(
        self, argument: str, *, weights: str | None = None, pool: Pool = "avg4", image_size: int = 256
    ) -> None:
        if pool not in get_args(Pool):
            raise OptionError(f"Unknown pool {pool!r} of vae. Known: {', '.join(get_args(Pool))}.")
        if image_size < 1:
            raise OptionError(f"Setting image_size={image_size} of vae is not a positive number of pixels.")
        self.argument = argument
        self.pool: Pool = pool
        self.image_size = self.shorter_side = image_size
        self._folder = Path(weights) if weights is not None else Folder(argument).local

    def downloads(self, cache_dir: Path) -> list[Download]:
        """Configuration and weights of the repository, unless a folder is given."""
        return [] if self._folder is not None else autoencoder_files(self.argument, cache_dir)

    def load(self, context: EncoderContext) -> EncoderInfo:
        """Put the encoder half onto the device.

        Raises:
            WeightsError: no such folder, a failed download, or tensors that do not fit.
            OptionError: an image size that the autoencoder does not divide.
        """
        found = load_autoencoder(self._folder or self.argument, cache_dir=context.cache_dir, progress=context.progress)
        factor = found.downsampling
        grid = self.image_size // factor
        if self.image_size % factor or (self.pool == "avg4" and grid % _GRID):
            step = factor * (_GRID if self.pool == "avg4" else 1)
            raise OptionError(
                f"Setting image_size={self.image_size} of vae is not a multiple of {step} pixels, which "
                f"pool={self.pool} needs with this autoencoder."
            )
        self._shift, self._scale = found.shift_factor, found.scaling_factor
        del found.model.decoder
        self._model = found.model.to(context.device, memory_format=torch.channels_last)
        half = (0.5, 0.5, 0.5)
        self._preprocessing = Preprocessing(
            self.image_size, self.image_size, context.device, mean=half, std=half, interpolation="bicubic"
        )
        cells = {"avg4": _GRID**2, "mean": 1, "flatten": grid**2}[self.pool]
        return EncoderInfo(
            name=f"vae:{self.argument}",
            dim=found.latent_channels * cells,
            weights=str(self._folder or f"hub {self.argument}"),
            weights_sha256=found.sha256,
            layer=f"mean of the posterior, pool={self.pool}",
            preprocessing=self._preprocessing.describe(),
            settings={"pool": self.pool, "image_size": self.image_size},
            details={"scaling_factor": self._scale, "shift_factor": self._shift},
        )

    def preprocess(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 [B, C, H, W] with C in (1, 3) -> float32 [B, 3, S, S] in [-1, 1]."""
        return self._preprocessing(images)

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels float [B, 3, S, S] -> pooled latents [B, D]."""
        mean = self._model.encode(pixels, return_dict=False)[0].mean
        latents: torch.Tensor = (mean - self._shift) * self._scale
        if self.pool == "avg4":
            latents = F.adaptive_avg_pool2d(latents, _GRID)
        return latents.mean((2, 3)) if self.pool == "mean" else latents.flatten(1)
