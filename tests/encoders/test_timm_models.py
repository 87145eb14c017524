"""timm models against timm itself, with random weights: network, preprocessing, files, names."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image
from sklearn.datasets import load_sample_image

from dcprune.downloads import locate
from dcprune.encoders.dinov2 import DinoV2, resampled
from dcprune.encoders.timm_models import Timm, data_config
from dcprune.errors import OptionError, UnknownName, WeightsError
from dcprune.interfaces import EncoderContext
from dcprune.testing import ShapesDataset, check_encoder

Context = Callable[..., EncoderContext]


def randomised(name: str, **options: Any) -> torch.nn.Module:
    """A model of timm with random weights and statistics."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: torch.nn.Module = timm.create_model(name, **options)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
                assert tensor is not None
                tensor.uniform_(0.5, 1.5, generator=generator)
    return model.eval()


def saved(model: torch.nn.Module, path: Path) -> Path:
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save(state, path)
    return path


def photo() -> Image.Image:
    return Image.fromarray(load_sample_image("china.jpg")[50:350, 100:380])


def batch(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]


@pytest.mark.parametrize("name", ["resnet10t.c3_in1k", "mobilenetv3_small_050", "vit_tiny_patch16_224"])
@torch.inference_mode()
def test_features_are_timms(name: str, context: Context, tmp_path: Path) -> None:
    model = randomised(name)
    path = saved(model, tmp_path / "model.safetensors")
    encoder = Timm(name, weights=str(path))
    info = encoder.load(context(ShapesDataset()))
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    theirs = transform(photo())[None]
    ours = encoder.preprocess(batch(photo()))
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() < 2.01 / 255 / 0.224
    expected = model.forward_head(model.forward_features(theirs), pre_logits=True)  # type: ignore[operator]
    assert info.dim == expected.shape[1]
    torch.testing.assert_close(encoder.encode(theirs), expected, rtol=1e-4, atol=1e-4)
    assert encoder.shorter_side == info.preprocessing["resize"]


@pytest.mark.parametrize("num_classes", [0, 7, 1000])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@torch.inference_mode()
def test_files_with_any_classifier(num_classes: int, suffix: str, context: Context, tmp_path: Path) -> None:
    model = randomised("resnet10t", num_classes=num_classes)
    encoder = Timm("resnet10t", weights=str(saved(model, tmp_path / f"weights{suffix}")), image_size=64)
    encoder.load(context(ShapesDataset()))
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    expected = model.forward_head(model.forward_features(pixels), pre_logits=True)  # type: ignore[operator]
    torch.testing.assert_close(encoder.encode(pixels), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["resnet10t", "vit_tiny_patch16_224"])
def test_contract(name: str, tmp_path: Path) -> None:
    path = saved(randomised(name), tmp_path / "model.safetensors")
    check_encoder(Timm, argument=name, weights=str(path), settings={"image_size": "64"})


@torch.inference_mode()
@pytest.mark.parametrize(
    ("crop_mode", "crop_pct", "fit"),
    [("squash", 0.9, "squash"), ("center", 0.875, "shorter"), ("border", 0.9, "longer")],
)
@pytest.mark.parametrize("shape", [(60, 100), (101, 37), (224, 224)])
def test_every_way_to_fit(crop_mode: str, crop_pct: float, fit: str, shape: tuple[int, int]) -> None:
    with torch.device("meta"):
        model = timm.create_model("resnet10t")
    model.pretrained_cfg |= {"input_size": (3, 80, 80), "crop_mode": crop_mode, "crop_pct": crop_pct}
    preprocessing = data_config(model, "resnet10t", None, torch.device("cpu"))
    config = timm.data.resolve_model_data_config(model)
    assert preprocessing.fit == fit
    image = photo().resize(shape[::-1], Image.Resampling.BICUBIC)
    theirs = timm.data.create_transform(**config, is_training=False)(image)
    assert (preprocessing(batch(image))[0] - theirs).abs().max() < 2.01 / 255 / min(config["std"])


def test_weights_come_from_the_hub(context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    encoder = Timm("resnet10t", image_size=64)
    (file,) = encoder.downloads(tmp_path / "cache")
    assert file.url == "hf://timm/resnet10t.c3_in1k/model.safetensors"
    assert Timm("gcvit_tiny.in1k").downloads(tmp_path)[0].url.startswith("https://github.com/")
    assert Timm("resnet10t", weights="x").downloads(tmp_path) == []
    with pytest.raises(WeightsError, match=r"resnet10t\.c3_in1k/resolve/main/model\.safetensors"):
        encoder.load(context(ShapesDataset(num_classes=0)))
    file.path.parent.mkdir(parents=True)
    saved(randomised("resnet10t"), file.path)
    assert locate(file) == file.path
    assert encoder.load(context(ShapesDataset())).weights == "timm c3_in1k"


def test_unknown_names() -> None:
    with pytest.raises(UnknownName, match=r"Unknown timm model 'resnet10'\. Did you mean 'resnet10t'\? Closest of"):
        Timm("resnet10")
    with pytest.raises(UnknownName, match=r"Unknown tag of timm's resnet10t: 'c3_in2k'\. Did you mean 'c3_in1k'"):
        Timm("resnet10t.c3_in2k")
    with pytest.raises(OptionError, match="publishes no weights of efficientnet_b6: give a file with --weights PATH"):
        Timm("efficientnet_b6")
    with pytest.raises(OptionError, match="image_size=0"):
        Timm("resnet10t", image_size=0)


def test_files_that_do_not_fit(context: Context, tmp_path: Path) -> None:
    for content, message in (
        ({"fc.weight": torch.zeros(2, 2)}, r"weights\.pt' do not load as timm's resnet10t: .*conv1"),
        ({}, "are not a state dict"),
    ):
        torch.save(content, tmp_path / "weights.pt")
        with pytest.raises(WeightsError, match=message):
            Timm("resnet10t", weights=str(tmp_path / "weights.pt")).load(context(ShapesDataset()))
    with pytest.raises(WeightsError, match="does not exist"):
        Timm("resnet10t", weights=str(tmp_path / "absent.pt")).load(context(ShapesDataset()))


# --- dinov2 -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of the small model in timm's own size of 518 pixels, with position embeddings that matter."""
    model = randomised("vit_small_patch14_dinov2")
    for block in model.blocks:  # type: ignore[union-attr]
        torch.nn.init.constant_(block.ls1.gamma, 0.5)
        torch.nn.init.constant_(block.ls2.gamma, 0.5)
    torch.nn.init.normal_(model.pos_embed, generator=torch.Generator().manual_seed(1))  # type: ignore[arg-type]
    return saved(model, tmp_path_factory.mktemp("dinov2") / "model.safetensors")


@torch.inference_mode()
def test_dinov2_is_timms_class_token(dinov2: Path, context: Context) -> None:
    encoder = DinoV2(weights=str(dinov2), size="s", image_size=56)
    info = encoder.load(context(ShapesDataset()))
    assert (info.dim, info.settings) == (384, {"size": "s", "image_size": 56})
    state = safetensors.torch.load_file(dinov2)
    state["pos_embed"] = resampled(state["pos_embed"], 4)
    model = timm.create_model("vit_small_patch14_dinov2", img_size=56)
    model.load_state_dict(state)
    pixels = torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    expected = model.eval().forward_features(pixels)[:, 0]
    assert expected.std() > 0.1
    torch.testing.assert_close(encoder.encode(pixels), expected, rtol=1e-4, atol=1e-4)


def test_dinov2_preprocessing_is_dgm_evals(dinov2: Path, context: Context) -> None:
    """Both sides to the size by PIL's bicubic filter, then ImageNet's mean and standard deviation."""
    encoder = DinoV2(weights=str(dinov2), size="s", image_size=224)
    encoder.load(context(ShapesDataset()))
    theirs = np.array(photo().resize((224, 224), Image.Resampling.BICUBIC)) / 255
    theirs = (theirs - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    ours = encoder.preprocess(batch(photo()))[0].permute(1, 2, 0).numpy()
    assert np.abs(ours - theirs).max() < 2.01 / 255 / 0.224


def test_position_embeddings_are_resampled_smoothly() -> None:
    """A plane stays a plane, up to the offset of a tenth of a patch and the borders; the class token is left alone."""
    rows, columns = torch.meshgrid(torch.arange(37.0), torch.arange(37.0), indexing="ij")
    plane = torch.stack([rows, columns, torch.ones(37, 37)], -1).reshape(1, -1, 3)
    found = resampled(torch.cat([torch.full((1, 1, 3), 7.0), plane], 1), 16)
    assert found.shape == (1, 257, 3)
    assert found[0, 0].tolist() == [7, 7, 7]
    maps = found[0, 1:].reshape(16, 16, 3)
    torch.testing.assert_close(maps[..., 2], torch.ones(16, 16))
    positions = (torch.arange(16.0) + 0.5) * 37 / 16.1 - 0.5
    torch.testing.assert_close(maps[1:-1, 5, 0], positions[1:-1], rtol=0, atol=0.15)
    torch.testing.assert_close(maps[5, 1:-1, 1], positions[1:-1], rtol=0, atol=0.15)
    assert resampled(found, 16) is found


def test_dinov2_contract_and_settings(dinov2: Path, tmp_path: Path) -> None:
    check_encoder(DinoV2, weights=str(dinov2), settings={"size": "s", "image_size": "28"})
    assert DinoV2().downloads(tmp_path)[0].url == "hf://timm/vit_large_patch14_dinov2.lvd142m/model.safetensors"
    for settings, message in (({"size": "g"}, "Unknown size 'g'"), ({"image_size": 225}, "multiple of 14")):
        with pytest.raises(OptionError, match=message):
            DinoV2(**settings)
