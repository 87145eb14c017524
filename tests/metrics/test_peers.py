"""`evaluate` against pytorch-fid, torch-fidelity and clean-fid on the same files and the same weights.

The weights are random but well scaled: nothing here needs the published ones. Features are compared one by one, and
distances on features of fewer dimensions: with few images the covariances are singular, where the square roots of the
peers are noisy (and slow).
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_sample_image

from dcprune import formats
from dcprune.api.evaluation import evaluate, export_reference
from dcprune.api.references import RealImages
from dcprune.artifacts import EncodedReference, EncoderInfo, MetricValue
from dcprune.encoders.inception_fid import InceptionV3Fid, build_network
from dcprune.metrics.fd import FrechetDistance
from dcprune.metrics.frechet import frechet_distance
from dcprune.metrics.kid import Kid
from dcprune.sources import open_dataset

COUNT = 3
FIRST, SECOND = "flower.jpg", "china.jpg"


@pytest.fixture(scope="module", autouse=True)
def _one_thread(one_thread: None) -> None:
    """Networks this small only get slower with more."""


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    """What pytorch-fid's file holds, drawn at random."""
    generator = torch.Generator().manual_seed(0)
    state = build_network().state_dict()
    for name, tensor in state.items():
        if name.endswith("conv.weight"):
            state[name] = torch.randn(tensor.shape, generator=generator) * (2 / tensor[0].numel()) ** 0.5
    classifier = torch.randn((1008, 2048), generator=generator) * 0.2
    return {**state, "fc.weight": classifier, "fc.bias": torch.randn(1008, generator=generator)}


@pytest.fixture(scope="module")
def root(state: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Crops of two photos as PNG files in two folders, and the weights."""
    root = tmp_path_factory.mktemp("peers")
    generator = np.random.default_rng(0)
    for name in (FIRST, SECOND):
        photo = load_sample_image(name)
        (root / name).mkdir()
        for number in range(COUNT):
            top, left = generator.integers(0, 300), generator.integers(0, 500)
            Image.fromarray(photo[top : top + 48, left : left + 64]).save(root / name / f"{number}.png")
    torch.save(state, root / "inception.pth")
    return root


def measured(root: Path, mode: str, *metrics: str, **settings: Any) -> tuple[MetricValue, ...]:
    found = evaluate(
        root / FIRST,
        metrics=metrics,
        reference=root / SECOND,
        settings={"mode": mode, **settings},
        weights=root / "inception.pth",
        device="cpu",
        num_workers=0,
        per_class=False,
    )
    return found.metrics


def own_features(root: Path, folder: str, mode: str) -> NDArray[np.float32]:
    statistics = export_reference(
        root / folder, metrics=["kid"], settings={"mode": mode}, weights=root / "inception.pth", device="cpu"
    )
    found = statistics.spaces[0].features
    assert found is not None
    return found


def moments(rows: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    wide = rows.astype(np.float64)
    return wide.mean(axis=0), np.cov(wide, rowvar=False)


def test_pytorch_fid(root: Path, state: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    fid_score = pytest.importorskip("pytorch_fid.fid_score")
    inception = pytest.importorskip("pytorch_fid.inception")
    monkeypatch.setattr(inception, "load_state_dict_from_url", lambda *_, **__: state)
    monkeypatch.setattr(fid_score, "tqdm", iter)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = inception.InceptionV3([3])
        theirs = {
            name: fid_score.get_activations(sorted((root / name).iterdir()), network, batch_size=4, num_workers=0)
            for name in (FIRST, SECOND)
        }
        fid_score.save_fid_stats([str(root / SECOND), str(root / "stats.npz")], COUNT, torch.device("cpu"), 2048, 0)
    for name, expected in theirs.items():
        np.testing.assert_allclose(own_features(root, name, "legacy_pytorch"), expected, rtol=1e-4, atol=1e-4)
    saved, own = formats.read_moments(root / "stats.npz"), moments(own_features(root, SECOND, "legacy_pytorch"))
    np.testing.assert_allclose(saved[0], own[0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(saved[1], own[1], rtol=1e-3, atol=1e-4 * float(np.abs(own[1]).max()))
    generator = np.random.default_rng(1)
    first, second = (moments(generator.normal(size=(200, 24)) * scale) for scale in (1.0, 1.3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            expected = fid_score.calculate_frechet_distance(*first, *second)
        except TypeError:
            pytest.skip("this pytorch-fid calls scipy in a way that this scipy no longer knows")
    assert frechet_distance(*first, *second) == pytest.approx(expected, rel=1e-6)


def test_torch_fidelity(root: Path) -> None:
    torch_fidelity = pytest.importorskip("torch_fidelity")
    statistics_to_metric = pytest.importorskip("torch_fidelity.metric_fid").fid_statistics_to_metric
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = torch_fidelity.calculate_metrics(
            input1=str(root / FIRST),
            input2=str(root / SECOND),
            feature_extractor_weights_path=str(root / "inception.pth"),
            cuda=False,
            cache=False,
            verbose=False,
            save_cpu_ram=True,
            isc=True,
            isc_splits=1,
            kid=True,
            kid_subsets=1,
            kid_subset_size=COUNT,
        )
    isc, kid = measured(root, "legacy_tensorflow", "isc", "kid", num_splits="1")
    assert isc.value == pytest.approx(theirs["inception_score_mean"], rel=1e-5)
    assert kid.value == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-4)
    generator = np.random.default_rng(1)
    first, second = (moments(generator.normal(size=(200, 24)) * scale) for scale in (1.0, 1.3))
    expected = statistics_to_metric(
        dict(zip(("mu", "sigma"), first, strict=True)), dict(zip(("mu", "sigma"), second, strict=True)), verbose=False
    )
    assert frechet_distance(*first, *second) == pytest.approx(expected["frechet_inception_distance"], rel=1e-9)


def test_the_score_takes_the_same_pass_as_the_distance(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    encode = InceptionV3Fid.encode

    def counted(self: InceptionV3Fid, pixels: torch.Tensor) -> torch.Tensor:
        seen.append(len(pixels))
        return encode(self, pixels)

    monkeypatch.setattr(InceptionV3Fid, "encode", counted)
    alone = measured(root, "clean", "isc", num_splits="2")
    both = measured(root, "clean", "isc", "kid", num_splits="2")
    assert both[0] == alone[0]
    assert sum(seen) == 3 * COUNT  # the images for one and for two metrics, and the reference for the distance


def test_adm_reference_batches_bring_their_own_statistics(tmp_path: Path) -> None:
    """`mu` and `sigma` are of more images than `arr_0` and of TensorFlow's graph: they serve that mode alone."""
    images = np.random.default_rng(0).integers(0, 256, (COUNT, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "reference.npz", images, mu=np.arange(3.0), sigma=np.diag([1.0, 2.0, 3.0]))
    real = RealImages.of(open_dataset(tmp_path / "reference.npz"))
    rows = np.random.default_rng(1).normal(size=(COUNT, 3)).astype(np.float32)
    info = EncoderInfo(name="inceptionv3-fid", dim=3, weights="", weights_sha256=None, layer="pool3", preprocessing={})
    settings = [{"mode": mode, "layer": "pool3"} for mode in ("legacy_tensorflow", "clean")]
    spaces = [EncodedReference(info.model_copy(update={"settings": each}), *moments(rows), rows) for each in settings]
    adm, clean = real.sides(dict(enumerate(spaces))).values()
    fid, kid = FrechetDistance("pixels"), Kid()
    assert adm.from_elsewhere
    assert (adm.count(fid), adm.count(kid)) == (0, COUNT)
    np.testing.assert_array_equal(adm.gaussian.mean, np.arange(3.0))
    assert not clean.from_elsewhere
    assert clean.count(fid) == COUNT
    np.testing.assert_array_equal(clean.gaussian.mean, moments(rows)[0])
