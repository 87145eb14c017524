"""torchvision's Inception-v3 with random weights, and the preprocessing of instance selection."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.datasets import load_sample_image
from torchvision import transforms
from torchvision.models import Inception3, inception_v3

from dcprune.encoders.inceptionv3 import InceptionV3
from dcprune.errors import OptionError, WeightsError
from dcprune.interfaces import EncoderContext
from dcprune.testing import ShapesDataset, check_encoder

Context = Callable[..., EncoderContext]


@pytest.fixture(scope="module")
def network() -> Inception3:
    """As torchvision builds it for its published weights: with auxiliary classifiers, and pixels that it transforms."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = inception_v3(weights=None, transform_input=True, init_weights=False)
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, generator=generator)
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
                assert tensor is not None
                tensor.uniform_(0.7, 1.3, generator=generator)
    return network.eval()


@pytest.fixture(scope="module")
def weights(network: Inception3, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("inception") / "inception.pth"
    torch.save(network.state_dict(), path)
    return str(path)


def photo(height: int, width: int) -> Image.Image:
    return Image.fromarray(load_sample_image("china.jpg")[50 : 50 + height, 100 : 100 + width])


def batch(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]


def instance_selection(image: Image.Image, resolution: int) -> torch.Tensor:
    """Square crop, resized to the generator's resolution, ImageNet's statistics, then up to 299 pixels."""
    prepared = transforms.Compose(
        [
            transforms.CenterCrop(min(image.size)),
            transforms.Resize(resolution),
            transforms.ToTensor(),
            transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )(image)[None]
    return F.interpolate(prepared, (299, 299), mode="bilinear", align_corners=True)


@pytest.mark.parametrize(("size", "image_size", "resolution"), [((60, 81), None, 60), ((200, 240), 128, 128)])
@torch.inference_mode()
def test_features_are_torchvisions(
    size: tuple[int, int],
    image_size: int | None,
    resolution: int,
    network: Inception3,
    weights: str,
    context: Context,
) -> None:
    encoder = InceptionV3(weights=weights, image_size=image_size)
    info = encoder.load(context(ShapesDataset()))
    assert (info.dim, info.settings) == (2048, {"image_size": image_size})
    theirs = instance_selection(photo(*size), resolution)
    levels = (theirs * torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)) + torch.tensor([0.485, 0.456, 0.406]).view(
        3, 1, 1
    )
    assert (encoder.preprocess(batch(photo(*size))) - (2 * levels - 1)).abs().max() < 2 * 2.01 / 255
    features: list[torch.Tensor] = []
    handle = network.avgpool.register_forward_hook(lambda *args: features.append(args[2].flatten(1)))
    network(theirs)
    handle.remove()
    assert features[0].std() > 0.1
    torch.testing.assert_close(encoder.encode(2 * levels - 1), features[0], rtol=1e-4, atol=1e-4)


def test_large_images_are_reduced_first(weights: str) -> None:
    """A fine checkerboard becomes grey; without antialiasing it would become stripes."""
    rows, columns = np.mgrid[:900, :900]
    board = torch.from_numpy(((rows + columns) % 2 * 255).astype(np.uint8))[None, None]
    assert InceptionV3(weights=weights).preprocess(board).abs().max() < 0.1


def test_contract(weights: str) -> None:
    check_encoder(InceptionV3, weights=weights)
    assert InceptionV3().shorter_side == 299
    assert InceptionV3(image_size=64).shorter_side == 64


def test_downloads_and_errors(tmp_path: Path, context: Context, network: Inception3) -> None:
    (file,) = InceptionV3().downloads(tmp_path)
    assert (file.path.name, file.sha256) == ("inception_v3_google-0cc3c7bd.pth", "0cc3c7bd")
    assert InceptionV3(weights="x").downloads(tmp_path) == []
    with pytest.raises(OptionError, match="image_size=8"):
        InceptionV3(image_size=8)
    state = {name: tensor for name, tensor in network.state_dict().items() if not name.startswith("Mixed_7c")}
    torch.save(state, tmp_path / "part.pth")
    with pytest.raises(WeightsError, match=r"part\.pth' do not fit torchvision's Inception-v3: Mixed_7c.* is missing"):
        InceptionV3(weights=str(tmp_path / "part.pth")).load(context(ShapesDataset()))
