"""The FID network against clean-fid's own classes, with random weights: nothing here needs the published ones."""

import hashlib
import urllib.error
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cleanfid import inception_pytorch
from cleanfid.inception_torchscript import InceptionV3W
from cleanfid.resize import build_resizer
from safetensors.torch import save_file
from sklearn.datasets import load_sample_image

from dcprune.encoders.inception_fid import InceptionV3Fid, build_network
from dcprune.errors import OptionError, WeightsError
from dcprune.interfaces import DatasetRequest, EncoderContext
from dcprune.plugins import registry
from dcprune.progress import SILENT
from dcprune.testing import check_encoder

CPU = torch.device("cpu")
MODES = ("clean", "legacy_pytorch", "legacy_tensorflow")


@pytest.fixture(scope="module", autouse=True)
def _one_thread(one_thread: None) -> None:
    """Networks this small only get slower with more."""


@pytest.fixture
def context(tmp_path: Path) -> EncoderContext:
    dataset = registry().create("dataset", "fashion-mini", {}, request=DatasetRequest("fashion-mini"))
    return EncoderContext(dataset, "0" * 64, CPU, torch.bfloat16, 0, tmp_path / "cache", SILENT)


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    """Random weights under which activations neither vanish nor explode, with the classifier that files carry."""
    generator = torch.Generator().manual_seed(0)
    state = build_network().state_dict()
    for name, tensor in state.items():
        if name.endswith("conv.weight"):
            deviation = (2 / tensor[0].numel()) ** 0.5
            state[name] = torch.randn(tensor.shape, generator=generator) * deviation
    return {**state, "fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}


@pytest.fixture(scope="module")
def weights(state: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(state, path)
    return path


class Detector(torch.nn.Module):
    """A small network with the outer form of NVIDIA's TorchScript: `layers`, and a forward that resizes inside."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(3, 2048, 13, stride=13), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1)
        )

    def forward(self, img: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        size = [img.shape[0], img.shape[1], 299, 299]
        theta = torch.eye(2, 3)
        theta[0, 2] += 1.0 / img.shape[3] - 1.0 / 299
        theta[1, 2] += 1.0 / img.shape[2] - 1.0 / 299
        grid = F.affine_grid(theta.unsqueeze(0).repeat(size[0], 1, 1), size, align_corners=False)
        x = F.grid_sample(img, grid, mode="bilinear", padding_mode="border", align_corners=False)
        features = self.layers((x - 128) / 128).reshape(-1, 2048)
        return features if return_features else torch.softmax(features, 1)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file name is the one that clean-fid's wrapper insists on."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("archive") / "inception-2015-12-05.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(Detector()).save(str(path))  # type: ignore[no-untyped-call]
    return path


def photos(height: int, width: int) -> torch.Tensor:
    """Real photos, uint8 [3, 3, height, width]."""
    crops = [(load_sample_image("china.jpg"), 100), (load_sample_image("flower.jpg"), 20)]
    parts = [image[top : top + height, 50 : 50 + width] for image, top in crops]
    parts.append(crops[1][0][80 : 80 + height, 200 : 200 + width])
    return torch.from_numpy(np.stack(parts)).permute(0, 3, 1, 2).contiguous()


def features(encoder: InceptionV3Fid, images: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return encoder.encode(encoder.preprocess(images))


def clean_fid_resized(mode: str, images: torch.Tensor) -> torch.Tensor:
    with warnings.catch_warnings():  # clean-fid switches all warnings off for the rest of the process
        resize: Callable[[Any], Any] = build_resizer(mode)
        resized = [np.asarray(resize(image.permute(1, 2, 0).numpy()), dtype=np.float32) for image in images]
    return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2)


def tensorflow_1_bilinear(image: np.ndarray[Any, Any], size: int) -> np.ndarray[Any, Any]:
    """[H, W, C], by the definition: output i reads input i * in / out."""
    height, width = image.shape[:2]
    out = np.empty((size, size, image.shape[2]))
    for i in range(size):
        y = i * height / size
        top, bottom = image[int(y)].astype(float), image[min(int(y) + 1, height - 1)].astype(float)
        row = top + (bottom - top) * (y - int(y))
        for j in range(size):
            x = j * width / size
            left, right = row[int(x)], row[min(int(x) + 1, width - 1)]
            out[i, j] = left + (right - left) * (x - int(x))
    return out


@pytest.mark.parametrize("mode", ["clean", "legacy_pytorch"])
@pytest.mark.parametrize("size", [(28, 28), (310, 330)])
def test_resizing_is_clean_fids(mode: Any, size: tuple[int, int]) -> None:
    images = photos(*size)
    resized = InceptionV3Fid(mode=mode).preprocess(images)
    assert resized.dtype == torch.float32
    torch.testing.assert_close(resized, clean_fid_resized(mode, images), rtol=0, atol=1e-3)


@pytest.mark.parametrize("size", [(28, 31), (320, 300)])
def test_legacy_tensorflow_resizing_is_that_of_tensorflow_1(size: tuple[int, int]) -> None:
    images = photos(*size)[:1]
    resized = InceptionV3Fid(mode="legacy_tensorflow").preprocess(images)
    expected = torch.from_numpy(tensorflow_1_bilinear(images[0].permute(1, 2, 0).numpy(), 299))
    torch.testing.assert_close(resized[0].double(), expected.permute(2, 0, 1), rtol=0, atol=2e-2)
    assert (resized[0].double() - expected.permute(2, 0, 1)).abs().mean() < 1e-3


@pytest.mark.parametrize("mode", MODES)
def test_a_state_dict_gives_clean_fids_features(
    mode: Any, state: dict[str, torch.Tensor], weights: Path, context: EncoderContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inception_pytorch, "load_state_dict_from_url", lambda *_, **__: state)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = inception_pytorch.InceptionV3([3], resize_input=False, normalize_input=False).eval()
    encoder = InceptionV3Fid(weights=str(weights), mode=mode)
    info = encoder.load(context)
    images = photos(32, 32)
    resized = encoder.preprocess(images) if mode == "legacy_tensorflow" else clean_fid_resized(mode, images)
    normalised = resized / 127.5 - 1 if mode == "legacy_pytorch" else (resized - 128) / 128
    with torch.inference_mode():
        expected = theirs(normalised)[0].flatten(1)
    assert expected.std() > 1e-2
    torch.testing.assert_close(features(encoder, images), expected, rtol=1e-4, atol=1e-4)
    assert (info.dim, info.settings) == (2048, {"mode": mode, "layer": "pool3"})
    assert info.weights_sha256 == hashlib.sha256(weights.read_bytes()).hexdigest()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [(28, 28), (310, 330)])
def test_a_torchscript_archive_gives_clean_fids_features(
    mode: Any, size: tuple[int, int], archive: Path, context: EncoderContext
) -> None:
    encoder = InceptionV3Fid(weights=str(archive), mode=mode)
    encoder.load(context)
    images = photos(*size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = InceptionV3W(str(archive.parent), download=False, resize_inside=mode == "legacy_tensorflow")
    resized = images.float() if mode == "legacy_tensorflow" else clean_fid_resized(mode, images)
    with torch.inference_mode():
        # clean-fid runs this network in two modes only; in the third, pytorch-fid's normalisation goes with it.
        expected = theirs.layers(resized / 127.5 - 1).flatten(1) if mode == "legacy_pytorch" else theirs(resized)
    torch.testing.assert_close(features(encoder, images), expected, rtol=1e-4, atol=1e-4)


def test_features_do_not_depend_on_the_batch_and_grey_is_rgb(weights: Path, context: EncoderContext) -> None:
    encoder = InceptionV3Fid(weights=str(weights))
    encoder.load(context)
    grey = photos(28, 28)[:, :1]
    together = features(encoder, grey)
    alone = torch.cat([features(encoder, image[None].expand(-1, 3, -1, -1)) for image in grey])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(features(encoder, grey), together, rtol=0, atol=0)


@pytest.mark.parametrize("mode", MODES)
def test_contract(mode: str, archive: Path) -> None:
    check_encoder(InceptionV3Fid, weights=str(archive), settings={"mode": mode})


def test_safetensors_hold_the_same_weights(
    state: dict[str, torch.Tensor], weights: Path, context: EncoderContext, tmp_path: Path
) -> None:
    save_file(state, tmp_path / "inception.safetensors")
    images = photos(32, 32)[:1]
    found = []
    for path in (weights, tmp_path / "inception.safetensors"):
        encoder = InceptionV3Fid(weights=str(path))
        encoder.load(context)
        found.append(features(encoder, images))
    assert torch.equal(*found)


@pytest.mark.parametrize(
    ("mode", "name"), [("clean", "inception-2015-12-05.pt"), ("legacy_pytorch", "pt_inception-2015-12-05-6726825d.pth")]
)
def test_a_failed_download_says_what_to_fetch_and_where_to_put_it(
    mode: Any, name: str, context: EncoderContext, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("urllib.request.urlopen", refuse)
    with pytest.raises(WeightsError, match=f"no route to host.*Fetch https://.*/{name} .*{tmp_path}/cache/{name}"):
        InceptionV3Fid(mode=mode).load(context)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(WeightsError, match="HF_HUB_OFFLINE is set"):
        InceptionV3Fid(mode=mode).load(context)


def test_a_file_in_the_cache_or_in_torch_hub_is_used(
    archive: Path, context: EncoderContext, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for folder in (tmp_path / "torch" / "hub" / "checkpoints", context.cache_dir):
        folder.mkdir(parents=True)
        (folder / archive.name).write_bytes(archive.read_bytes())
        assert InceptionV3Fid().load(context).weights_sha256 == hashlib.sha256(archive.read_bytes()).hexdigest()
        (folder / archive.name).unlink()


def test_weights_that_do_not_fit_are_refused(
    state: dict[str, torch.Tensor], context: EncoderContext, tmp_path: Path
) -> None:
    def message(path: Path) -> str:
        with pytest.raises(WeightsError) as caught:
            InceptionV3Fid(weights=str(path)).load(context)
        return str(caught.value)

    assert "does not exist" in message(tmp_path / "absent.pth")
    (tmp_path / "text.pth").write_text("not weights")
    assert "Cannot read" in message(tmp_path / "text.pth")
    (tmp_path / "text.safetensors").write_text("not weights")
    assert "Cannot read" in message(tmp_path / "text.safetensors")
    torch.save(torch.zeros(3), tmp_path / "tensor.pth")
    assert "not a state dict" in message(tmp_path / "tensor.pth")
    torch.save({name: state[name] for name in list(state)[:-4]}, tmp_path / "part.pth")
    assert "is missing" in message(tmp_path / "part.pth")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(torch.nn.Identity()).save(str(tmp_path / "other.pt"))  # type: ignore[no-untyped-call]
    assert "no `layers`" in message(tmp_path / "other.pt")


def test_modes_are_checked() -> None:
    with pytest.raises(OptionError, match="Unknown mode 'cleanest'"):
        InceptionV3Fid(mode="cleanest")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="mode='cleanest'"):
        registry().create("metric", "fid", {"mode": "cleanest"})
