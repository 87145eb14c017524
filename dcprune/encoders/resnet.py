"""`resnet18`: ResNet-18 (He et al., arXiv 1512.03385), trained on the dataset itself or on ImageNet.

The embedding is the globally average-pooled output of the last block, 8 * width dimensions (512 for the usual width of
64). Tensors are named as torchvision names them. Images up to 64 px go through the CIFAR stem (a 3x3 convolution of
stride 1, no pooling), larger ones through the ImageNet stem.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from pydantic import ValidationError

from dcprune.artifacts import EncoderInfo, StageCost
from dcprune.encoders.folding import fold_batch_norm
from dcprune.encoders.preprocessing import Preprocessing
from dcprune.encoders.resident import Resident, resident
from dcprune.encoders.residual import Network, Stem, from_state, initialised
from dcprune.encoders.surrogate import Recipe, recipe_for, seconds_to_train, timed_rows, train
from dcprune.errors import OptionError, WeightsError
from dcprune.interfaces import DatasetSource, Download, EncoderContext, Untrained
from dcprune.locks import locked
from dcprune.subset import Subset
from dcprune.weights import read_weights, sha256, torchvision_file, weights_path, write_weights

LAYER = "layer4, globally average-pooled"
_LARGEST_CIFAR = 64
_SMALLEST = 16
_PROBED = 64
_IMAGENET = torchvision.models.ResNet18_Weights.IMAGENET1K_V1
_FORMAT = "dcprune.surrogate/1"
_METHOD = 2  # counts up whenever the same settings train other weights, so that the cache knows


def automatic_size(dataset: DatasetSource) -> int:
    """Edge to train at: the median shorter side of some images, at most 224."""
    last = min(_PROBED, len(dataset)) - 1 if dataset.streaming else len(dataset) - 1
    rows = np.unique(np.linspace(0, last, _PROBED).round().astype(int))
    median = int(np.median([min(dataset.image(int(row)).shape[:2]) for row in rows]))
    return min(224, max(_SMALLEST, median))


class ResNet18:
    """ResNet-18 as an encoder.

    Args:
        weights: None trains a surrogate on the dataset, or takes the one that was trained before; `imagenet` takes
            torchvision's; a path takes a .safetensors file or a state dict.
        width: channels of the first stage; 64 by default, or what the weights have.
        image_size: edge in pixels; by default that of the images (at most 224), or what the weights were trained at.
        epochs: of a surrogate, as all that follow; 8 on a CPU and 12 on a GPU by default.
        learning_rate: peak of the one-cycle schedule; by default it follows the batch size.
        weight_decay: of convolutions and the classifier.
        batch_size: images per training step; 64 on a CPU and up to 512 on a GPU by default.
        label_smoothing: share of the target that is spread over all classes.
        held_out: share of every class that is not trained on and measures accuracy.

    Raises:
        OptionError: a value out of range.
    """

    compilable = True
    weight_names = ("imagenet",)
    shorter_side: int | None = None

    def __init__(
        self,
        *,
        weights: str | None = None,
        width: int | None = None,
        image_size: int | None = None,
        epochs: int | None = None,
        learning_rate: float | None = None,
        weight_decay: float = 5e-4,
        batch_size: int | None = None,
        label_smoothing: float = 0.1,
        held_out: float = 0.1,
    ) -> None:
        if width is not None and width < 1:
            raise OptionError(f"Setting width={width} of resnet18 is not a positive number of channels.")
        if image_size is not None and image_size < _SMALLEST:
            raise OptionError(f"Setting image_size={image_size} of resnet18 is below {_SMALLEST} pixels.")
        self.costs: tuple[StageCost, ...] = ()
        self.weights = weights
        self.width = width
        self.image_size = image_size
        given = {
            "epochs": epochs,
            "learning_rate": learning_rate,
            "weight_decay": weight_decay,
            "batch_size": batch_size,
            "label_smoothing": label_smoothing,
            "held_out": held_out,
        }
        self.recipe = {name: value for name, value in given.items() if value is not None}
        recipe_for(self.recipe, torch.device("cpu"), 1, _SMALLEST)  # refuses values out of range

    def downloads(self, cache_dir: Path) -> list[Download]:
        """ImageNet weights, when those are asked for."""
        return [torchvision_file(_IMAGENET)] if self.weights == "imagenet" else []

    def load(self, context: EncoderContext) -> EncoderInfo:
        """Load the weights, training them first where there are none.

        Raises:
            WeightsError: a file that is missing or does not fit, a failed download, or class-less data.
            TrainingDiverged: the surrogate's loss is no longer finite.
        """
        if self.weights == "imagenet":
            return self._load_imagenet(context)
        if self.weights is None:
            return self._load_surrogate(context)
        path = weights_path(self.weights, (), context.progress)
        state, metadata = read_weights(path)
        network, width, stem = from_state(state, str(path))
        record = _record(metadata)
        size = self.image_size or record.get("image_size")
        if size is None:
            size = 224 if stem == "imagenet" else min(_LARGEST_CIFAR, automatic_size(context.dataset))
        # ImageNet's own protocol for weights that do not say how they were trained.
        resize = round(size * 256 / 224) if stem == "imagenet" and not record else size
        self._preprocessing = Preprocessing(size, resize, context.device)
        settings = {"width": width, "image_size": size}
        self.costs = _costs(path)
        return self._ready(network, context, str(self.weights), sha256(path), settings, record.get("details", {}))

    def _load_imagenet(self, context: EncoderContext) -> EncoderInfo:
        if self.width not in (None, 64):
            raise OptionError(f"ImageNet weights have width 64, not {self.width}: leave --set width out.")
        file = weights_path(None, self.downloads(context.cache_dir), context.progress)
        network, width, _ = from_state(read_weights(file)[0], str(file))
        size = self.image_size or 224
        self._preprocessing = Preprocessing(size, round(size * 256 / 224), context.device)
        settings = {"width": width, "image_size": size}
        return self._ready(network, context, "imagenet", sha256(file), settings, {"torchvision": str(_IMAGENET)})

    def _load_surrogate(self, context: EncoderContext) -> EncoderInfo:
        recipe, settings = self._plan(context)
        path = _surrogate_path(settings, context)
        stored = _stored(path, context)
        if stored is None and not context.may_train:
            raise WeightsError(f"No surrogate of this dataset is cached: it would be trained, and kept at {path}.")
        if stored is None:
            damaged = path.exists()
            # Another process may be at it, as when a sweep measures two runs at a time.
            with locked(path.with_name(f"{path.name}.lock")):
                if damaged or not path.exists():
                    self._train(path, settings, recipe, context)
            stored = _stored(path, context)
        if stored is None:
            raise WeightsError(f"The surrogate that was just written to {str(path)!r} cannot be read back.")
        network, details = stored
        accuracy = details["held_out_accuracy"]
        measured = "nothing held out" if accuracy is None else f"held-out accuracy {accuracy:.1%}"
        context.progress.note(f"Surrogate {path}: {measured}.")
        self.costs = _costs(path)
        return self._ready(network, context, "surrogate", sha256(path), settings, details)

    def _plan(self, context: EncoderContext) -> tuple[Recipe, dict[str, Any]]:
        """How a surrogate of the dataset is trained, and its settings; images are prepared for it from now on."""
        size = self.image_size or automatic_size(context.dataset)
        self._preprocessing = Preprocessing(size, size, context.device)
        recipe = recipe_for(self.recipe, context.device, len(context.dataset), size)
        return recipe, {"width": self.width or 64, "image_size": size, **asdict(recipe)}

    def _start(
        self, dataset: DatasetSource, recipe: Recipe, settings: Mapping[str, Any], context: EncoderContext
    ) -> tuple[Network, Resident]:
        """A network with fresh weights, and what it is trained on."""
        size = settings["image_size"]
        data = resident(dataset, size, self._preprocessing.resized, recipe.held_out, context)
        stem: Stem = "cifar" if size <= _LARGEST_CIFAR else "imagenet"
        return initialised(settings["width"], stem, len(dataset.class_names), context.seed), data

    def _train(self, path: Path, settings: dict[str, Any], recipe: Recipe, context: EncoderContext) -> None:
        network, data = self._start(context.dataset, recipe, settings, context)
        width = settings["width"]
        advice = "--set width=16 takes about a tenth of that." if width >= 64 else ""
        details, cost = train(
            network, data, recipe, self._preprocessing.normalise, context, f"a ResNet-18 of width {width}", advice
        )
        write_weights(path, *_file(network, settings, details, context))
        _cost_path(path).write_text(cost.model_dump_json(indent=1) + "\n")

    def untrained(self, context: EncoderContext) -> Untrained:
        """Torchvision's network without ImageNet's weights; or a surrogate, and how long it would be trained."""
        if self.weights is not None:
            return Untrained(torchvision.models.resnet18(weights=None).state_dict())
        recipe, settings = self._plan(context)
        rows = timed_rows(recipe, len(context.dataset))
        network, data = self._start(Subset(context.dataset, rows), recipe, settings, context)
        seconds = seconds_to_train(network, data, recipe, self._preprocessing.normalise, context)
        return Untrained(*_file(network, settings, {}, context), training_seconds=seconds)

    def _ready(
        self,
        network: Network,
        context: EncoderContext,
        weights: str,
        weights_sha256: str,
        settings: dict[str, Any],
        details: dict[str, Any],
    ) -> EncoderInfo:
        fold_batch_norm(network, network.features, self._preprocessing.crop)
        network.requires_grad_(False)
        self._network = network.to(context.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.shorter_side = self._preprocessing.shorter_side
        return EncoderInfo(
            name="resnet18",
            dim=8 * settings["width"],
            weights=weights,
            weights_sha256=weights_sha256,
            layer=LAYER,
            preprocessing=self._preprocessing.describe(),
            settings=settings,
            details=details,
        )

    def preprocess(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 [B, C, H, W] -> float32 [B, 3, S, S]."""
        return self._preprocessing(images)

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels float [B, 3, S, S] -> embeddings [B, 8 * width]."""
        embeddings: torch.Tensor = self._network.features(pixels)
        return embeddings


def _file(
    network: Network, settings: Mapping[str, Any], details: Mapping[str, Any], context: EncoderContext
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and metadata of a surrogate's file."""
    record = {
        "format": _FORMAT,
        "image_size": settings["image_size"],
        "settings": settings,
        "seed": context.seed,
        "fingerprint": context.fingerprint,
        "details": details,
    }
    state = {name: tensor.cpu() for name, tensor in network.state_dict().items()}
    return state, {"dcprune": json.dumps(record, sort_keys=True)}


def _surrogate_path(settings: Mapping[str, Any], context: EncoderContext) -> Path:
    key = {
        "format": _FORMAT,
        "method": _METHOD,
        "fingerprint": context.fingerprint,
        "seed": context.seed,
        "settings": settings,
    }
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:20]
    return context.cache_dir / "surrogates" / f"resnet18-{name}.safetensors"


def _cost_path(path: Path) -> Path:
    """Where the cost of a surrogate lies: not in its file, whose hash is part of artifacts."""
    return path.with_name(f"{path.name}.cost")


def _costs(path: Path) -> tuple[StageCost, ...]:
    """What training the surrogate at `path` cost, if anything says so."""
    try:
        return (StageCost.model_validate_json(_cost_path(path).read_bytes()),)
    except (OSError, ValidationError):
        return ()


def _stored(path: Path, context: EncoderContext) -> tuple[Network, dict[str, Any]] | None:
    """The surrogate at `path` and what is known about it; None when there is none, or only a damaged one."""
    if not path.exists():
        return None
    try:
        state, metadata = read_weights(path)
        return from_state(state, str(path))[0], dict(_record(metadata)["details"])
    except (WeightsError, KeyError) as error:
        context.progress.warn(f"The surrogate {path} is damaged and is trained again: {error}")
        return None


def _record(metadata: Mapping[str, str]) -> dict[str, Any]:
    """What dcprune wrote beside the tensors of a surrogate; empty for other files."""
    try:
        record: dict[str, Any] = json.loads(metadata.get("dcprune", "{}"))
    except json.JSONDecodeError:
        return {}
    return record if record.get("format") == _FORMAT else {}
