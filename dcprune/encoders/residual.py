"""ResNet-18 (He et al., arXiv 1512.03385) of any width, with either stem, under torchvision's tensor names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.resnet import BasicBlock

from dcprune.errors import WeightsError
from dcprune.weights import fit_weights

Stem = Literal["cifar", "imagenet"]


class Network(nn.Module):
    """ResNet-18 with torchvision's tensor names: pixels [B, 3, S, S] -> logits [B, K].

    Args:
        width: channels of the first stage; 64 in the paper.
        stem: `cifar` keeps the resolution, `imagenet` divides it by 4.
        num_classes: K; 0 leaves the classifier out.
    """

    def __init__(self, width: int, stem: Stem, num_classes: int) -> None:
        super().__init__()
        small = stem == "cifar"
        self.conv1 = nn.Conv2d(3, width, 3 if small else 7, 1 if small else 2, 1 if small else 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.Identity() if small else nn.MaxPool2d(3, 2, 1)
        self.layer1 = _stage(width, width, 1)
        self.layer2 = _stage(width, 2 * width, 2)
        self.layer3 = _stage(2 * width, 4 * width, 2)
        self.layer4 = _stage(4 * width, 8 * width, 2)
        if num_classes:
            self.fc = nn.Linear(8 * width, num_classes)

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """Embeddings [B, 8 * width]."""
        maps = self.maxpool(F.relu(self.bn1(self.conv1(pixels))))
        maps = self.layer4(self.layer3(self.layer2(self.layer1(maps))))
        pooled: torch.Tensor = maps.mean((2, 3))
        return pooled

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.fc(self.features(pixels))
        return logits


class _Shortcut(nn.Conv2d):
    """A 1x1 convolution with a stride, as one without a stride of every other pixel.

    oneDNN 3.13 (torch 2.15) writes outside its workspace in the weight gradient of a strided 1x1 convolution in
    channels_last with fewer channels than a vector register holds: wrong gradients, hangs, crashes
    (uxlfoundation/oneDNN issue 6035).
    """

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        kept = maps[:, :, :: self.stride[0], :: self.stride[1]]
        return F.conv2d(kept, self.weight, self.bias)


def _stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    shortcut = None
    if stride != 1:
        shortcut = nn.Sequential(_Shortcut(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
    return nn.Sequential(BasicBlock(inputs, outputs, stride, shortcut), BasicBlock(outputs, outputs))


def initialised(width: int, stem: Stem, num_classes: int, seed: int) -> Network:
    """A network with fresh weights on the CPU: He-normal convolutions, the classifier as torch initialises it."""
    with torch.device("meta"):
        network = Network(width, stem, num_classes)
    network.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=generator)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
        elif isinstance(module, nn.Linear):
            bound = module.in_features**-0.5
            nn.init.uniform_(module.weight, -bound, bound, generator=generator)
            nn.init.uniform_(module.bias, -bound, bound, generator=generator)
    return network


def from_state(state: Mapping[str, torch.Tensor], origin: str) -> tuple[Network, int, Stem]:
    """The network that a state dict is of, without its classifier, and its width and stem.

    Raises:
        WeightsError: not a ResNet-18 with torchvision's names.
    """
    first = state.get("conv1.weight")
    stems: dict[tuple[int, ...], Stem] = {(3, 3, 3): "cifar", (3, 7, 7): "imagenet"}
    stem = stems.get(tuple(first.shape[1:])) if first is not None else None
    if first is None or stem is None:
        found = "no tensor conv1.weight" if first is None else f"conv1.weight of shape {tuple(first.shape)}"
        raise WeightsError(
            f"The weights {origin!r} are not those of a torchvision ResNet-18: {found}. Tensors: "
            f"{', '.join(list(state)[:4]) or 'none'}."
        )
    width = len(first)
    with torch.device("meta"):
        network = Network(width, stem, num_classes=0)
    body = {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}
    fit_weights(network, body, origin, f"a ResNet-18 of width {width}")
    return network.eval(), width, stem
