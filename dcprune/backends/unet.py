"""The U-Net of diffusers that the pixel-space backends train: built, called, guided, saved and opened."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import UNet2DModel
from torch import nn

from dcprune.backends.layout import DeviceLayout
from dcprune.backends.pixels import fit_square, pad_to_multiple
from dcprune.devices import layout
from dcprune.errors import OptionError, WeightsError

FOLDER = "unet"

# Channels-last upsampling counts the elements of its output in 32 bits.
_MOST_ELEMENTS = 2**31


@dataclass(frozen=True)
class UNetSettings:
    """Shape of a `UNet2DModel` with K + 1 class embeddings, of which the last is the null condition.

    Attributes:
        resolution: side of the square images; None keeps the dataset's size, padded with black to a multiple of the
            network's down-sampling factor (28 becomes 32).
        block_out_channels: channels of each level; each level after the first halves the resolution.
        layers_per_block: residual blocks of a level on the way down; one more on the way up.
        attention_levels: levels with self-attention, counted from 0; the middle always has it.
        norm_num_groups: groups of every group normalisation.
        time_scale_shift: the embedding scales and shifts (adaptive group normalisation) instead of only shifting.
        dropout: of every residual block.

    Raises:
        OptionError: settings that contradict each other.
    """

    resolution: int | None
    block_out_channels: tuple[int, ...]
    layers_per_block: int
    attention_levels: tuple[int, ...]
    norm_num_groups: int
    time_scale_shift: bool
    dropout: float

    def __post_init__(self) -> None:
        channels, groups = self.block_out_channels, self.norm_num_groups
        if not channels or groups < 1 or any(width <= 0 or width % groups for width in channels):
            raise OptionError(f"block_out_channels={channels} are not multiples of norm_num_groups={groups}.")
        if self.layers_per_block < 1:
            raise OptionError(f"layers_per_block={self.layers_per_block} is below 1.")
        if any(not 0 <= level < len(channels) for level in self.attention_levels):
            raise OptionError(f"attention_levels={self.attention_levels} name levels outside 0 to {len(channels) - 1}.")
        if not 0 <= self.dropout < 1:
            raise OptionError(f"dropout={self.dropout} is outside [0, 1).")
        if self.resolution is not None and (self.resolution < 1 or self.resolution % self.downsampling):
            raise OptionError(
                f"resolution={self.resolution} is not a multiple of {self.downsampling}, the down-sampling factor of "
                f"{len(channels)} levels."
            )

    @property
    def downsampling(self) -> int:
        """Factor between the image and the network's lowest level."""
        return int(2 ** (len(self.block_out_channels) - 1))

    def as_json(self) -> dict[str, Any]:
        """The attributes, tuples as lists."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    def to_resolution(self, images: torch.Tensor) -> torch.Tensor:
        """Images of any size at the model's: uint8 [B, C, H, W] -> uint8 [B, C, H', W']."""
        if self.resolution is None:
            return pad_to_multiple(images, self.downsampling)
        return fit_square(images, self.resolution)

    def build(self, *, num_classes: int, sample_shape: Sequence[int], seed: int, **settings: Any) -> nn.Module:
        """A network with random weights on the CPU; the same seed gives the same weights.

        Args:
            num_classes: K; 0 for class-less data, which gets no embeddings at all.
            sample_shape: (C, H, W).
            seed: of the weights.
            settings: further arguments of `UNet2DModel`.
        """
        channels, height, width = sample_shape
        levels = range(len(self.block_out_channels))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = UNet(
                sample_size=height if height == width else (height, width),
                in_channels=channels,
                out_channels=channels,
                layers_per_block=self.layers_per_block,
                block_out_channels=self.block_out_channels,
                down_block_types=tuple(self._block_type(level, "Down") for level in levels),
                up_block_types=tuple(self._block_type(level, "Up") for level in reversed(levels)),
                attention_head_dim=None,
                norm_num_groups=self.norm_num_groups,
                attn_norm_num_groups=self.norm_num_groups,
                resnet_time_scale_shift="scale_shift" if self.time_scale_shift else "default",
                dropout=self.dropout,
                num_class_embeds=num_classes + 1 if num_classes else None,
                **settings,
            )
        return _with_our_upsampling(model)

    def _block_type(self, level: int, direction: str) -> str:
        return f"{'Attn' if level in self.attention_levels else ''}{direction}Block2D"


class UNet(DeviceLayout, UNet2DModel):  # type: ignore[misc]
    """Diffusers' `UNet2DModel`, with its names and weights."""


class _Upsample(nn.Module):
    """What diffusers' `Upsample2D` computes, without its detour over contiguous memory from 64 images up."""

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, hidden_states: torch.Tensor, output_size: int | None = None) -> torch.Tensor:
        if 4 * hidden_states.numel() >= _MOST_ELEMENTS:
            hidden_states = hidden_states.contiguous()
        larger: torch.Tensor = self.conv(F.interpolate(hidden_states, scale_factor=2.0, mode="nearest"))
        return larger


def _with_our_upsampling(model: UNet) -> nn.Module:
    blocks: Any = model.up_blocks
    for block in blocks:
        if block.upsamplers is not None:
            block.upsamplers = nn.ModuleList(_Upsample(each.conv) for each in block.upsamplers)
    return model


def config(model: nn.Module) -> Any:
    """The settings that diffusers keeps on a network, also through the wrappers of `torch.compile` and DDP."""
    while not hasattr(model, "down_blocks"):
        inner = getattr(model, "_orig_mod", None) or getattr(model, "module", None)
        if not isinstance(inner, nn.Module):
            raise TypeError(f"{type(model).__name__} is no network of a pixel-space backend.")
        model = inner
    return model.config


def null_label(model: nn.Module) -> int | None:
    """Index of the null condition, or None for a class-less network."""
    embeddings: int | None = config(model).num_class_embeds
    return None if embeddings is None else embeddings - 1


def sample_shape(model: nn.Module) -> tuple[int, int, int]:
    """(C, H, W) of the images."""
    settings = config(model)
    size = settings.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    return settings.in_channels, height, width


def conditions(model: nn.Module, labels: torch.Tensor, dropped: torch.Tensor) -> torch.Tensor | None:
    """Labels int64 [B] with the null condition where `dropped` bool [B] is True; None for a class-less network."""
    null = null_label(model)
    return None if null is None else torch.where(dropped, null, labels)


def forward(model: nn.Module, x: torch.Tensor, times: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
    """The network's output [B, C, H, W] in float32, whatever autocast made of it.

    Args:
        model: the network.
        x: [B, C, H, W].
        times: [B], on the device of `x`; a number would be copied there, and the copy waited for.
        labels: int64 [B], or None for a class-less network.
    """
    output: torch.Tensor = model(x.contiguous(memory_format=layout(x.device)), times, labels, return_dict=False)[0]
    return output.float()


class Guided:
    """A network under classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598).

    With `guidance_scale` 1 + w the output is (1 + w) f(label) - w f(null), both from one forward pass over 2 B images.
    Scale 1, scale 0 and class-less networks need B.

    Args:
        model: the network.
        labels: int64 [B] on the network's device.
        guidance_scale: 1 + w.
    """

    def __init__(self, model: nn.Module, labels: torch.Tensor, guidance_scale: float) -> None:
        self.model = model
        self.guidance_scale = guidance_scale
        null = null_label(model)
        self.labels: torch.Tensor | None = None
        self.both = False
        if null is not None:
            unconditional = torch.full_like(labels, null)
            self.both = guidance_scale not in (0, 1)
            self.labels = unconditional if guidance_scale == 0 else labels
            if self.both:
                self.labels = torch.cat([labels, unconditional])

    def __call__(self, x: torch.Tensor, time: float) -> torch.Tensor:
        """Output float32 [B, C, H, W] for `x` [B, C, H, W] at one time, a timestep (int) or what stands for it."""
        if not self.both:
            return forward(self.model, x, _filled(time, x), self.labels)
        both = torch.cat([x, x])
        output = forward(self.model, both, _filled(time, both), self.labels)
        conditional, unconditional = output.chunk(2)
        return torch.lerp(unconditional, conditional, self.guidance_scale)


def _filled(time: float, x: torch.Tensor) -> torch.Tensor:
    """`time` for every row of `x`, written on its device."""
    return torch.full((len(x),), time, dtype=torch.int64 if isinstance(time, int) else torch.float32, device=x.device)


def save(model: nn.Module, folder: Path, scheduler: Any) -> None:
    """Write `unet/` and `scheduler/` into a folder, as diffusers' own classes of these names do."""
    settings = {name: value for name, value in config(model).items() if name != "_name_or_path"}
    with torch.device("meta"):
        unet = UNet2DModel.from_config(settings)
    state = {name: tensor.cpu().contiguous() for name, tensor in model.state_dict().items()}
    unet.load_state_dict(state, assign=True)
    unet.save_pretrained(folder / FOLDER)
    scheduler.save_pretrained(folder / "scheduler")


def load(folder: Path, backend: str) -> nn.Module:
    """The network of a folder that `save` wrote, on the CPU, in inference mode.

    Raises:
        WeightsError: the folder does not hold such a network.
    """
    try:
        model = UNet.from_pretrained(folder / FOLDER, local_files_only=True, use_safetensors=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise WeightsError(f"{folder} does not hold a model of the {backend} backend: {error}") from error
    return _with_our_upsampling(model).eval()
