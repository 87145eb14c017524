"""`evaluate` on real clothes, a network with random weights as the encoder, and a model trained for a moment."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from dcprune import formats, testing
from dcprune.api import measuring, subjects
from dcprune.api.coresets import select
from dcprune.api.embeddings import embed
from dcprune.api.evaluation import evaluate, export_reference
from dcprune.api.generation import open_run, sample
from dcprune.api.inspection import verify
from dcprune.api.measuring import Bench
from dcprune.api.runs import train
from dcprune.artifacts import Metrics
from dcprune.embedding import encode_images, load_encoder
from dcprune.encoders.residual import initialised
from dcprune.errors import DatasetError, MissingInput, OptionError, UnknownName, WeightsError
from dcprune.evaluation import NamedMetric, Reference, aligned_labels, create_metrics, measure
from dcprune.interfaces import EncoderChoice, EncoderContext, Features
from dcprune.metrics.fd import FrechetDistance
from dcprune.metrics.fid import Fid
from dcprune.metrics.frechet import frechet_distance, moments
from dcprune.progress import SILENT
from dcprune.sources import open_dataset
from dcprune.testing import RecordingProgress, preparation_context
from dcprune.weights import write_weights

FD = "fd:resnet18"
CLASSES = ("Bag", "Dress", "Sandal")
PER_CLASS = 20


@pytest.fixture(scope="module", autouse=True)
def _one_thread(one_thread: None) -> None:
    """Networks this small only get slower with more."""


@pytest.fixture(scope="module")
def clothes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image folder: 20 images of each of three classes."""
    root = tmp_path_factory.mktemp("clothes")
    write_folder(root, slice(0, PER_CLASS))
    return root


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 other images of each of the three classes."""
    root = tmp_path_factory.mktemp("others")
    write_folder(root, slice(PER_CLASS, 2 * PER_CLASS))
    return root


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ResNet-18 of width 2, so of 16 dimensions, with random weights."""
    path = tmp_path_factory.mktemp("weights") / "resnet.safetensors"
    write_weights(path, initialised(2, "cifar", 0, seed=0).state_dict(), {})
    return path


@pytest.fixture(scope="module")
def chain(clothes: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on half of the clothes, beside its coreset."""
    folder = tmp_path_factory.mktemp("chain")
    embeddings = embed(clothes, weights=str(weights), device="cpu", num_workers=0)
    formats.write_coreset(select(embeddings, "random", ratio=0.5), folder / "coreset.json")
    train(
        coreset=folder / "coreset.json",
        output=folder / "run",
        preset="tiny",
        settings={"block_out_channels": [8, 16]},
        steps=2,
        device="cpu",
    )
    return folder


def write_folder(root: Path, rows: slice) -> None:
    source = open_dataset("fashion-mini")
    assert source.labels is not None
    for name in CLASSES:
        (root / name).mkdir(parents=True)
        chosen = np.flatnonzero(source.labels == source.class_names.index(name))[rows]
        for index in chosen:
            Image.fromarray(source.image(int(index))[..., 0]).save(root / name / f"{index:05d}.png")


def distance(first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
    mean1, cov1, _ = moments(first)
    mean2, cov2, _ = moments(second)
    return frechet_distance(mean1, cov1, mean2, cov2)


def evaluated(*args: Any, **options: Any) -> Metrics:
    return evaluate(*args, **{"metrics": [FD], "device": "cpu", "num_workers": 0, **options})


def test_a_folder_against_a_dataset_is_the_distance_of_their_embeddings(
    clothes: Path, others: Path, weights: Path
) -> None:
    metrics = evaluated(others, reference=clothes, weights=weights)
    (value,) = metrics.metrics
    options: dict[str, Any] = {"weights": str(weights), "device": "cpu", "dtype": "fp32", "num_workers": 0}
    first, second = (embed(each, **options) for each in (others, clothes))
    assert value.value == pytest.approx(distance(first.embeddings[:], second.embeddings[:]), rel=1e-6)
    assert (value.name, value.num_generated, value.num_reference) == (FD, 60, 60)
    assert value.per_class is not None
    assert list(value.per_class) == list(CLASSES)
    assert second.labels is not None
    for label, name in enumerate(CLASSES):
        rows = np.flatnonzero(second.labels == label)
        expected = distance(first.embeddings[rows], second.embeddings[rows])
        assert value.per_class[name] == pytest.approx(expected, rel=1e-6)
    assert metrics.run is None
    assert metrics.dataset.fingerprint == second.dataset.fingerprint


def test_the_protocol_says_what_was_measured(clothes: Path, others: Path, weights: Path) -> None:
    (value,) = evaluated(others, reference=clothes, weights=weights).metrics
    protocol = value.protocol
    assert protocol["weights_sha256"] == formats.sha256(weights)
    assert protocol["extractor"] == "resnet18"
    assert protocol["preprocessing"]["interpolation"].startswith("bilinear")
    assert protocol["reference_size"] == "28x28x3"
    assert protocol["reference_mirrored"] is False
    assert protocol["per_class"] == {"num_generated": PER_CLASS, "num_reference": PER_CLASS}
    (again,) = evaluated(clothes, reference=clothes, weights=weights, batch_size=7).metrics
    assert again.protocol["reference_fingerprint"] == protocol["reference_fingerprint"]
    assert again.value == pytest.approx(0, abs=1e-6)
    (swapped,) = evaluated(clothes, reference=others, weights=weights).metrics
    assert swapped.reference_sha256 != value.reference_sha256
    assert again.reference_sha256 == value.reference_sha256


def test_a_run_is_measured_like_the_images_that_it_samples(chain: Path, weights: Path, tmp_path: Path) -> None:
    drawing = {"num_samples": 50, "num_inference_steps": 2, "seed": 3}
    metrics = evaluated(chain / "run", weights=weights, batch_size=16, **drawing)
    sample(chain / "run", output=tmp_path / "samples", device="cpu", **drawing)  # type: ignore[arg-type]
    stored = evaluated(chain / "run", samples=tmp_path / "samples", weights=weights, batch_size=50)
    assert [value.name for value in metrics.metrics] == [FD, f"{FD} (coreset images)"]
    for drawn, read in zip(metrics.metrics, stored.metrics, strict=True):
        assert drawn.value == pytest.approx(read.value, rel=1e-4)
        assert drawn.per_class == pytest.approx(read.per_class, rel=1e-4) if drawn.per_class else read.per_class is None
    assert metrics.metrics[0].num_generated == 50
    assert metrics.metrics[0].num_reference == 60
    assert metrics.metrics[0].protocol["reference_size"] == "16x16x3"
    assert metrics.sampler["num_inference_steps"] == 2
    assert metrics.sampler["weights"] == "EMA"
    assert stored.sampler == {}


def prepared(run: Path, folder: Path, weights: Path) -> NDArray[np.float32]:
    """Features of real images at the run's resolution, image by image."""
    source = open_dataset(folder)
    data = open_run(run).backend.prepare(source, preparation_context())
    context = EncoderContext(source, "0" * 64, torch.device("cpu"), torch.float32, 0, run / "cache", SILENT)
    encoder, _ = load_encoder(EncoderChoice("resnet18", {}, str(weights)), context)
    with torch.inference_mode():
        images = [data.images(torch.tensor([row])) for row in range(len(source))]
        return torch.cat([encoder.encode(encoder.preprocess(image)) for image in images]).numpy()


@pytest.mark.parametrize("elsewhere", [False, True])
def test_the_floor_is_the_distance_of_the_coresets_images(
    elsewhere: bool, chain: Path, clothes: Path, others: Path, weights: Path
) -> None:
    reference = others if elsewhere else None
    metrics = evaluated(
        chain / "run", reference=reference, weights=weights, num_samples=2, num_inference_steps=1, per_class=False
    )
    floor = metrics.metrics[1]
    rows = np.array(formats.read_coreset(chain / "coreset.json").indices)
    own = prepared(chain / "run", clothes, weights)
    whole = prepared(chain / "run", others, weights) if elsewhere else own
    assert floor.name == f"{FD} (coreset images)"
    assert floor.value == pytest.approx(distance(own[rows], whole), rel=1e-4)
    assert (floor.num_generated, floor.num_reference, floor.per_class) == (30, 60, None)


def test_the_floor_takes_the_features_of_the_training_set_from_the_cache(
    chain: Path, others: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DCPRUNE_CACHE_DIR", str(tmp_path / "cache"))
    few: dict[str, Any] = {"num_samples": 2, "num_inference_steps": 1, "per_class": False}
    encoded: list[str] = []
    encode = Bench.encode

    def heard(bench: Bench, images: Any, rows: Any, labels: Any, what: str, **options: Any) -> Any:
        encoded.append(what)
        return encode(bench, images, rows, labels, what, **options)

    monkeypatch.setattr(Bench, "encode", heard)
    before = evaluated(chain / "run", reference=others, weights=weights, **few)
    assert encoded.count("encode the coreset") == 1
    evaluated(chain / "run", weights=weights, **{**few, "per_class": True})  # keeps the features of the training set
    after = evaluated(chain / "run", reference=others, weights=weights, **few)
    assert encoded.count("encode the coreset") == 1
    assert after.metrics[1].value == pytest.approx(before.metrics[1].value, rel=1e-6)


def test_a_surrogate_never_learns_the_split_that_is_the_reference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DCPRUNE_CACHE_DIR", str(tmp_path / "cache"))
    write_folder(tmp_path / "photos" / "train", slice(0, PER_CLASS))
    write_folder(tmp_path / "photos" / "test", slice(PER_CLASS, 2 * PER_CLASS))
    small: dict[str, Any] = {"settings": {"width": 2, "epochs": 1}, "device": "cpu"}
    embeddings = embed(tmp_path / "photos", num_workers=0, **small)
    formats.write_coreset(select(embeddings, "random", ratio=0.5), tmp_path / "coreset.json")
    tiny: dict[str, Any] = {"preset": "tiny", "settings": {"block_out_channels": [8, 16]}, "steps": 1, "device": "cpu"}
    train(coreset=tmp_path / "coreset.json", output=tmp_path / "run", **tiny)
    for subject in ("coreset.json", "run"):
        draw = {"num_samples": 4, "num_inference_steps": 1} if subject == "run" else {}
        (value, *_) = evaluated(tmp_path / subject, split="test", per_class=False, **draw, **small).metrics
        assert value.num_reference == 3 * PER_CLASS
        assert value.protocol["reference_split"] == "test"
        assert value.protocol["weights_sha256"] == embeddings.encoder.weights_sha256
    exported = export_reference(tmp_path / "run", metrics=[FD], split="test", **small)
    assert exported.spaces[0].encoder.weights_sha256 == embeddings.encoder.weights_sha256
    assert len(list((tmp_path / "cache" / "surrogates").glob("*.safetensors"))) == 1


def test_a_coreset_that_has_gone_or_changed_is_left_out_with_a_warning(chain: Path, weights: Path) -> None:
    path = chain / "coreset.json"
    content = path.read_bytes()
    progress = RecordingProgress()
    try:
        path.write_bytes(content + b"\n")
        metrics = evaluated(
            chain / "run", weights=weights, num_samples=2, num_inference_steps=1, per_class=False, progress=progress
        )
    finally:
        path.write_bytes(content)
    assert [value.name for value in metrics.metrics] == [FD]
    assert any("coreset.json of this run has changed" in each for each in progress.warnings)


def test_metrics_are_written_and_verified(chain: Path, weights: Path, tmp_path: Path) -> None:
    metrics = evaluated(chain / "run", weights=weights, num_samples=2, num_inference_steps=1)
    again = evaluated(chain / "run", weights=weights, num_samples=2, num_inference_steps=1)
    for name, each in (("a", metrics), ("b", again)):
        formats.write_metrics(each, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert all(check.holds for check in verify(tmp_path / "a"))
    assert formats.read_metrics(tmp_path / "a").metrics == metrics.metrics


def test_the_seed_changes_the_images_and_nothing_else(chain: Path, weights: Path) -> None:
    first, second = (
        evaluated(chain / "run", weights=weights, num_samples=20, num_inference_steps=2, seed=seed).metrics[0]
        for seed in (0, 1)
    )
    assert first.value != second.value
    assert first.protocol == second.protocol


def test_two_metrics_of_one_encoder_share_one_pass_and_the_reference_is_cached(
    clothes: Path, others: Path, weights: Path, install_plugin: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DCPRUNE_CACHE_DIR", str(tmp_path / "cache"))
    install_plugin(
        "twin",
        "import dcprune\n"
        "@dcprune.hookimpl\n"
        "def register_metrics(register):\n"
        "    register('twin', 'dcprune.metrics.fd:FrechetDistance', argument='ENCODER')\n",
    )
    passes: list[object] = []
    encode = encode_images

    def counted(*args: Any, **options: Any) -> NDArray[np.float32]:
        passes.append(args[0])
        return encode(*args, **options)

    monkeypatch.setattr(measuring, "encode_images", counted)
    names = [FD, "twin:resnet18"]
    metrics = evaluated(others, metrics=names, reference=clothes, weights=weights)
    assert len(passes) == 2
    assert metrics.metrics[0].value == metrics.metrics[1].value
    again = evaluated(others, metrics=names, reference=clothes, weights=weights)
    assert len(passes) == 3
    assert again == metrics
    (cached,) = (tmp_path / "cache" / "reference").iterdir()
    cached.write_bytes(cached.read_bytes()[:100])
    assert evaluated(others, metrics=names, reference=clothes, weights=weights) == metrics
    assert len(passes) == 5


def test_the_surrogate_is_the_one_that_embed_trained(clothes: Path, others: Path) -> None:
    settings = {"width": "8", "epochs": "1"}
    surrogate = embed(clothes, settings=settings, device="cpu", num_workers=0).encoder
    (value,) = evaluated(others, reference=clothes, settings=settings, seed=5).metrics
    assert value.protocol["weights_sha256"] == surrogate.weights_sha256
    assert value.protocol["extractor_settings"] == surrogate.settings


def test_per_class_values_need_images_enough_and_say_so(clothes: Path, others: Path, weights: Path) -> None:
    few = others.parent / "few"
    write_folder(few, slice(0, 15))
    progress = RecordingProgress()
    (value,) = evaluated(few, reference=clothes, weights=weights, progress=progress).metrics
    assert value.per_class is None
    assert [each for each in progress.notes if "no values for 3 of 3 classes" in each]
    (value,) = evaluated(few, reference=clothes, weights=weights, per_class=False).metrics
    assert value.per_class is None


def test_class_values_use_the_same_number_of_images_in_every_class() -> None:
    generator = np.random.default_rng(0)
    info = testing.gaussian_embeddings(dim=3).encoder
    labels = np.repeat([0, 1, 2], [40, 5, 2])
    generated = Features(generator.normal(size=(47, 3)).astype(np.float32), labels, info)
    reference = Features(generator.normal(size=(47, 3)).astype(np.float32), labels[::-1].copy(), info)
    named = NamedMetric("fd:x", FrechetDistance("x"), EncoderChoice("x"))
    value = measure(
        named,
        [generated],
        Reference(reference),
        protocol={"a": 1},
        class_names=("one", "two", "three"),
        progress=SILENT,
    )
    assert value.per_class is not None
    assert list(value.per_class) == ["one", "two"]
    assert value.protocol["per_class"] == {"num_generated": 5, "num_reference": 5}
    expected = distance(generated.features[:5], reference.features[7:12])
    assert value.per_class["one"] == pytest.approx(expected)


def test_labels_follow_their_names_into_another_order() -> None:
    labels = np.array([0, 1, 1])
    found = aligned_labels(labels, ("bag", "shoe"), ("shoe", "coat", "bag"))
    assert found is not None
    assert found.tolist() == [2, 0, 0]
    assert aligned_labels(labels, ("bag", "hat"), ("shoe", "coat", "bag")) is None
    assert aligned_labels(None, (), ("shoe",)) is None


def test_settings_reach_every_metric_and_encoder_that_has_them() -> None:
    fid, fd = create_metrics(["fid", FD, FD], {"mode": "legacy_pytorch", "width": "16"}, {FD: Path("w.pth")})
    assert isinstance(fid.metric, Fid)
    assert (fid.encoder.settings, fid.encoder.weights) == ({"mode": "legacy_pytorch", "layer": "pool3"}, None)
    assert (fd.encoder.settings, fd.encoder.weights) == ({"width": 16}, "w.pth")
    (through_fd,) = create_metrics(["fd:inceptionv3-fid"], {"mode": "legacy_tensorflow"}, Path("all.pt"))
    assert through_fd.encoder.settings == {"mode": "legacy_tensorflow"}
    assert through_fd.encoder.weights == "all.pt"


@pytest.mark.parametrize(
    ("options", "error", "complaint"),
    [
        ({"metrics": []}, OptionError, "Name a metric"),
        ({"metrics": ["fidd"]}, UnknownName, "Did you mean 'fid'"),
        ({"metrics": ["fd"]}, OptionError, "needs an argument"),
        ({"metrics": ["fd:resnet19"]}, UnknownName, "Unknown encoder 'resnet19'"),
        ({"settings": {"widht": "16"}}, UnknownName, "Did you mean 'width'"),
        ({"settings": {"width": "wide"}}, OptionError, "width='wide'"),
        ({"weights": {"fid": Path("x")}}, UnknownName, "metric with weights 'fid'"),
        ({"weights": Path("absent.safetensors")}, WeightsError, "absent.safetensors"),
        ({"num_samples": 1}, OptionError, "num_samples=1"),
        ({"num_inference_steps": 0}, OptionError, "num_inference_steps=0"),
        ({"sampler": "euler"}, UnknownName, "euler"),
        ({"batch_size": 0}, OptionError, "batch_size=0"),
        ({"samples": Path("absent")}, MissingInput, "absent"),
        ({"samples": "fashion-mini", "sampler": "ddim"}, OptionError, "sampler=ddim: that is for drawing"),
        ({"samples": "fashion-mini", "num_samples": 4001}, OptionError, "num_samples=4001: fashion-mini has 4000"),
        ({"samples": "fashion-mini", "seeds": (0, 1)}, OptionError, "seeds=.0, 1.: that is for drawing"),
        ({"seeds": (1, 1)}, OptionError, "at least two different seeds"),
        ({"seeds": (0, 1), "bootstrap": 10}, OptionError, "leave one of them out"),
        ({"confidence": 1.0}, OptionError, "a level in"),
        ({"reference": "no-such-set"}, UnknownName, "no-such-set"),
        ({"split": "validation"}, DatasetError, "validation"),
    ],
)
def test_what_can_fail_cheaply_fails_before_an_image_is_drawn(
    options: dict[str, Any],
    error: type[Exception],
    complaint: str,
    chain: Path,
    weights: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def too_late(*_: object, **__: object) -> None:
        raise AssertionError("work began")

    monkeypatch.setattr(subjects, "generate", too_late)
    monkeypatch.setattr(measuring, "encode_images", too_late)
    with pytest.raises(error, match=complaint):
        evaluated(chain / "run", **{"weights": weights, **options})


def test_what_to_evaluate_must_be_said(clothes: Path, tmp_path: Path, weights: Path) -> None:
    with pytest.raises(OptionError, match="Nothing to evaluate"):
        evaluated(reference=clothes)
    with pytest.raises(OptionError, match="what to compare the images with"):
        evaluated(clothes)
    with pytest.raises(OptionError, match="is no run that could have drawn the samples"):
        evaluated(clothes, samples=clothes, reference=clothes)
    with pytest.raises(DatasetError, match="no images"):
        evaluated(tmp_path, reference=clothes)
    Image.fromarray(np.zeros((8, 8), dtype=np.uint8)).save(tmp_path / "only.png")
    with pytest.raises(DatasetError, match="has 1 images"):
        evaluated(tmp_path, reference=clothes)
    Image.fromarray(np.ones((8, 8), dtype=np.uint8)).save(tmp_path / "second.png")
    progress = RecordingProgress()
    evaluated(tmp_path, reference=clothes, weights=weights, progress=progress)
    assert any("8x8x3 pixels and the reference has 28x28x3" in each for each in progress.warnings)
    assert any("2 images against 60; below 16 each" in each for each in progress.warnings)


def test_the_metrics_keep_the_contract() -> None:
    testing.check_metric(Fid)
    testing.check_metric(Fid, settings={"mode": "legacy_tensorflow"})
    testing.check_metric(FrechetDistance, argument="resnet18")
