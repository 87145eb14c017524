"""Variational autoencoders of diffusers (`AutoencoderKL`): pixels to latents, and back."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from dcprune.devices import cache_dir as default_cache_dir
from dcprune.devices import layout
from dcprune.diffusers_folder import MODEL_FILES, Folder, load_model, model_folder
from dcprune.errors import WeightsError
from dcprune.interfaces import Download, Progress
from dcprune.progress import SILENT
from dcprune.weights import sha256

STABLE_DIFFUSION: Final = "stabilityai/sd-vae-ft-mse"
_SLICE = 8


@dataclass(frozen=True)
class Autoencoder:
    """A frozen autoencoder (Rombach et al. 2022, arXiv 2112.10752), which computes in float32 whatever autocast says.

    Diffusion models see (z - shift) * scale, where z is drawn from the posterior N(mean, std^2).

    Attributes:
        name: what it was loaded by.
        model: diffusers' `AutoencoderKL`, in inference mode.
        sha256: hash of its weights file, and of the scale and the shift of its latents.
    """

    name: str
    model: Any
    sha256: str

    @property
    def scaling_factor(self) -> float:
        return float(self.model.config.scaling_factor)

    @property
    def shift_factor(self) -> float:
        return float(self.model.config.shift_factor or 0.0)

    @property
    def latent_channels(self) -> int:
        return int(self.model.config.latent_channels)

    @property
    def downsampling(self) -> int:
        """Pixels along the edge of one position of the latents."""
        return int(2 ** (len(self.model.config.block_out_channels) - 1))

    @property
    def device(self) -> torch.device:
        device: torch.device = self.model.device
        return device

    def to(self, device: torch.device) -> Autoencoder:
        """Moves the model to a device; returns this."""
        self.model.to(device, memory_format=layout(device))
        return self

    def sample_shape(self, resolution: int) -> tuple[int, int, int]:
        """Shape (C, h, w) of the latents of a square image."""
        edge = resolution // self.downsampling
        return self.latent_channels, edge, edge

    @torch.inference_mode()
    def encode(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of the posterior, float32 [B, C, h, w], of pixels [B, 3, H, W] in [-1, 1]."""
        with torch.autocast(pixels.device.type, enabled=False):
            posterior = self.model.encode(pixels.float(), return_dict=False)[0]
        return posterior.mean, posterior.std

    @torch.inference_mode()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Images uint8 [B, 3, H, W] of scaled latents [B, C, h, w], a few at a time, on the device of the latents."""
        unscaled = latents.float() / self.scaling_factor + self.shift_factor
        with torch.autocast(latents.device.type, enabled=False):
            slices = [self.model.decode(part, return_dict=False)[0] for part in torch.split(unscaled, _SLICE)]
        return torch.cat([_to_uint8(pixels) for pixels in slices])


def _to_uint8(pixels: torch.Tensor) -> torch.Tensor:
    return ((pixels + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def autoencoder_files(name: str, cache_dir: Path) -> list[Download]:
    """What `load_autoencoder` fetches from the hub; empty for a folder.

    Raises:
        OptionError: neither a folder nor the name of a repository.
    """
    return Folder(name).downloads(MODEL_FILES, cache_dir)


def load_autoencoder(name: str | Path, *, cache_dir: Path | None = None, progress: Progress = SILENT) -> Autoencoder:
    """An autoencoder on the CPU.

    Args:
        name: a folder that `save_pretrained` wrote, of an `AutoencoderKL` or of a pipeline with one; or a repository of
            the hub, `org/name[@revision][/subfolder]` (`CompVis/stable-diffusion-v1-4/vae`). A `Path` is a folder.
        cache_dir: where a file that was fetched by hand is found; the user's cache by default.
        progress: counts megabytes.

    Raises:
        OptionError: neither a folder nor the name of a repository.
        WeightsError: a failed download, another model, or tensors that do not fit.
    """
    if isinstance(name, Path):
        found = name.expanduser()
    else:
        found = Folder(name).fetch(MODEL_FILES, cache_dir or default_cache_dir(), progress)
    from diffusers import AutoencoderKL  # seconds, for commands that load no autoencoder

    model, file = load_model(AutoencoderKL, model_folder(found, ("vae",), "a folder of an AutoencoderKL"))
    config: Any = model.config
    if not config.scaling_factor or not config.scaling_factor > 0:
        raise WeightsError(f"{file.parent} has scaling_factor={config.scaling_factor}: latents need one above 0.")
    identity = f"{sha256(file)} scale {config.scaling_factor!r} shift {config.shift_factor or 0.0!r}"
    return Autoencoder(str(name), model, hashlib.sha256(identity.encode()).hexdigest())
