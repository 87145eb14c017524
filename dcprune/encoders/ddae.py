"""`ddae`: activations of an unconditional diffusion model (denoising diffusion autoencoder)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, UNet2DModel
from torch import nn

from dcprune.artifacts import EncoderInfo, StageCost
from dcprune.diffusers_folder import load_model, model_folder
from dcprune.encoders.preprocessing import GREY, square
from dcprune.errors import OptionError, WeightsError
from dcprune.interfaces import Download, EncoderContext
from dcprune.weights import sha256

_LUMA = (0.299, 0.587, 0.114)  # ITU-R 601
_BLOCKS = {"UpBlock2D", "AttnUpBlock2D"}


class Ddae:
    """Denoising diffusion autoencoder (Xiang et al. 2023, arXiv 2303.09769; programme: FutureXiang/ddae).

    One pass of a U-Net over the image with a little noise, EMA weights, and the activation of a residual block on the
    way up (with the self-attention that belongs to it), averaged over all positions. The source draws other noise for
    every image; here it is one draw for all, so that an embedding depends on nothing but its image. The network is cut
    off behind the block.

    Args:
        weights: a run folder of the backend `ddpm`, its `model/` folder, or any folder of an `UNet2DModel` of diffusers
            (with `scheduler/` beside it when its noise schedule is not the linear one of DDPM).
        timestep: how much noise, counted from 1 to T as in the source: x_t holds the noise of the first `timestep`
            steps, and diffusers' schedulers call it `timestep` - 1.
        block: which residual block on the way up, counted from 1 as in the source's `out_6`. In diffusers' names, with
            n blocks in each level, block b is `up_blocks[(b - 1) // n].resnets[(b - 1) % n]`; in the `paper` preset
            (n = 3) the sixth is `up_blocks[1].resnets[2]`, 256 channels at 8 x 8 of a 32 x 32 image.
        noise_seed: seed of the noise.
        null_class: embed with a class-conditional run under its null class, which the source does not do.

    Raises:
        OptionError: no weights, or numbers out of range.
    """

    compilable = True
    shorter_side: int | None = None

    def __init__(
        self,
        *,
        weights: str | None = None,
        timestep: int = 11,
        block: int = 6,
        noise_seed: int = 0,
        null_class: bool = False,
    ) -> None:
        if weights is None:
            raise OptionError(
                "ddae embeds with a trained run: dcprune train DATASET --unconditional -o RUN, and give it as "
                "--weights RUN."
            )
        if timestep < 1 or block < 1 or noise_seed < 0:
            raise OptionError(f"Settings timestep={timestep}, block={block}, noise_seed={noise_seed}: out of range.")
        self.costs: tuple[StageCost, ...] = ()
        self.weights = weights
        self.timestep = timestep
        self.block = block
        self.noise_seed = noise_seed
        self.null_class = null_class

    def downloads(self, cache_dir: Path) -> list[Download]:
        """None: a run is trained here."""
        return []

    def load(self, context: EncoderContext) -> EncoderInfo:
        """Put the first part of the U-Net onto the device.

        Raises:
            WeightsError: no such folder, or another kind of model: class-conditional, in latent space, of another
                backend.
            OptionError: a timestep or block that the model does not have.
        """
        path = Path(self.weights).expanduser()
        folder = model_folder(path, ("unet", "model/unet"), "a run folder of the backend ddpm")
        run = _run_record(folder)
        self.costs = tuple(StageCost(**{**cost, "stage": "surrogate"}) for cost in run.get("ledger", ()))
        model, file = load_model(UNet2DModel, folder)
        config: Any = model.config
        self._check(config, run, folder)
        module = truncate(model, self.block)
        self._channels, self._size = config.in_channels, config.sample_size
        self._padded = run.get("model", {}).get("resolution", self._size) is None
        self._multiple = 2 ** (len(config.block_out_channels) - 1)
        self.shorter_side = None if self._padded else self._size
        self._model: Any = model.to(context.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._step = torch.tensor(self.timestep - 1, device=context.device)
        self._label = config.num_class_embeds - 1 if self.null_class else None
        shape = (self._channels, self._size, self._size)
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(self.noise_seed))
        alpha_bar = self._alpha_bar(folder)
        self._signal, self._noise = alpha_bar**0.5, ((1 - alpha_bar) ** 0.5 * noise).to(context.device)
        return EncoderInfo(
            name="ddae",
            dim=int(model.up_blocks[-1].resnets[-1].out_channels),  # type: ignore[index, union-attr]
            weights=self.weights,
            weights_sha256=sha256(file),
            layer=f"{module}, globally average-pooled",
            preprocessing={
                "resize": self._size,
                "crop": self._size,
                "interpolation": "bilinear, antialiased, shorter side",
                "padding": f"black, to a multiple of {self._multiple} pixels" if self._padded else "none",
                "mean": 0.5,
                "std": 0.5,
                "alpha_bar": alpha_bar,
                "grey": GREY if self._channels == 3 else "as it is; colours by their luma",
            },
            settings={
                "timestep": self.timestep,
                "block": self.block,
                "noise_seed": self.noise_seed,
                "null_class": self.null_class,
            },
            details={"trained_on": run["dataset"]["uri"]} if "dataset" in run else {},
        )

    def preprocess(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 [B, C, H, W] with C in (1, 3) -> float32 [B, 3, S, S] in [-1, 1], as the run was trained."""
        if self._channels == 1 and images.shape[1] == 3:
            luma = images.new_tensor(_LUMA, dtype=torch.float32)
            images = torch.einsum("bchw,c->bhw", images.float(), luma)[:, None].round().to(torch.uint8)
        borders = [self._size - side for side in images.shape[2:]]
        if self._padded and all(0 <= border < self._multiple for border in borders):
            down, right = borders
            images = F.pad(images, (right // 2, right - right // 2, down // 2, down - down // 2))
        else:
            images = square(images, self._size, self._size)
        return images.float().div_(127.5).sub_(1).expand(-1, 3, -1, -1)

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels float [B, 3, S, S] -> activations [B, D]."""
        x_t = self._signal * pixels[:, : self._channels] + self._noise
        labels = None if self._label is None else x_t.new_full((len(x_t),), self._label, dtype=torch.long)
        maps: torch.Tensor = self._model(x_t, self._step, labels, return_dict=False)[0]
        return maps.float().mean((2, 3))

    def _check(self, config: Any, run: dict[str, Any], folder: Path) -> None:
        """Refuse models that cannot be embedded with."""
        backend = run.get("backend", "ddpm")
        square_pixels = isinstance(config.sample_size, int) and config.in_channels in (1, 3)
        if backend != "ddpm" or not square_pixels or config.time_embedding_type != "positional":
            raise WeightsError(f"{folder} is no pixel-space DDPM of square images, as the backend ddpm trains them.")
        if self.null_class and config.num_class_embeds is None:
            raise OptionError("null_class=true needs a class-conditional run, and this one is unconditional.")
        if config.class_embed_type is not None or (config.num_class_embeds is not None and not self.null_class):
            raise WeightsError(
                f"{folder} is a class-conditional model, and an embedding must not know the class. Train a run with "
                "--unconditional, or pass --set null_class=true to use this one under its null class."
            )

    def _alpha_bar(self, folder: Path) -> float:
        """Cumulative signal level at the timestep."""
        stored = folder.parent / "scheduler"
        try:
            scheduler = DDPMScheduler.from_pretrained(stored) if stored.is_dir() else DDPMScheduler()
        except (OSError, ValueError) as error:
            raise WeightsError(f"{stored} holds no noise schedule: {error}") from error
        if self.timestep > len(scheduler.alphas_cumprod):
            raise OptionError(f"Setting timestep={self.timestep} of ddae is beyond {len(scheduler.alphas_cumprod)}.")
        return float(scheduler.alphas_cumprod[self.timestep - 1])


def truncate(model: nn.Module, block: int) -> str:
    """Cut an `UNet2DModel` off behind a residual block of its way up, which it returns the activation of from then on.

    Args:
        model: changed in place.
        block: number of the block, counted from 1.

    Returns:
        The block's name.

    Raises:
        OptionError: there is no such block.
        WeightsError: up-blocks of a kind that cannot be cut.
    """
    up_blocks: Any = model.up_blocks
    counts = [len(each.resnets) for each in up_blocks]
    if {type(each).__name__ for each in up_blocks} - _BLOCKS:
        raise WeightsError(f"Only U-Nets of {' and '.join(sorted(_BLOCKS))} can be embedded with.")
    if block > sum(counts):
        raise OptionError(f"Setting block={block} of ddae is beyond the {sum(counts)} blocks of this U-Net's way up.")
    level, left = 0, block
    while left > counts[level]:
        left -= counts[level]
        level += 1
    last = up_blocks[level]
    last.resnets = last.resnets[:left]
    if hasattr(last, "attentions"):
        last.attentions = last.attentions[:left]
    last.upsamplers = None
    model.up_blocks = up_blocks[: level + 1]
    for name in ("conv_norm_out", "conv_act", "conv_out"):
        setattr(model, name, nn.Identity())
    return f"up_blocks[{level}].resnets[{left - 1}]"


def _run_record(folder: Path) -> dict[str, Any]:
    """`run.json` of the run that a model's folder belongs to; empty when it belongs to none."""
    path = folder.parent.parent / "run.json"
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) and str(record.get("format", "")).startswith("dcprune.run/") else {}
