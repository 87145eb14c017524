"""`dinov2`: the class token of DINOv2, as dgm-eval computes it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal, get_args

import torch
import torch.nn.functional as F

from dcprune.artifacts import EncoderInfo
from dcprune.encoders.preprocessing import Preprocessing
from dcprune.encoders.timm_models import build, initialised, pretrained_file, ready
from dcprune.errors import OptionError
from dcprune.interfaces import Download, EncoderContext, Untrained
from dcprune.weights import read_weights, sha256, weights_path

Size = Literal["s", "b", "l"]

_MODELS = {size: f"vit_{word}_patch14_dinov2.lvd142m" for size, word in (("s", "small"), ("b", "base"), ("l", "large"))}
_PATCH = 14
_OFFSET = 0.1


class DinoV2:
    """DINOv2 (Oquab et al. 2023, arXiv 2304.07193): the normalised class token of 384, 768 or 1,024 dimensions.

    The space of Stein et al. 2023 (arXiv 2306.04675), in the way of their layer6ai-labs/dgm-eval: ViT-L/14, both sides
    resized to 224 pixels by bicubic interpolation, position embeddings resampled as DINOv2 itself does (bicubic,
    without antialiasing, the grid 0.1 larger than it is), so that `fd:dinov2` is their FD. The network is timm's.

    Args:
        weights: a state dict of timm's model or of the one that Meta publishes; None fetches timm's.
        size: the ViT: `s`, `b` or `l`.
        image_size: edge in pixels, a multiple of 14.

    Raises:
        OptionError: an unknown size, or an image size out of range.
    """

    compilable = True

    def __init__(self, *, weights: str | None = None, size: Size = "l", image_size: int = 224) -> None:
        if size not in get_args(Size):
            raise OptionError(f"Unknown size {size!r} of dinov2. Known: {', '.join(get_args(Size))}.")
        if image_size < _PATCH or image_size % _PATCH:
            raise OptionError(f"Setting image_size={image_size} of dinov2 is not a multiple of {_PATCH} pixels.")
        self.weights = weights
        self.size: Size = size
        self.image_size = self.shorter_side = image_size

    def downloads(self, cache_dir: Path) -> list[Download]:
        """The weights that timm publishes, unless a file is given."""
        return [] if self.weights else [pretrained_file(_MODELS[self.size], cache_dir)]

    def load(self, context: EncoderContext) -> EncoderInfo:
        """Put the network onto the device.

        Raises:
            WeightsError: no such file, a failed download, or tensors that do not fit.
        """
        path = weights_path(self.weights, self.downloads(context.cache_dir), context.progress)
        state, _ = read_weights(path)
        if state.get("pos_embed", torch.empty(0)).ndim == 3:
            state["pos_embed"] = resampled(state["pos_embed"], self.image_size // _PATCH)
        model = _MODELS[self.size]
        network = build(model, state, str(path), self.image_size)
        self._network, dim = ready(network, model, self.image_size, context.device)
        self._preprocessing = Preprocessing(
            self.image_size, self.image_size, context.device, interpolation="bicubic", fit="squash"
        )
        return EncoderInfo(
            name="dinov2",
            dim=dim,
            weights=self.weights or f"timm {model}",
            weights_sha256=sha256(path),
            layer="class token, normalised",
            preprocessing=self._preprocessing.describe(),
            settings={"size": self.size, "image_size": self.image_size},
        )

    def untrained(self, context: EncoderContext) -> Untrained:
        """The model as timm initialises it."""
        return Untrained(initialised(_MODELS[self.size], self.image_size).state_dict())

    def preprocess(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 [B, C, H, W] with C in (1, 3) -> float32 [B, 3, S, S]."""
        return self._preprocessing(images)

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels float [B, 3, S, S] -> class tokens [B, D]."""
        tokens: torch.Tensor = self._network(pixels)
        return tokens


def resampled(embeddings: torch.Tensor, grid: int) -> torch.Tensor:
    """Position embeddings [1, 1 + n * n, D] of a class token and n x n patches, for `grid` x `grid` patches."""
    first, patches = embeddings[:, :1].float(), embeddings[:, 1:].float()
    before = math.isqrt(patches.shape[1])
    if before in (0, grid):
        return embeddings
    maps = patches[:, : before * before].reshape(1, before, before, -1).permute(0, 3, 1, 2)
    scale = (grid + _OFFSET) / before
    maps = F.interpolate(maps, scale_factor=(scale, scale), mode="bicubic")
    return torch.cat([first, maps.permute(0, 2, 3, 1).flatten(1, 2)], 1)
