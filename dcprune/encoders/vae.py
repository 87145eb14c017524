"""`vae:REPO`: latents of an autoencoder of diffusers, pooled."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from dcprune.artifacts import EncoderInfo
from dcprune.downloads import fetch, hub_file
from dcprune.encoders.diffusers_folder import CONFIG_FILE, WEIGHTS_FILE, load_model, model_folder
from dcprune.encoders.preprocessing import Preprocessing
from dcprune.encoders.weights import sha256
from dcprune.errors import OptionError, WeightsError
from dcprune.interfaces import Download, EncoderContext

Pool = Literal["avg4", "mean", "flatten"]

_REPOSITORY = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w.-]+))?(?:/(?P<subfolder>.+))?")
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
        local = weights or argument
        self._folder = Path(local).expanduser() if weights or Path(argument).expanduser().is_dir() else None
        self._repository = _REPOSITORY.fullmatch(argument)
        if self._folder is None and self._repository is None:
            raise OptionError(
                f"vae:{argument} is neither a folder nor a repository of the hub: write vae:org/name, "
                "vae:org/name/subfolder or vae:./folder."
            )

    def downloads(self, cache_dir: Path) -> list[Download]:
        """Configuration and weights of the repository, unless a folder is given."""
        if self._folder is not None or self._repository is None:
            return []
        prefix = f"{self._repository['subfolder']}/" if self._repository["subfolder"] else ""
        repository, revision = self._repository["repo"], self._repository["revision"] or ""
        return [
            hub_file(repository, prefix + name, cache_dir, revision=revision) for name in (CONFIG_FILE, WEIGHTS_FILE)
        ]

    def load(self, context: EncoderContext) -> EncoderInfo:
        """Put the encoder half onto the device.

        Raises:
            WeightsError: no such folder, a failed download, or tensors that do not fit.
            OptionError: an image size that the autoencoder does not divide.
        """
        folder = self._folder and model_folder(self._folder, ("vae",), "a folder of an AutoencoderKL")
        model, file = load_model(AutoencoderKL, folder or self._downloaded(context))
        config: Any = model.config
        factor = 2 ** (len(config.block_out_channels) - 1)
        grid = self.image_size // factor
        if self.image_size % factor or (self.pool == "avg4" and grid % _GRID):
            step = factor * (_GRID if self.pool == "avg4" else 1)
            raise OptionError(
                f"Setting image_size={self.image_size} of vae is not a multiple of {step} pixels, which "
                f"pool={self.pool} needs with this autoencoder."
            )
        self._shift, self._scale = config.shift_factor or 0.0, config.scaling_factor
        del model.decoder
        self._model: Any = model.to(context.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        half = (0.5, 0.5, 0.5)
        self._preprocessing = Preprocessing(
            self.image_size, self.image_size, context.device, mean=half, std=half, interpolation="bicubic"
        )
        cells = {"avg4": _GRID**2, "mean": 1, "flatten": grid**2}[self.pool]
        return EncoderInfo(
            name=f"vae:{self.argument}",
            dim=config.latent_channels * cells,
            weights=str(folder or f"hub {self.argument}"),
            weights_sha256=sha256(file),
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

    def _downloaded(self, context: EncoderContext) -> Path:
        """The folder of the repository's files."""
        config, weights = (fetch(file, context.progress) for file in self.downloads(context.cache_dir))
        if config.parent != weights.parent:
            raise WeightsError(f"{config} and {weights} belong into one folder: put them both beside one of them.")
        return config.parent
