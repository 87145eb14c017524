"""CLIP image towers against open_clip itself, with random weights of small models that are made known to it."""

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import safetensors.torch
import torch
from PIL import Image
from sklearn.datasets import load_sample_image

from dcprune.encoders.clip import ClipRn50, OpenClip, preprocessing
from dcprune.errors import OptionError, UnknownName, WeightsError
from dcprune.interfaces import EncoderContext
from dcprune.testing import ShapesDataset, check_encoder

Context = Callable[..., EncoderContext]
TEXT = {"context_length": 4, "vocab_size": 50, "width": 16, "heads": 2, "layers": 1}
MODELS: dict[str, dict[str, Any]] = {
    "small-resnet": {"vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None}},
    "small-vit": {"vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8}, "quick_gelu": True},
    "small-coca": {
        "vision_cfg": {
            "image_size": 32,
            "layers": 1,
            "width": 64,
            "patch_size": 8,
            "attentional_pool": True,
            "output_tokens": True,
        },
        "text_cfg": {**TEXT, "embed_cls": True, "output_tokens": True},
        "multimodal_cfg": {**TEXT, "mlp_ratio": 2, "attn_pooler_heads": 2},
        "custom_text": True,
    },
}
for config in MODELS.values():
    config |= {"embed_dim": 24, "text_cfg": config.get("text_cfg", TEXT)}


@pytest.fixture(scope="module", autouse=True)
def _models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """open_clip knows `MODELS` for the time of these tests."""
    paths, known = list(open_clip.factory._MODEL_CONFIG_PATHS), dict(open_clip.factory._MODEL_CONFIGS)
    folder = tmp_path_factory.mktemp("configs")
    for name, config in MODELS.items():
        (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
    yield
    open_clip.factory._MODEL_CONFIG_PATHS[:] = paths
    open_clip.factory._MODEL_CONFIGS = known


def randomised(name: str, **options: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = open_clip.create_model(name, **options)
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
                assert tensor is not None
                tensor.uniform_(0.5, 1.5, generator=generator)
    return model.eval()


def saved(model: torch.nn.Module, path: Path) -> str:
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(state, path)
    else:
        # As open_clip's own trainer leaves it.
        torch.save({"epoch": 1, "state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, path)
    return str(path)


def photo() -> Image.Image:
    return Image.fromarray(load_sample_image("china.jpg")[50:350, 100:380])


def batch(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("name", MODELS)
@torch.inference_mode()
def test_embeddings_are_open_clips(name: str, suffix: str, context: Context, tmp_path: Path) -> None:
    model = randomised(name)
    encoder = OpenClip(name, weights=saved(model, tmp_path / f"weights{suffix}"))
    info = encoder.load(context(ShapesDataset()))
    cfg = open_clip.transform.PreprocessCfg(**model.visual.preprocess_cfg)
    theirs = open_clip.transform.image_transform_v2(cfg, is_train=False)(photo())[None]
    assert (encoder.preprocess(batch(photo())) - theirs).abs().max() < 2.01 / 255 / 0.26
    expected = model.encode_image(theirs, normalize=False)
    assert (info.name, info.dim, expected.shape) == (f"open_clip:{name}", 24, (1, 24))
    torch.testing.assert_close(encoder.encode(theirs), expected, rtol=1e-4, atol=1e-4)
    assert info.details["quick_gelu"] is (name == "small-vit")
    assert encoder.shorter_side == info.preprocessing["crop"] == MODELS[name]["vision_cfg"]["image_size"]


@torch.inference_mode()
def test_weights_that_were_trained_with_quick_gelu(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name of the weights says so, whatever the model's configuration is."""
    tags = {"openai": {"quick_gelu": True, "hf_hub": "org/name/", "interpolation": "bilinear", "resize_mode": "squash"}}
    plain = {name: value for name, value in MODELS["small-vit"].items() if name != "quick_gelu"}
    (tmp_path / "plain-vit.json").write_text(json.dumps(plain))
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIG_PATHS", [*open_clip.factory._MODEL_CONFIG_PATHS])
    open_clip.add_model_config(tmp_path / "plain-vit.json")
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "plain-vit", tags)
    model = randomised("plain-vit", force_quick_gelu=True)
    path = saved(model, tmp_path / "weights.safetensors")
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 3
    infos, found = [], []
    for argument in ("plain-vit/openai", "plain-vit"):
        encoder = OpenClip(argument, weights=path)
        infos.append(encoder.load(context(ShapesDataset())))
        found.append(encoder.encode(pixels))
    torch.testing.assert_close(found[0], model.encode_image(pixels), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found[0], found[1], rtol=1e-3, atol=1e-3)
    assert [info.details["quick_gelu"] for info in infos] == [True, False]
    assert infos[0].preprocessing["interpolation"] == "bilinear, antialiased, both sides"
    assert infos[1].preprocessing["interpolation"] == "bicubic, antialiased, shorter side"


@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("shape", [(60, 100), (101, 37), (224, 224)])
def test_every_way_to_fit(resize_mode: str, interpolation: str, shape: tuple[int, int]) -> None:
    cfg = open_clip.transform.PreprocessCfg(64, resize_mode=resize_mode, interpolation=interpolation, fill_color=9)
    image = photo().resize(shape[::-1], Image.Resampling.BICUBIC)
    theirs = open_clip.transform.image_transform_v2(cfg, is_train=False)(image)
    ours = preprocessing(copy.deepcopy(vars(cfg)), torch.device("cpu"))(batch(image))[0]
    assert (ours - theirs).abs().max() < 2.01 / 255 / 0.26


@pytest.mark.parametrize("name", ["small-resnet", "small-vit"])
def test_contract(name: str, tmp_path: Path) -> None:
    check_encoder(OpenClip, argument=name, weights=saved(randomised(name), tmp_path / "weights.safetensors"))


def test_downloads_are_those_of_open_clip(tmp_path: Path) -> None:
    def url(encoder: OpenClip) -> str:
        (file,) = encoder.downloads(tmp_path)
        return file.url

    assert url(ClipRn50()) == "hf://timm/resnet50_clip.openai/open_clip_model.safetensors"
    laion = OpenClip("ViT-B-32/laion2b_s34b_b79k")
    assert url(laion) == "hf://laion/CLIP-ViT-B-32-laion2B-s34B-b79K/open_clip_model.safetensors"
    assert url(OpenClip("ViT-B/32/openai")) == "hf://timm/vit_base_patch32_clip_224.openai/open_clip_model.safetensors"
    assert url(OpenClip("ViTamin-S/datacomp1b")) == "hf://jienengchen/ViTamin-S/pytorch_model.bin"
    assert OpenClip("RN50", weights="x").downloads(tmp_path) == []


def test_unknown_names() -> None:
    with pytest.raises(UnknownName, match=r"Unknown open_clip model 'ViT-B-33'\. Did you mean 'ViT-B-32'"):
        OpenClip("ViT-B-33/openai")
    with pytest.raises(
        UnknownName, match=r"open_clip's RN50: 'open_ai'\. Did you mean 'openai'\? Known: cc12m, openai"
    ):
        OpenClip("RN50/open_ai")
    with pytest.raises(OptionError, match=r"says no weights: write open_clip:RN50/PRETRAINED \(known: openai"):
        OpenClip("RN50")


def test_files_that_do_not_fit(context: Context, tmp_path: Path) -> None:
    path = saved(randomised("small-vit"), tmp_path / "weights.safetensors")
    with pytest.raises(WeightsError, match=r"weights\.safetensors' do not load as open_clip's small-resnet: .*visual"):
        OpenClip("small-resnet", weights=path).load(context(ShapesDataset()))
    (tmp_path / "text.pt").write_text("no weights")
    with pytest.raises(WeightsError, match=r"text\.pt' do not load"):
        OpenClip("small-vit", weights=str(tmp_path / "text.pt")).load(context(ShapesDataset()))
    with pytest.raises(WeightsError, match="does not exist"):
        OpenClip("small-vit", weights=str(tmp_path / "absent.pt")).load(context(ShapesDataset()))
