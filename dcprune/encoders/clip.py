"""`open_clip:MODEL/PRETRAINED` and `clip-rn50`: image towers of CLIP models, through open_clip."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import nn

from dcprune.artifacts import EncoderInfo
from dcprune.downloads import hub_file
from dcprune.encoders.folding import fold_batch_norm
from dcprune.encoders.preprocessing import Fit, Preprocessing
from dcprune.errors import OptionError, UnknownName, WeightsError
from dcprune.interfaces import Download, EncoderContext, Untrained
from dcprune.weights import reason, sha256, weights_path

_FITS: dict[str, Fit] = {"shortest": "shorter", "longest": "longer", "squash": "squash"}
_WEIGHTS_FILE = "open_clip_model.safetensors"


class OpenClip:
    """Image embeddings of a CLIP model (Radford et al. 2021, arXiv 2103.00020), not normalised.

    The network, its activation (QuickGELU where the weights were trained with it) and its preprocessing are open_clip's
    for this pair of model and weights.

    Args:
        argument: `MODEL/PRETRAINED` as open_clip names them (`ViT-B-32/laion2b_s34b_b79k`), or `MODEL` alone when
            `weights` are given, which then has open_clip's default preprocessing.
        weights: a checkpoint of the whole model in any form that open_clip reads; None fetches PRETRAINED.

    Raises:
        UnknownName: open_clip has no such model or weights.
        OptionError: neither weights nor the name of some.
    """

    compilable = True
    shorter_side: int | None = None

    def __init__(self, argument: str, *, weights: str | None = None) -> None:
        self.model, self.pretrained = _parsed(argument)
        self.weights = weights
        if not self.pretrained and weights is None:
            tags = ", ".join(open_clip.list_pretrained_tags_by_model(self.model)) or "none"
            raise OptionError(
                f"open_clip:{argument} says no weights: write open_clip:{self.model}/PRETRAINED (known: {tags}), or "
                "give a file with --weights PATH."
            )
        self._config: Mapping[str, Any] = open_clip.pretrained.get_pretrained_cfg(self.model, self.pretrained)

    def downloads(self, cache_dir: Path) -> list[Download]:
        """The pretrained weights, unless a file is given."""
        if self.weights:
            return []
        if not self._config.get("hf_hub"):
            url = self._config["url"]
            return [Download(url, cache_dir / "open_clip" / url.rpartition("/")[2])]
        repository, _, file = self._config["hf_hub"].rpartition("/")
        return [hub_file(repository, file or _WEIGHTS_FILE, cache_dir)]

    def load(self, context: EncoderContext) -> EncoderInfo:
        """Put the image tower onto the device.

        Raises:
            WeightsError: no such file, a failed download, or tensors that do not fit.
        """
        path = weights_path(self.weights, self.downloads(context.cache_dir), context.progress)
        visual = self._tower(path)
        self._preprocessing = preprocessing(visual.preprocess_cfg, context.device)  # type: ignore[arg-type]
        self.shorter_side = self._preprocessing.shorter_side
        self._network = visual
        fold_batch_norm(visual, self.encode, self._preprocessing.crop)
        visual.to(context.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return EncoderInfo(
            name=self._name,
            dim=int(visual.output_dim),  # type: ignore[arg-type]
            weights=self.weights or f"open_clip {self.model}/{self.pretrained}",
            weights_sha256=sha256(path),
            layer="image embedding",
            preprocessing=self._preprocessing.describe(),
            settings={},
            details={"model": self.model, "pretrained": self.pretrained or None, "quick_gelu": self._quick_gelu},
        )

    def untrained(self, context: EncoderContext) -> Untrained:
        """The whole model, initialised by open_clip."""
        logging.disable(logging.WARNING)  # open_clip warns that the weights are random
        try:
            return Untrained(open_clip.create_model(self.model).state_dict())
        finally:
            logging.disable(logging.NOTSET)

    def preprocess(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 [B, C, H, W] with C in (1, 3) -> float32 [B, 3, S, S]."""
        return self._preprocessing(images)

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels float [B, 3, S, S] -> embeddings [B, D]."""
        output = self._network(pixels)
        embeddings: torch.Tensor = output[0] if isinstance(output, tuple) else output  # CoCa adds tokens
        return embeddings

    @property
    def _name(self) -> str:
        return f"open_clip:{self.model}{f'/{self.pretrained}' if self.pretrained else ''}"

    @property
    def _quick_gelu(self) -> bool:
        return bool(self._config.get("quick_gelu") or open_clip.get_model_config(self.model).get("quick_gelu"))

    def _tower(self, path: Path) -> nn.Module:
        try:
            model: nn.Module = open_clip.create_model(
                self.model,
                pretrained=str(path),
                force_quick_gelu=self._quick_gelu,
                force_preprocess_cfg=dict(self._config),
                weights_only=True,
            )
        except Exception as error:  # a file may hold anything, and open_clip raises what comes
            raise WeightsError(
                f"The weights {str(path)!r} do not load as open_clip's {self.model}: {reason(error)}."
            ) from error
        visual: nn.Module = model.visual  # type: ignore[assignment]
        return visual.eval().requires_grad_(False)


class ClipRn50(OpenClip):
    """CLIP's ResNet-50 with OpenAI's weights, the paper's CLIP space: 1,024 dimensions.

    Args:
        weights: a file of the same network; None fetches OpenAI's.
    """

    def __init__(self, *, weights: str | None = None) -> None:
        super().__init__("RN50/openai", weights=weights)

    @property
    def _name(self) -> str:
        return "clip-rn50"


def _parsed(argument: str) -> tuple[str, str]:
    """Model and name of its weights (empty when there is none).

    Raises:
        UnknownName: open_clip has no such model or weights.
    """
    models = open_clip.list_models()
    if argument.replace("/", "-") in models:
        return argument.replace("/", "-"), ""
    model, _, pretrained = argument.rpartition("/") if "/" in argument else (argument, "", "")
    model = model.replace("/", "-")
    if model not in models:
        raise UnknownName("open_clip model", model, models)
    tags = open_clip.list_pretrained_tags_by_model(model)
    if pretrained and not open_clip.pretrained.is_pretrained_cfg(model, pretrained):
        raise UnknownName(f"pretrained weights of open_clip's {model}:", pretrained, tags)
    return model, pretrained


def preprocessing(config: Mapping[str, Any], device: torch.device) -> Preprocessing:
    """What open_clip does to images under its configuration `config`.

    Raises:
        OptionError: the images are not square.
    """
    size = config["size"] if isinstance(config["size"], int) else tuple(config["size"])
    if isinstance(size, tuple) and size[0] != size[1]:
        raise OptionError(f"This model takes images of {size[0]} x {size[1]} pixels; only square ones are supported.")
    edge = size if isinstance(size, int) else size[0]
    return Preprocessing(
        crop=edge,
        resize=edge,
        device=device,
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        interpolation="bilinear" if config["interpolation"] == "bilinear" else "bicubic",
        fit=_FITS[config["resize_mode"]],
        fill=(config["fill_color"],) * 3,
    )
