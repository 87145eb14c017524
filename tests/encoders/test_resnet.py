"""The network against torchvision's, weights from files, preprocessing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
from PIL import Image

from dcprune.datasets.arrays import ArraySource
from dcprune.encoders.folding import fold_batch_norm
from dcprune.encoders.preprocessing import square
from dcprune.encoders.residual import from_state, initialised
from dcprune.encoders.resnet import ResNet18, automatic_size
from dcprune.errors import OptionError, WeightsError
from dcprune.interfaces import EncoderContext
from dcprune.testing import ShapesDataset, check_encoder

Context = Callable[..., EncoderContext]


def randomised(network: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """With normalisation statistics that are not the identity, as after training."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
                assert tensor is not None
                tensor.uniform_(0.5, 1.5, generator=generator)
    return network.eval()


@pytest.fixture(scope="module")
def imagenet_like() -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return randomised(torchvision.models.resnet18(weights=None))


@torch.inference_mode()
def test_imagenet_network_is_torchvisions(imagenet_like: torch.nn.Module) -> None:
    """The same tensors give the pooled features that torchvision's network feeds to its classifier."""
    network, width, stem = from_state(imagenet_like.state_dict(), "test")
    assert (width, stem) == (64, "imagenet")
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    features: list[torch.Tensor] = []
    assert isinstance(imagenet_like.fc, torch.nn.Module)
    imagenet_like.fc.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
    imagenet_like(pixels)
    assert torch.allclose(network.features(pixels), features[0], rtol=1e-5, atol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
def test_folded_network_is_the_same_function(stem: Any) -> None:
    network = randomised(initialised(8, stem, 5, seed=3))
    pixels = torch.randn(3, 3, 40, 40, generator=torch.Generator().manual_seed(1))
    before = network.features(pixels)  # type: ignore[operator]
    assert len(fold_batch_norm(network, network.features, 40)) == 20  # type: ignore[arg-type]
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in network.modules())
    assert torch.allclose(network.features(pixels), before, rtol=1e-4, atol=1e-4)  # type: ignore[operator]


@pytest.mark.parametrize("width", [3, 4, 8, 16])
def test_gradients_of_narrow_networks(width: int) -> None:
    """Against float64: torch 2.15 computes wrong ones for strided 1x1 convolutions in channels_last (oneDNN #6035)."""
    pixels = torch.randn(4, 3, 28, 28, generator=torch.Generator().manual_seed(1))
    gradients = []
    for dtype, memory_format in ((torch.float64, torch.contiguous_format), (torch.float32, torch.channels_last)):
        network = initialised(width, "cifar", 5, seed=0).to(dtype).eval()
        network.to(memory_format=memory_format)
        network(pixels.to(dtype).contiguous(memory_format=memory_format)).square().mean().backward()
        found = {name: parameter.grad for name, parameter in network.named_parameters()}
        gradients.append({name: each.double() for name, each in found.items() if each is not None})
    for name, expected in gradients[0].items():
        scale = float(expected.abs().max())
        assert torch.allclose(gradients[1][name], expected, rtol=1e-3, atol=1e-3 * scale), name


def test_cifar_stem_keeps_the_resolution() -> None:
    network = initialised(4, "cifar", 2, seed=0).eval()
    maps: list[torch.Tensor] = []
    network.layer1.register_forward_pre_hook(lambda _, inputs: maps.append(inputs[0]))
    assert network(torch.zeros(1, 3, 32, 32)).shape == (1, 2)
    assert maps[0].shape == (1, 4, 32, 32)


def test_initialisation_depends_on_its_seed_alone() -> None:
    state = torch.random.get_rng_state()
    one, same, other = (initialised(4, "cifar", 3, seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["conv1.weight"], other["conv1.weight"])
    assert not torch.equal(one["fc.weight"], other["fc.weight"])


@torch.inference_mode()
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("height", "width"), [(300, 280), (224, 224), (64, 100)])
def test_imagenet_preprocessing_is_torchvisions(
    tmp_path: Path, imagenet_like: torch.nn.Module, context: Context, channels: int, height: int, width: int
) -> None:
    torch.save(imagenet_like.state_dict(), tmp_path / "r.pth")
    encoder = ResNet18(weights=str(tmp_path / "r.pth"))
    info = encoder.load(context(ShapesDataset()))
    assert (info.preprocessing["resize"], info.preprocessing["crop"], info.dim) == (256, 224, 512)
    image = np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)
    theirs = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.transforms()(
        Image.fromarray(image.squeeze()).convert("RGB")
    )
    ours = encoder.preprocess(torch.from_numpy(image).permute(2, 0, 1)[None])[0]
    levels = (ours - theirs).abs() * 255 * torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    assert levels.max() < 2.01
    assert encoder.shorter_side == 256


def test_banner_is_resized_without_its_ends() -> None:
    banner = torch.zeros(1, 1, 2, 60_000, dtype=torch.uint8)
    banner[..., 29_999:30_001] = 255
    assert square(banner, 32, 32).float().mean() > 200


@pytest.mark.parametrize(("short", "size"), [(8, 16), (28, 28), (64, 64), (100, 100), (300, 224)])
def test_automatic_size(short: int, size: int) -> None:
    images = np.zeros((3, short, short + 10, 1), dtype=np.uint8)
    assert automatic_size(ArraySource("x", "train", images, None, ())) == size


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
@pytest.mark.parametrize("classifier", [True, False])
def test_weights_file(tmp_path: Path, context: Context, suffix: str, classifier: bool) -> None:
    """Any width; the classifier may be there or not; the same embeddings from every kind of file."""
    state = randomised(initialised(6, "cifar", 4 if classifier else 0, seed=5)).state_dict()
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save(state, path)
    dataset = ShapesDataset(size=20)
    encoder = ResNet18(weights=str(path))
    info = encoder.load(context(dataset))
    assert (info.dim, info.weights, info.settings) == (48, str(path), {"width": 6, "image_size": 20})
    assert info.weights_sha256 is not None
    check_encoder(ResNet18, weights=str(path), dataset=dataset)
    images = torch.from_numpy(np.stack([dataset.image(row) for row in range(4)])).permute(0, 3, 1, 2)
    with torch.inference_mode():
        expected = from_state(state, "test")[0].features(encoder.preprocess(images))
        assert torch.allclose(encoder.encode(encoder.preprocess(images)), expected, rtol=1e-4, atol=1e-4)


def save(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


class Payload:
    """Anything but a tensor, which only unpickling arbitrary objects would restore."""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"weight": torch.zeros(3)}, "no tensor conv1.weight. Tensors: weight"),
        ({"conv1.weight": torch.zeros(8, 1, 3, 3)}, r"conv1.weight of shape \(8, 1, 3, 3\)"),
        ([1, 2], "are not a state dict"),
        ({"epoch": 3}, "are not a state dict"),
        (Payload(), "Cannot read the weights"),
    ],
)
def test_files_that_are_no_resnet(tmp_path: Path, context: Context, content: object, message: str) -> None:
    path = save(tmp_path / "weights.pt", content)
    with pytest.raises(WeightsError, match=message):
        ResNet18(weights=str(path)).load(context(ShapesDataset()))


def test_state_that_does_not_fit_names_the_tensors(tmp_path: Path, context: Context) -> None:
    state = initialised(8, "cifar", 0, seed=0).state_dict()
    del state["layer2.0.bn1.running_mean"]
    state["layer4.1.conv2.weight"] = torch.zeros(8, 64, 3, 3)
    state["layer5.weight"] = torch.zeros(1)
    path = save(tmp_path / "weights.pt", state)
    with pytest.raises(WeightsError) as caught:
        ResNet18(weights=str(path)).load(context(ShapesDataset()))
    message = str(caught.value)
    assert "layer2.0.bn1.running_mean is missing" in message
    assert "layer4.1.conv2.weight is (8, 64, 3, 3), not (64, 64, 3, 3)" in message
    assert "layer5.weight is unknown" in message


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_damaged_and_missing_files(tmp_path: Path, context: Context, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    with pytest.raises(WeightsError, match="does not exist"):
        ResNet18(weights=str(path)).load(context(ShapesDataset()))
    path.write_bytes(b"\x80\x02 damaged")
    with pytest.raises(WeightsError, match="Cannot read the weights"):
        ResNet18(weights=str(path)).load(context(ShapesDataset()))


def test_imagenet_weights_from_torch_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, imagenet_like: torch.nn.Module, context: Context
) -> None:
    """A file that was put there by hand is used; without it, the error says what to put where."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    checkpoints = tmp_path / "torch" / "hub" / "checkpoints"

    def offline(*args: object, **kwargs: object) -> None:
        raise OSError("the network is unreachable")

    monkeypatch.setattr("urllib.request.urlopen", offline)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with pytest.raises(WeightsError) as caught:
        ResNet18(weights="imagenet").load(context(ShapesDataset(num_classes=0)))
    for part in ("resnet18-f37072fd.pth", "download.pytorch.org", str(checkpoints), "network is unreachable"):
        assert part in str(caught.value)
    checkpoints.mkdir(parents=True, exist_ok=True)
    torch.save(imagenet_like.state_dict(), checkpoints / "resnet18-f37072fd.pth")
    info = ResNet18(weights="imagenet").load(context(ShapesDataset(num_classes=0)))
    assert (info.weights, info.dim, info.preprocessing["crop"]) == ("imagenet", 512, 224)


@pytest.mark.parametrize(
    "settings",
    [
        {"width": 0},
        {"image_size": 8},
        {"epochs": 0},
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"weight_decay": -1.0},
        {"batch_size": 0},
        {"label_smoothing": 1.0},
        {"held_out": 1.0},
        {"held_out": -0.1},
    ],
)
def test_settings_out_of_range(settings: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=next(iter(settings))):
        ResNet18(**settings)


def test_imagenet_weights_have_one_width(context: Context) -> None:
    with pytest.raises(OptionError, match="width 64, not 16"):
        ResNet18(weights="imagenet", width=16).load(context(ShapesDataset()))
