"""`inceptionv3`: torchvision's ImageNet Inception-v3, with the preprocessing of instance selection for GANs."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import Inception_V3_Weights, inception_v3
from torchvision.transforms.v2.functional import center_crop

from dcprune.artifacts import EncoderInfo
from dcprune.encoders.folding import fold_batch_norm
from dcprune.encoders.preprocessing import GREY, square
from dcprune.errors import OptionError
from dcprune.interfaces import Download, EncoderContext, Untrained
from dcprune.weights import fit_weights, read_weights, sha256, torchvision_file, weights_path

SIZE = 299
DIM = 2048
_SMALLEST = 16
_IMAGENET = Inception_V3_Weights.IMAGENET1K_V1


class InceptionV3:
    """Inception-v3 (Szegedy et al., arXiv 1512.00567) trained on ImageNet: the 2048 features of its last pooling.

    The space of DeVries et al. 2020 (arXiv 2007.15255), whose programme is uoguelph-mlrg/instance_selection_for_gans:
    images are square at the resolution that the generator is trained at, and come to 299 pixels by bilinear
    interpolation with aligned corners and without antialiasing. torchvision's network divides ImageNet's mean and
    standard deviation out again and computes on pixels in [-1, 1]; here they come in that form at once.

    Args:
        weights: a file with torchvision's tensor names; None takes torchvision's own.
        image_size: the resolution that the generator is trained at: images are cropped to a square and brought to it
            first, antialiased. None leaves images of up to 299 pixels as they are.

    Raises:
        OptionError: an image size out of range.
    """

    compilable = True

    def __init__(self, *, weights: str | None = None, image_size: int | None = None) -> None:
        if image_size is not None and image_size < _SMALLEST:
            raise OptionError(f"Setting image_size={image_size} of inceptionv3 is below {_SMALLEST} pixels.")
        self.weights = weights
        self.image_size = image_size
        self.shorter_side = image_size or SIZE

    def downloads(self, cache_dir: Path) -> list[Download]:
        """Weights of torchvision, unless a file is given."""
        return [] if self.weights else [torchvision_file(_IMAGENET)]

    def load(self, context: EncoderContext) -> EncoderInfo:
        """Put the network onto the device.

        Raises:
            WeightsError: no such file, a failed download, or tensors that do not fit.
        """
        path = weights_path(self.weights, self.downloads(context.cache_dir), context.progress)
        with torch.device("meta"):
            network: nn.Module = inception_v3(weights=None, aux_logits=False, init_weights=False)
        network.fc = nn.Identity()
        body = {
            name: tensor for name, tensor in read_weights(path)[0].items() if not name.startswith(("fc.", "AuxLogits."))
        }
        fit_weights(network.eval().requires_grad_(False), body, str(path), "torchvision's Inception-v3")
        fold_batch_norm(network, network, SIZE)
        self._network = network.to(context.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return EncoderInfo(
            name="inceptionv3",
            dim=DIM,
            weights=self.weights or f"torchvision {_IMAGENET}",
            weights_sha256=sha256(path),
            layer="avgpool",
            preprocessing={
                "crop": "central square",
                "resize": self.image_size or f"{SIZE}, larger images only",
                "interpolation": "bilinear, antialiased",
                "size": SIZE,
                "upsampling": "bilinear, aligned corners, no antialiasing",
                "mean": 0.5,
                "std": 0.5,
                "grey": GREY,
            },
            settings={"image_size": self.image_size},
        )

    def untrained(self, context: EncoderContext) -> Untrained:
        """Torchvision's network, its tensors drawn by PyTorch's defaults."""
        return Untrained(inception_v3(weights=None, aux_logits=False, init_weights=False).state_dict())

    def preprocess(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 [B, C, H, W] with C in (1, 3) -> float32 [B, 3, 299, 299] in [-1, 1]."""
        shorter = min(images.shape[2:])
        edge = self.image_size or min(SIZE, shorter)
        pixels = square(center_crop(images, [shorter, shorter]), edge, edge).float().div_(127.5).sub_(1)
        return F.interpolate(pixels, (SIZE, SIZE), mode="bilinear", align_corners=True).expand(-1, 3, -1, -1)

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels float [B, 3, 299, 299] -> features [B, 2048]."""
        features: torch.Tensor = self._network(pixels)
        return features
