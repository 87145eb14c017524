"""`timm:MODEL`: any image model of timm, pooled."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import PretrainedCfg
from torch import nn

from dcprune.artifacts import EncoderInfo
from dcprune.downloads import checkpoint, hub_file
from dcprune.encoders.folding import fold_batch_norm
from dcprune.encoders.preprocessing import Fit, Preprocessing
from dcprune.errors import OptionError, UnknownName, WeightsError
from dcprune.interfaces import Download, EncoderContext, Untrained
from dcprune.weights import read_weights, reason, sha256, weights_path

_FITS: dict[str, Fit] = {"center": "shorter", "border": "longer", "squash": "squash"}
_WEIGHTS_FILE = "model.safetensors"


class Timm:
    """Pooled features of a model of timm (https://github.com/huggingface/pytorch-image-models) before its classifier.

    What `timm.create_model(MODEL, num_classes=0)` returns; images are prepared by the model's own data configuration,
    as timm evaluates it.

    Args:
        argument: a name of timm with or without a tag (`resnet50.a1_in1k`, `vit_small_patch14_dinov2.lvd142m`).
        weights: a state dict of the model, with any classifier or none, in a form that timm reads; None fetches the
            tag's.
        image_size: edge in pixels; the model's own by default. A model that cannot take another is refused.

    Raises:
        UnknownName: timm has no such model or tag.
        OptionError: neither weights nor a tag that has some, or an image size out of range.
    """

    compilable = True
    shorter_side: int | None = None

    def __init__(self, argument: str, *, weights: str | None = None, image_size: int | None = None) -> None:
        self.model = known_model(argument)
        self.weights = weights
        self.image_size = image_size
        if image_size is not None and image_size < 1:
            raise OptionError(f"Setting image_size={image_size} of timm:{argument} is not a positive number.")
        if weights is None and not _source(self.model):
            raise OptionError(f"timm publishes no weights of {argument}: give a file with --weights PATH.")

    def downloads(self, cache_dir: Path) -> list[Download]:
        """The tag's weights, unless a file is given."""
        return [] if self.weights else [pretrained_file(self.model, cache_dir)]

    def load(self, context: EncoderContext) -> EncoderInfo:
        """Put the model onto the device.

        Raises:
            WeightsError: no such file, a failed download, or tensors that do not fit.
            OptionError: the model does not pool, or not for square images of this size.
        """
        path = weights_path(self.weights, self.downloads(context.cache_dir), context.progress)
        network = build(self.model, read_weights(path)[0], str(path), self.image_size)
        self._preprocessing = data_config(network, self.model, self.image_size, context.device)
        self.shorter_side = self._preprocessing.shorter_side
        self._network, dim = ready(network, self.model, self._preprocessing.crop, context.device)
        return EncoderInfo(
            name=f"timm:{self.model}",
            dim=dim,
            weights=self.weights or f"timm {network.pretrained_cfg['tag'] or 'default'}",  # type: ignore[index]
            weights_sha256=sha256(path),
            layer="pooled, before the classifier",
            preprocessing=self._preprocessing.describe(),
            settings={"image_size": self._preprocessing.crop},
        )

    def untrained(self, context: EncoderContext) -> Untrained:
        """The model as timm initialises it."""
        return Untrained(initialised(self.model, self.image_size).state_dict())

    def preprocess(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 [B, C, H, W] with C in (1, 3) -> float32 [B, 3, S, S]."""
        return self._preprocessing(images)

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels float [B, 3, S, S] -> features [B, D]."""
        features: torch.Tensor = self._network(pixels)
        return features


# --- names and files --------------------------------------------------------------------------------------------------


def known_model(name: str) -> str:
    """The name, when timm has a model and a tag of that name.

    Raises:
        UnknownName: it has none.
    """
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        raise UnknownName("timm model", architecture, timm.list_models())
    tags = [each.partition(".")[2] for each in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        raise UnknownName(f"tag of timm's {architecture}:", tag, tags)
    return name


def _source(model: str) -> PretrainedCfg | None:
    """Where timm finds the weights of a model, if it does."""
    config: PretrainedCfg | None = timm.get_pretrained_cfg(model)
    return config if config is not None and (config.hf_hub_id or config.url) else None


def pretrained_file(model: str, cache_dir: Path) -> Download:
    """The weights that timm publishes.

    Raises:
        WeightsError: it publishes none.
    """
    config = _source(model)
    if config is None:
        raise WeightsError(f"timm publishes no weights of {model}.")
    if not config.hf_hub_id:
        return checkpoint(config.url)
    repository, _, revision = config.hf_hub_id.partition("@")
    return hub_file(repository, config.hf_hub_filename or _WEIGHTS_FILE, cache_dir, revision=revision)


# --- the network ------------------------------------------------------------------------------------------------------


def build(model: str, state: Mapping[str, torch.Tensor], origin: str, image_size: int | None) -> nn.Module:
    """A model of timm with the tensors of a state dict and without its classifier, on the CPU, in inference mode.

    Args:
        model: its name.
        state: all its tensors; a classifier of any size, or none.
        origin: where they come from, for the message.
        image_size: edge in pixels, for models that are built for one.

    Raises:
        WeightsError: tensors that do not fit.
    """
    config = timm.get_pretrained_cfg(model) or PretrainedCfg()
    failure: Exception = WeightsError("nothing to load")
    for num_classes in _class_counts(config, state):
        # With as many classes as the tensors have, timm loads strictly.
        overlay = {"state_dict": dict(state), "num_classes": num_classes, "label_offset": 0}
        try:
            network: nn.Module = timm.create_model(
                model,
                pretrained=True,
                num_classes=num_classes,
                pretrained_cfg_overlay=overlay,
                **_size_options(config, image_size),
            )
        except Exception as error:  # noqa: BLE001 - a file may hold anything, and timm raises what comes
            failure = error
            continue
        network.pretrained_cfg.pop("state_dict", None)  # type: ignore[operator, union-attr]
        network.reset_classifier(0)  # type: ignore[operator]
        return network.eval().requires_grad_(False)
    raise WeightsError(f"The weights {origin!r} do not load as timm's {model}: {reason(failure)}.") from failure


def initialised(model: str, image_size: int | None) -> nn.Module:
    """A model of timm, its tensors drawn at random."""
    config = timm.get_pretrained_cfg(model) or PretrainedCfg()
    network: nn.Module = timm.create_model(model, **_size_options(config, image_size))
    return network


def _size_options(config: PretrainedCfg, image_size: int | None) -> dict[str, int]:
    """What a model is told that is built for one size of images."""
    return {"img_size": image_size} if image_size is not None and config.fixed_input_size else {}


def _class_counts(config: PretrainedCfg, state: Mapping[str, torch.Tensor]) -> list[int]:
    """Numbers of classes that a state dict may have, the likeliest first."""
    names = [config.classifier] if isinstance(config.classifier, str) else list(config.classifier or ())
    rows = [len(state[f"{name}.weight"]) for name in names if f"{name}.weight" in state]
    return rows[:1] or [int(config.num_classes or 0), 0]


def data_config(network: nn.Module, model: str, image_size: int | None, device: torch.device) -> Preprocessing:
    """How timm prepares the images that it evaluates a model on.

    Raises:
        OptionError: not square, or interpolated in a way that is not supported.
    """
    config: dict[str, Any] = timm.data.resolve_model_data_config(network)
    _, height, width = config["input_size"]
    if height != width and image_size is None:
        raise OptionError(f"timm:{model} takes images of {height} x {width} pixels; only square ones are supported.")
    if config["interpolation"] not in ("bilinear", "bicubic"):
        raise OptionError(f"timm:{model} resizes by {config['interpolation']}, which is not supported.")
    crop = image_size or height
    mean = tuple(config["mean"])
    return Preprocessing(
        crop=crop,
        resize=math.floor(crop / config["crop_pct"]),
        device=device,
        mean=mean,
        std=tuple(config["std"]),
        interpolation=config["interpolation"],
        fit=_FITS[config["crop_mode"]],
        fill=(round(255 * mean[0]), round(255 * mean[1]), round(255 * mean[2])),
    )


def ready(network: nn.Module, model: str, image_size: int, device: torch.device) -> tuple[nn.Module, int]:
    """The network on the device with its normalisations folded, and the width of its features.

    Raises:
        OptionError: it cannot take images of this size, or its features are no vectors.
    """
    try:
        fold_batch_norm(network, network, image_size)
        network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        with torch.inference_mode():
            features = network(torch.zeros(1, 3, image_size, image_size, device=device))
    except (RuntimeError, AssertionError) as error:
        raise OptionError(f"timm:{model} does not take images of {image_size} pixels: {reason(error)}.") from error
    if not isinstance(features, torch.Tensor) or features.ndim != 2:
        raise OptionError(f"timm:{model} returns no vector per image: it has no pooling.")
    return network, features.shape[1]
