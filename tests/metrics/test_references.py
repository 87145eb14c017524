"""Images from everywhere against references from everywhere."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from dcprune import formats
from dcprune.api import measuring, subjects
from dcprune.api.coresets import select
from dcprune.api.embeddings import embed
from dcprune.api.evaluation import evaluate, export_reference
from dcprune.api.generation import generate, sample
from dcprune.api.inspection import describe, verify
from dcprune.api.runs import train
from dcprune.artifacts import Metrics
from dcprune.encoders.residual import initialised
from dcprune.errors import ArtifactError, DatasetError, InputError, OptionError, WeightsError
from dcprune.metrics.frechet import frechet_distance, moments
from dcprune.sources import open_dataset
from dcprune.testing import RecordingProgress
from dcprune.weights import write_weights

FD, KD = "fd:resnet18", "kd:resnet18"
CLASSES = ("Bag", "Dress", "Sandal")


@pytest.fixture(scope="module", autouse=True)
def _one_thread(one_thread: None) -> None:
    """Networks this small only get slower with more."""


@pytest.fixture(scope="module")
def clothes() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """40 images uint8 [28, 28] of each of three classes, class by class, with labels in the order of `CLASSES`."""
    source = open_dataset("fashion-mini")
    assert source.labels is not None
    rows = [np.flatnonzero(source.labels == source.class_names.index(name))[:40] for name in CLASSES]
    images = np.stack([source.image(int(row))[..., 0] for row in np.concatenate(rows)])
    return images, np.repeat(np.arange(3), 40)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, clothes: tuple[NDArray[np.uint8], NDArray[np.int64]]) -> Path:
    """`real/` and `made/` of 20 images a class, `made.npz` of the same images, and a network with random weights."""
    root = tmp_path_factory.mktemp("images")
    images, labels = clothes
    for row, (image, label) in enumerate(zip(images, labels, strict=True)):
        folder = root / ("real" if row % 2 else "made") / CLASSES[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{row:03d}.png")
    rgb = np.repeat(images[::2, :, :, None], 3, axis=3)
    np.savez(root / "made.npz", rgb, labels[::2])
    write_weights(root / "r.safetensors", initialised(2, "cifar", 0, seed=0).state_dict(), {})
    return root


@pytest.fixture(scope="module")
def run(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a coreset of the real images, trained for a moment, beside its coreset."""
    folder = tmp_path_factory.mktemp("chain")
    embeddings = embed(root / "real", weights=str(root / "r.safetensors"), device="cpu", num_workers=0)
    formats.write_coreset(select(embeddings, "random", ratio=0.5), folder / "coreset.json")
    train(
        coreset=folder / "coreset.json",
        output=folder / "run",
        preset="tiny",
        settings={"block_out_channels": [8, 16]},
        steps=2,
        device="cpu",
    )
    return folder / "run"


def evaluated(root: Path, images: Path | str, **options: Any) -> Metrics:
    common = {"metrics": [FD], "weights": root / "r.safetensors", "device": "cpu", "num_workers": 0}
    return evaluate(images, **{**common, **options})


def vectors(root: Path, images: Path | str) -> NDArray[np.float32]:
    options: dict[str, Any] = {"device": "cpu", "dtype": "fp32", "num_workers": 0}
    return embed(images, weights=str(root / "r.safetensors"), **options).embeddings[:]


def distance(first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
    one, other = moments(first), moments(second)
    return frechet_distance(one[0], one[1], other[0], other[1])


# --- images -----------------------------------------------------------------------------------------------------------


def test_an_archive_and_a_folder_of_the_same_images_measure_the_same(root: Path) -> None:
    from_folder = evaluated(root, root / "made", reference=root / "real")
    from_archive = evaluated(root, root / "made.npz", reference=root / "real")
    one, other = from_folder.metrics[0], from_archive.metrics[0]
    assert one.value == pytest.approx(other.value, rel=1e-6)
    assert one.per_class == pytest.approx(other.per_class, rel=1e-6)
    assert one.protocol == other.protocol
    assert from_archive.samples is not None
    assert from_archive.samples.fingerprint_method == "content/1"
    assert from_archive.dataset.uri == str(root / "real")


def test_archives_of_the_same_shape_are_told_apart(root: Path, tmp_path: Path) -> None:
    images, labels = (np.load(root / "made.npz")[name] for name in ("arr_0", "arr_1"))
    np.savez(tmp_path / "other.npz", 255 - images, labels)
    first, second = (
        evaluated(root, root / "real", reference=reference).metrics[0]
        for reference in (root / "made.npz", tmp_path / "other.npz")
    )
    assert first.protocol["reference_fingerprint"] != second.protocol["reference_fingerprint"]
    assert first.value != pytest.approx(second.value, rel=1e-3)


def test_an_image_that_is_replaced_by_one_of_the_same_size_is_noticed(root: Path, tmp_path: Path) -> None:
    for number in range(6):
        Image.fromarray(np.full((8, 8, 3), 40 * number, dtype=np.uint8)).save(tmp_path / f"{number}.bmp")
    before = evaluated(root, root / "made", reference=tmp_path).metrics[0]
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(tmp_path / "3.bmp")
    after = evaluated(root, root / "made", reference=tmp_path).metrics[0]
    assert before.protocol == after.protocol
    assert before.reference_sha256 != after.reference_sha256


def test_a_number_of_images_is_a_random_choice(root: Path) -> None:
    chosen = [
        evaluated(root, root / "made", reference=root / "real", num_samples=30, seed=seed).metrics[0]
        for seed in (0, 0, 1)
    ]
    assert chosen[0] == chosen[1]
    assert chosen[0].value != chosen[2].value
    assert chosen[0].num_generated == 30
    rows = np.random.default_rng(0).permutation(60)[:30]
    expected = distance(vectors(root, root / "made")[rows], vectors(root, root / "real"))
    assert chosen[0].value == pytest.approx(expected, rel=1e-5)


def test_a_sweep_over_images_ends_with_all_that_were_asked_for(root: Path) -> None:
    (value,) = evaluated(
        root, root / "made", reference=root / "real", num_samples=[60, 20, 40], bootstrap=50, per_class=False
    ).metrics
    assert [each.num_generated for each in value.sweep] == [20, 40, 60]
    assert value.value == pytest.approx(distance(vectors(root, root / "made"), vectors(root, root / "real")), rel=1e-5)
    assert value.extrapolated is not None
    assert value.extrapolated.interval is not None


def test_a_coreset_against_its_dataset_is_the_floor_that_its_run_reports(run: Path, root: Path) -> None:
    (alone,) = evaluated(root, run.parent / "coreset.json").metrics
    embeddings = vectors(root, root / "real")
    rows = np.array(formats.read_coreset(run.parent / "coreset.json").indices)
    assert alone.name == f"{FD} (coreset images)"
    assert alone.value == pytest.approx(distance(embeddings[rows], embeddings), rel=1e-5)
    metrics = evaluated(root, run.parent / "coreset.json")
    assert [Path(each.path).name for each in metrics.provenance.inputs] == ["coreset.json"]
    named = evaluated(root, run, num_samples=4, num_inference_steps=1, per_class=False).metrics
    assert [each.name for each in named] == [FD, alone.name]


def test_seeds_draw_sets_whose_mean_is_the_value(run: Path, root: Path) -> None:
    drawing = {"num_samples": 20, "num_inference_steps": 1, "per_class": False}
    metrics = evaluated(root, run, seeds=(3, 4), **drawing)
    single = [evaluated(root, run, seed=seed, **drawing).metrics[0].value for seed in (3, 4)]
    value = metrics.metrics[0]
    assert value.seed_values == pytest.approx(single)
    assert value.value == pytest.approx(np.mean(single))
    assert value.interval is not None
    assert value.interval.seeds == (3, 4)
    assert metrics.sampler["seeds"] == [3, 4]
    assert "--seeds 3,4" in describe_command(metrics)


def describe_command(metrics: Metrics) -> str:
    from dcprune.api.provenance import command_line

    return command_line(metrics.provenance)


def test_a_sweep_of_drawn_images_is_what_smaller_evaluations_find(run: Path, root: Path) -> None:
    drawing = {"num_inference_steps": 1, "per_class": False}
    swept = evaluated(root, run, num_samples=[10, 20], **drawing).metrics[0]
    alone = evaluated(root, run, num_samples=10, **drawing).metrics[0]
    assert swept.sweep[0].value == pytest.approx(alone.value, rel=1e-5)


def test_a_run_as_the_reference_stands_for_its_data_at_its_resolution(run: Path, root: Path, tmp_path: Path) -> None:
    sample(run, output=tmp_path / "samples", num_samples=12, num_inference_steps=1, device="cpu")
    stored = evaluated(root, tmp_path / "samples", reference=run).metrics[0]
    drawn = evaluated(root, run, num_samples=12, num_inference_steps=1).metrics[0]
    assert stored.value == pytest.approx(drawn.value, rel=1e-4)
    assert stored.protocol == drawn.protocol


def test_drawing_ahead_and_keeping_features_in_a_file_change_nothing(
    run: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a GPU does while it draws, and what many images need."""
    drawing = {"num_samples": 14, "num_inference_steps": 1, "batch_size": 4}
    plain = evaluated(root, run, **drawing)
    drawn_by: list[str] = []

    def watched(*args: Any, **options: Any) -> Iterator[torch.Tensor]:
        for batch in generate(*args, **options):
            drawn_by.append(threading.current_thread().name)
            yield batch

    monkeypatch.setattr(subjects, "generate", watched)
    monkeypatch.setattr(measuring, "_OVERLAPPING", ("cpu",))
    monkeypatch.setattr(measuring, "_LARGEST_IN_MEMORY", 0)
    assert evaluated(root, run, **drawing).metrics == plain.metrics
    assert drawn_by == ["dcprune-ahead"] * 4


# --- statistics -------------------------------------------------------------------------------------------------------


def exported(root: Path, path: Path, *metrics: str) -> Path:
    statistics = export_reference(
        root / "real", metrics=metrics, weights=root / "r.safetensors", device="cpu", num_workers=0
    )
    formats.write_reference(statistics, path)
    return path


def test_exported_statistics_stand_for_the_images(root: Path, tmp_path: Path) -> None:
    path = exported(root, tmp_path / "both.safetensors", FD, KD)
    direct = evaluated(root, root / "made", metrics=[FD, KD], reference=root / "real")
    stored = evaluated(root, root / "made", metrics=[FD, KD], reference=path)
    assert stored.metrics == direct.metrics
    assert stored.dataset == direct.dataset
    assert [Path(each.path) for each in stored.provenance.inputs] == [path]
    assert all(check.holds for check in verify(path))
    assert describe(path)["with_features"] == [True]


def test_a_frechet_distance_needs_the_moments_alone(root: Path, tmp_path: Path) -> None:
    path = exported(root, tmp_path / "moments.safetensors", FD)
    assert formats.read_reference(path).spaces[0].features is None
    direct = evaluated(root, root / "made", reference=root / "real", per_class=False).metrics[0]
    stored = evaluated(root, root / "made", reference=path).metrics[0]
    assert stored.model_copy(update={"reference_sha256": None}) == direct.model_copy(update={"reference_sha256": None})
    with pytest.raises(InputError, match="KernelDistance needs the features"):
        evaluated(root, root / "made", metrics=[FD, KD], reference=path)


def test_the_same_statistics_give_the_same_bytes(root: Path, tmp_path: Path) -> None:
    first, second = (exported(root, tmp_path / name, KD).read_bytes() for name in ("a.safetensors", "b.safetensors"))
    assert first == second


def test_statistics_of_another_network_are_refused(root: Path, tmp_path: Path) -> None:
    path = exported(root, tmp_path / "moments.safetensors", FD)
    write_weights(tmp_path / "other.safetensors", initialised(2, "cifar", 0, seed=1).state_dict(), {})
    with pytest.raises(ArtifactError, match=r"holds no statistics of resnet18.*weights_sha256"):
        evaluated(root, root / "made", reference=path, weights=tmp_path / "other.safetensors")
    with pytest.raises(ArtifactError, match=r"holds no statistics of pixels"):
        evaluated(root, root / "made", metrics=["fd:pixels"], weights=None, reference=path)
    with pytest.raises(OptionError, match="holds statistics already"):
        export_reference(path, metrics=[FD])
    with pytest.raises(WeightsError, match=r"resnet18|surrogate"):  # none is trained on the images that it would judge
        evaluated(root, root / "made", reference=path, weights=None)
    with pytest.raises(OptionError, match="isc: that needs no reference"):
        export_reference(root / "real", metrics=["isc"])
    content = path.read_bytes()
    path.write_bytes(content[:-8])
    with pytest.raises(ArtifactError, match="truncated or corrupt"):
        formats.read_reference(path)
    path.write_bytes(content.replace(b"dcprune.reference/1", b"dcprune.reference/2"))
    with pytest.raises(ArtifactError, match="Update dcprune"):
        formats.read_reference(path)


def test_statistics_of_pytorch_fid_and_clean_fid_are_read(root: Path, tmp_path: Path) -> None:
    mean, covariance, _ = moments(vectors(root, root / "real"))
    np.savez(tmp_path / "stats.npz", mu=mean, sigma=covariance)
    progress = RecordingProgress()
    stored = evaluated(root, root / "made", reference=tmp_path / "stats.npz", progress=progress)
    direct = evaluated(root, root / "made", reference=root / "real")
    assert stored.metrics[0].value == pytest.approx(direct.metrics[0].value, rel=1e-5)
    assert stored.metrics[0].num_reference == 0
    assert "reference_moments_sha256" in stored.metrics[0].protocol
    assert stored.dataset == stored.samples
    assert any("does not say by which network" in each for each in progress.warnings)
    with pytest.raises(ArtifactError, match="has 16 dimensions, and pixels has"):
        evaluated(root, root / "made", metrics=["fd:pixels"], weights=None, reference=tmp_path / "stats.npz")
    with pytest.raises(InputError, match="only their mean"):
        evaluated(root, root / "made", metrics=[KD], reference=tmp_path / "stats.npz")


@pytest.mark.parametrize(
    ("arrays", "complaint"),
    [
        ({"mu": np.zeros(16)}, "has no sigma"),
        ({"mu": np.zeros(16), "sigma": np.eye(15)}, r"not \[D\] and \[D, D\]"),
        ({"mu": np.full(16, np.nan), "sigma": np.eye(16)}, "NaN"),
        ({"mu": np.zeros(16), "sigma": np.eye(16, dtype=np.int64)}, "no floating-point"),
        ({"other": np.zeros(16)}, "has no mu"),
    ],
)
def test_other_archives_are_no_statistics(
    arrays: dict[str, NDArray[Any]], complaint: str, root: Path, tmp_path: Path
) -> None:
    np.savez(tmp_path / "stats.npz", allow_pickle=True, **arrays)
    with pytest.raises(ArtifactError, match=complaint):
        evaluated(root, root / "made", reference=tmp_path / "stats.npz")


# --- bad and odd images -----------------------------------------------------------------------------------------------


def test_every_mode_and_size_is_measured_as_it_looks(root: Path, tmp_path: Path) -> None:
    """The same picture in many modes is the same picture, whatever the file holds."""
    generator = np.random.default_rng(0)
    grey = np.repeat(np.repeat(generator.integers(0, 256, (8, 8), dtype=np.uint8), 4, axis=0), 4, axis=1)
    rgb = Image.fromarray(np.repeat(grey[:, :, None], 3, axis=2))
    plain = dict.fromkeys(("a.png", "b.png", "c.png", "d.png", "e.png", "f.tiff"), rgb)
    odd = {
        "a.png": Image.fromarray(grey),
        "b.png": rgb.convert("RGBA"),
        "c.png": rgb.quantize(256),
        "d.png": Image.fromarray(grey.astype(np.uint16) * 257),
        "e.png": Image.fromarray(np.dstack([grey, np.full_like(grey, 255)]), mode=None),
        "f.tiff": rgb.convert("CMYK"),
    }
    for folder, images in (("plain", plain), ("odd", odd)):
        (tmp_path / folder).mkdir()
        for name, image in images.items():
            image.save(tmp_path / folder / name)
    expected, found = vectors(root, tmp_path / "plain"), vectors(root, tmp_path / "odd")
    np.testing.assert_allclose(found, expected, atol=1e-5)
    Image.fromarray(grey[:20]).save(tmp_path / "odd" / "wide.png")
    Image.fromarray(grey[:, :13]).save(tmp_path / "odd" / "tall.png")
    (value,) = evaluated(root, tmp_path / "odd", reference=root / "real").metrics
    assert np.isfinite(value.value)
    assert value.num_generated == 8


def test_one_broken_file_is_named(root: Path, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((16, 16), dtype=np.uint8)).save(buffer, "png")
    for number in range(4):
        (tmp_path / f"{number}.png").write_bytes(buffer.getvalue())
    (tmp_path / "2.png").write_bytes(buffer.getvalue()[:40])
    with pytest.raises(DatasetError, match=r"2\.png"):
        evaluated(root, tmp_path, reference=root / "real")
    with pytest.raises(DatasetError, match=r"2\.png"):
        evaluated(root, root / "made", reference=tmp_path, num_workers=2)


def test_one_image_is_refused_and_the_same_image_many_times_is_not(root: Path, tmp_path: Path) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (28, 28, 3), dtype=np.uint8))
    image.save(tmp_path / "0.png")
    with pytest.raises(DatasetError, match="has 1 images; a metric needs at least 2"):
        evaluated(root, tmp_path, reference=root / "real")
    for number in range(1, 20):
        image.save(tmp_path / f"{number}.png")
    progress = RecordingProgress()
    (value,) = evaluated(root, tmp_path, reference=root / "real", bootstrap=20, progress=progress).metrics
    real = vectors(root, root / "real")
    mean, covariance, _ = moments(real)
    offset = mean - vectors(root, tmp_path)[0]
    assert value.value == pytest.approx(float(offset @ offset + np.trace(covariance)), rel=1e-4)
    assert any("all 20 images are the same" in each for each in progress.warnings)
    names = [f"{name}:resnet18" for name in ("kd", "precision", "recall", "density", "coverage", "authpct")]
    for each in evaluated(root, tmp_path, metrics=names, reference=root / "real", bootstrap=20).metrics:
        assert np.isfinite(each.value)


def test_fewer_images_than_dimensions_are_measured_with_a_warning(root: Path, tmp_path: Path) -> None:
    progress = RecordingProgress()
    options = {"num_samples": 10, "reference": root / "real", "bootstrap": 50, "progress": progress}
    (value,) = evaluated(root, root / "made", **options).metrics
    assert value.interval is not None
    assert value.interval.low < value.value < value.interval.high
    assert any("10 images against 60; below 16 each" in each for each in progress.warnings)
