"""The network of the Frechet Inception distance, as clean-fid runs it."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from dcprune.artifacts import EncoderInfo
from dcprune.errors import OptionError, WeightsError
from dcprune.interfaces import Download, EncoderChoice, EncoderContext, Untrained
from dcprune.weights import fit_weights, read_weights, sha256, weights_path

Mode = Literal["clean", "legacy_pytorch", "legacy_tensorflow"]
Layer = Literal["pool3", "logits"]
SIZE = 299
DIM = 2048
_LOGITS = 1008

# Addresses and (starts of) hashes.
TORCHSCRIPT = (
    "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt",
    "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4",
)
STATE_DICT = (
    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
    "6726825d",
)
_DEFAULT_WEIGHTS = {"clean": TORCHSCRIPT, "legacy_tensorflow": TORCHSCRIPT, "legacy_pytorch": STATE_DICT}
_RESIZE = {
    "clean": "PIL bicubic with antialiasing on float channels, clipped to [0, 255]",
    "legacy_pytorch": "bilinear, half-pixel centres, no antialiasing",
    "legacy_tensorflow": "bilinear of TensorFlow 1, corner-aligned grid, no antialiasing",
}


class InceptionV3Fid:
    """Inception-v3 with the TensorFlow weights of 2015-12-05: the 2048 features of its last average pooling, or logits.

    Source: Heusel et al. 2017 (arXiv 1706.08500); the modes are those of clean-fid (Parmar et al. 2022, arXiv
    2104.11222). It always computes in float32, because half precision changes the FID.

    Args:
        weights: a file: NVIDIA's TorchScript `inception-2015-12-05.pt`, or pytorch-fid's state dict
            (`pt_inception-2015-12-05-6726825d.pth`, or the same as .safetensors). None takes what clean-fid uses in
            this mode: the state dict for `legacy_pytorch`, else the TorchScript.
        mode: how images come to 299 x 299 pixels: `clean`, `legacy_pytorch` or `legacy_tensorflow`.
        layer: `pool3`, the 2048 features of the FID; or `logits`, the 1008 outputs of the classifier without its bias,
            as the Inception score of Salimans et al. 2016 (arXiv 1606.03498) takes them.

    Raises:
        OptionError: unknown mode or layer.
    """

    shorter_side = None  # a distance changes when the images were reduced before

    def __init__(self, *, weights: str | None = None, mode: Mode = "clean", layer: Layer = "pool3") -> None:
        for name, given, known in (("mode", mode, get_args(Mode)), ("layer", layer, get_args(Layer))):
            if given not in known:
                raise OptionError(f"Unknown {name} {given!r}. Known: {', '.join(known)}.")
        self.weights = weights
        self.mode: Mode = mode
        self.layer: Layer = layer
        self.compilable = False

    def downloads(self, cache_dir: Path) -> list[Download]:
        """The file that clean-fid uses in this mode, unless one is given."""
        if self.weights:
            return []
        url, sha = _DEFAULT_WEIGHTS[self.mode]
        return [Download(url, cache_dir / url.rpartition("/")[2], sha)]

    def load(self, context: EncoderContext) -> EncoderInfo:
        """Put the network onto the device, after downloading its weights when no file is given.

        Raises:
            WeightsError: no such file, a failed download, or tensors that do not fit.
        """
        path = weights_path(self.weights, self.downloads(context.cache_dir), context.progress)
        scripted = _is_torchscript(path)
        network, classifier = _torchscript_network(path, self.mode) if scripted else _state_dict_network(path)
        if self.layer == "logits":
            self._classifier = _checked_classifier(classifier, path).to(context.device)
        for parameter in network.parameters():  # TorchScript has no requires_grad_ for a whole module
            parameter.requires_grad_(False)
        self._network = network.to(context.device)
        self._scripted = scripted
        self.compilable = not scripted
        centre, scale = _normalisation(self.mode)
        return EncoderInfo(
            name="inceptionv3-fid",
            dim=DIM if self.layer == "pool3" else len(self._classifier),
            weights=path.name,
            weights_sha256=sha256(path),
            layer=self.layer,
            preprocessing={"size": SIZE, "resize": _RESIZE[self.mode], "mean": centre / 255, "std": scale / 255},
            settings={"mode": self.mode, "layer": self.layer},
            details={"network": "TorchScript" if scripted else "clean-fid"},
        )

    def untrained(self, context: EncoderContext) -> Untrained:
        """clean-fid's network and its classifier, their tensors drawn by PyTorch's defaults."""
        return Untrained({**build_network().state_dict(), "fc.weight": torch.randn(_LOGITS, DIM)})

    def preprocess(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 [B, C, H, W] with C in (1, 3) -> float32 [B, 3, 299, 299] in [0, 255]."""
        return _RESIZERS[self.mode](images.expand(-1, 3, -1, -1))

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """float32 [B, 3, 299, 299] in [0, 255] -> float32 [B, 2048], or logits [B, 1008]."""
        centre, scale = _normalisation(self.mode)
        with torch.autocast(pixels.device.type, enabled=False):
            if self._scripted and self.mode == "legacy_tensorflow":
                features: torch.Tensor = self._network(pixels.float(), return_features=True)
            else:
                features = self._network((pixels.float() - centre) / scale)
        features = features.reshape(len(pixels), DIM)
        return self.from_below(features) if self.layer == "logits" else features

    def encoder_below(self, choice: EncoderChoice) -> EncoderChoice | None:
        """The same network's `pool3` is below its `logits`."""
        if self.layer == "pool3":
            return None
        return replace(choice, settings={**choice.settings, "layer": "pool3"})

    def from_below(self, vectors: torch.Tensor) -> torch.Tensor:
        """Features float32 [B, 2048] -> logits float32 [B, 1008]."""
        with torch.autocast(vectors.device.type, enabled=False):
            return vectors.float() @ self._classifier.T


# --- resizing ---------------------------------------------------------------------------------------------------------


def _normalisation(mode: Mode) -> tuple[float, float]:
    """Centre and scale of the input. The TensorFlow graph divides by 128; pytorch-fid maps [0, 255] to [-1, 1]."""
    return (127.5, 127.5) if mode == "legacy_pytorch" else (128.0, 128.0)


def _resize_clean(images: torch.Tensor) -> torch.Tensor:
    from cleanfid.resize import build_resizer

    resize = build_resizer("clean")
    arrays = images.permute(0, 2, 3, 1).cpu().numpy()
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        resized = np.stack(list(threads.map(resize, arrays)))
    return torch.from_numpy(resized).permute(0, 3, 1, 2).to(images.device)


def _resize_pytorch(images: torch.Tensor) -> torch.Tensor:
    return F.interpolate(images.float(), size=(SIZE, SIZE), mode="bilinear", align_corners=False)


def _resize_tensorflow(images: torch.Tensor) -> torch.Tensor:
    """TensorFlow 1's `resize_bilinear`: output pixel i samples input position i * in / out, clamped at the border."""
    images = images.float()
    for axis in (2, 3):
        length = images.shape[axis]
        position = torch.arange(SIZE, device=images.device) * (length / SIZE)
        low = position.floor().long()
        high = (low + 1).clamp_max(length - 1)
        shape = [1, 1, 1, 1]
        shape[axis] = SIZE
        weight = (position - low).reshape(shape)
        images = torch.lerp(images.index_select(axis, low), images.index_select(axis, high), weight)
    return images


_RESIZERS: dict[Mode, Callable[[torch.Tensor], torch.Tensor]] = {
    "clean": _resize_clean,
    "legacy_pytorch": _resize_pytorch,
    "legacy_tensorflow": _resize_tensorflow,
}


# --- weights ----------------------------------------------------------------------------------------------------------


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())


def _torchscript_network(path: Path, mode: Mode) -> tuple[nn.Module, torch.Tensor | None]:
    """NVIDIA's archive: whole for `legacy_tensorflow`, which resizes and normalises inside, else its layers alone; and
    the weights of its classifier.
    """
    try:
        with warnings.catch_warnings():
            # torch deprecates TorchScript, but this is the form in which the reference network is published.
            warnings.simplefilter("ignore")
            base = torch.jit.load(str(path), map_location="cpu").eval()  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        raise WeightsError(f"{path} is not a TorchScript archive that torch can load: {error}.") from error
    if not hasattr(base, "layers"):
        raise WeightsError(f"{path} is TorchScript, but not the network of {TORCHSCRIPT[0]}: it has no `layers`.")
    network: nn.Module = base if mode == "legacy_tensorflow" else base.layers
    return network, base.state_dict().get("output.weight")


def build_network() -> nn.Module:
    """clean-fid's Inception-v3 without weights and without its classifier: normalised pixels -> [B, 2048].

    clean-fid's own constructor downloads the weights, so its blocks are put into torchvision's network here.
    """
    from cleanfid import inception_pytorch as blocks
    from torchvision.models import inception_v3

    network: nn.Module = inception_v3(weights=None, num_classes=1, aux_logits=False, init_weights=False)
    network.Mixed_5b = blocks.FIDInceptionA(192, pool_features=32)
    network.Mixed_5c = blocks.FIDInceptionA(256, pool_features=64)
    network.Mixed_5d = blocks.FIDInceptionA(288, pool_features=64)
    for name, channels in (("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)):
        setattr(network, name, blocks.FIDInceptionC(768, channels_7x7=channels))
    network.Mixed_7b = blocks.FIDInceptionE_1(1280)
    network.Mixed_7c = blocks.FIDInceptionE_2(2048)
    network.fc = nn.Identity()
    return network.eval()


def _state_dict_network(path: Path) -> tuple[nn.Module, torch.Tensor | None]:
    """pytorch-fid's state dict in clean-fid's network, and the weights of its classifier."""
    network = build_network()
    tensors = read_weights(path)[0]
    state = {name: tensor for name, tensor in tensors.items() if not name.startswith("fc.")}
    fit_weights(network, state, str(path), f"the FID Inception-v3 of {STATE_DICT[0]}")
    return network, tensors.get("fc.weight")


def _checked_classifier(weights: torch.Tensor | None, path: Path) -> torch.Tensor:
    """Weights of the classifier, float32 [classes, 2048].

    Raises:
        WeightsError: there are none, or they have another shape.
    """
    if weights is None or weights.ndim != 2 or weights.shape[1] != DIM:
        shape = "none" if weights is None else f"one of shape {tuple(weights.shape)}"
        raise WeightsError(f"The layer 'logits' needs a classifier [classes, {DIM}]; {path} has {shape}.")
    return weights.detach().float()
