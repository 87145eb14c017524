"""Surrogate training: it learns, repeats, caches, and says what it does."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from dcprune.datasets.arrays import ArraySource
from dcprune.encoders.preprocessing import Preprocessing
from dcprune.encoders.resident import cropped, resident, stratified_split
from dcprune.encoders.residual import initialised
from dcprune.encoders.resnet import ResNet18, automatic_size
from dcprune.encoders.surrogate import Training, one_cycle, recipe_for
from dcprune.errors import OptionError, TrainingDiverged, WeightsError
from dcprune.interfaces import DatasetSource, EncoderContext
from dcprune.sources import open_dataset
from dcprune.testing import ShapesDataset, check_encoder
from dcprune.weights import read_weights

Context = Callable[..., EncoderContext]
SMALL: dict[str, Any] = {"width": 4, "epochs": 2, "batch_size": 16}


def part_of_fashion_mini(count: int) -> ArraySource:
    """Real images: the first `count` of `fashion-mini`."""
    whole = open_dataset("fashion-mini")
    assert whole.labels is not None
    images = np.stack([whole.image(row) for row in range(count)])
    return ArraySource("part", "train", images, whole.labels[:count], whole.class_names)


def weights_in(folder: Path) -> list[Path]:
    return sorted((folder / "surrogates").glob("*.safetensors"))


def test_contract() -> None:
    check_encoder(ResNet18, settings={"width": "4", "epochs": "1"})


def test_it_learns_real_images(context: Context, recorder: Any) -> None:
    """Three epochs on 1,000 real images: far above chance on samples that it has not seen, and it says so."""
    encoder = ResNet18(width=8, epochs=3, batch_size=32)
    info = encoder.load(context(part_of_fashion_mini(1000)))
    assert (info.dim, info.weights) == (64, "surrogate")
    assert info.details["held_out_accuracy"] > 0.5
    assert info.details["num_trained"] + info.details["num_held_out"] == 1000
    assert 95 <= info.details["num_held_out"] <= 105
    assert info.settings["image_size"] == 28
    assert "about" in recorder.notes[0]
    assert "width 8" in recorder.notes[0]
    assert f"{info.details['held_out_accuracy']:.1%}" in recorder.notes[1]
    assert recorder.tasks == ["read images", "train surrogate"]


def test_same_seed_same_bytes(context: Context, tmp_path: Path) -> None:
    data = ShapesDataset(num_samples=40, size=16)
    digests = []
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        info = ResNet18(**SMALL).load(context(data, cache_dir=tmp_path / folder, seed=seed))
        digests.append(info.weights_sha256)
        assert len(weights_in(tmp_path / folder)) == 1
    assert digests[0] == digests[1] != digests[2]


def test_two_at_the_same_time_train_once(context: Context, tmp_path: Path, recorder: Any) -> None:
    """Two evaluations of a sweep start at once: the second waits for the surrogate of the first."""
    data = ShapesDataset(num_samples=40, size=16)
    with ThreadPoolExecutor(2) as pool:
        loads = [pool.submit(ResNet18(**SMALL).load, context(data)) for _ in range(2)]
    assert loads[0].result().weights_sha256 == loads[1].result().weights_sha256
    assert recorder.tasks.count("train surrogate") == 1
    assert len(weights_in(tmp_path / "cache")) == 1


def test_training_leaves_the_global_generators_alone(context: Context) -> None:
    state = torch.random.get_rng_state()
    ResNet18(**SMALL).load(context(ShapesDataset()))
    assert torch.equal(state, torch.random.get_rng_state())


def test_cache_is_used_and_keyed(context: Context, tmp_path: Path, recorder: Any) -> None:
    data = ShapesDataset()
    first = ResNet18(**SMALL).load(context(data))
    assert recorder.tasks.count("train surrogate") == 1
    again = ResNet18(**SMALL).load(context(data))
    assert recorder.tasks.count("train surrogate") == 1
    assert first == again
    for settings, changes in (
        ({"epochs": 3}, {}),
        ({"width": 16}, {}),
        ({"image_size": 24}, {}),
        ({}, {"seed": 1}),
        ({}, {"fingerprint": "f" * 64}),
    ):
        ResNet18(**{**SMALL, **settings}).load(context(data, **changes))
    assert len(weights_in(tmp_path / "cache")) == 6


def test_damaged_cache_is_trained_again(context: Context, tmp_path: Path, recorder: Any) -> None:
    first = ResNet18(**SMALL).load(context(ShapesDataset()))
    (path,) = weights_in(tmp_path / "cache")
    path.write_bytes(path.read_bytes()[:-100])
    second = ResNet18(**SMALL).load(context(ShapesDataset()))
    assert second.weights_sha256 == first.weights_sha256
    assert "damaged" in recorder.warnings[0]
    beside = [path.with_name(f"{path.name}.{suffix}") for suffix in ("cost", "lock")]
    assert sorted(path.parent.iterdir()) == [path, *beside]


def test_what_training_cost_is_known_as_long_as_the_surrogate_is_cached(context: Context, tmp_path: Path) -> None:
    first, cached = ResNet18(**SMALL), ResNet18(**SMALL)
    info = first.load(context(ShapesDataset()))
    cached.load(context(ShapesDataset()))
    (cost,) = first.costs
    assert cached.costs == first.costs
    assert cost.stage == "surrogate"
    assert cost.updates > 0
    assert cost.images_seen % cost.updates == 0
    assert (cost.flops or 0) % cost.images_seen == 0
    assert (cost.device_seconds or 0) > 0
    (path,) = weights_in(tmp_path / "cache")
    copied = tmp_path / "copied.safetensors"
    copied.write_bytes(path.read_bytes())
    elsewhere = ResNet18(weights=str(copied))
    assert elsewhere.load(context(ShapesDataset())).weights_sha256 == info.weights_sha256
    assert elsewhere.costs == ()


def test_surrogate_file_works_as_weights(context: Context, tmp_path: Path) -> None:
    """With its own size and what is known about it, on any other dataset."""
    data = ShapesDataset(num_samples=60, size=16)
    trained = ResNet18(**SMALL)
    info = trained.load(context(data))
    (path,) = weights_in(tmp_path / "cache")
    loaded = ResNet18(weights=str(path))
    other = loaded.load(context(ShapesDataset(num_classes=0, size=40)))
    assert other.details == info.details
    assert (other.settings, other.preprocessing) == ({"width": 4, "image_size": 16}, info.preprocessing)
    images = torch.from_numpy(np.stack([data.image(row) for row in range(5)])).permute(0, 3, 1, 2)
    with torch.inference_mode():
        assert torch.equal(trained.encode(trained.preprocess(images)), loaded.encode(loaded.preprocess(images)))


def test_stored_accuracy_is_that_of_the_stored_network(context: Context, tmp_path: Path) -> None:
    """Recomputed from the file with the classifier, on the samples that the seed held out."""
    data = part_of_fashion_mini(300)
    encoder = ResNet18(width=8, epochs=2, batch_size=16, held_out=0.2)
    info = encoder.load(context(data))
    state, _ = read_weights(weights_in(tmp_path / "cache")[0])
    assert data.labels is not None
    rows = stratified_split(data.labels, 0.2, np.random.default_rng(0))[1]
    images = torch.from_numpy(np.stack([data.image(row) for row in rows])).permute(0, 3, 1, 2)
    with torch.inference_mode():
        logits = F.linear(encoder.encode(encoder.preprocess(images)), state["fc.weight"], state["fc.bias"])
    accuracy = (logits.argmax(1).numpy() == data.labels[rows]).mean()
    assert accuracy == pytest.approx(info.details["held_out_accuracy"], abs=1.5 / len(rows))


class Decoded(ShapesDataset):
    """The same images, which are decoded one by one instead of lying in memory."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.images = self.array
        self.array = None  # type: ignore[assignment]

    def __len__(self) -> int:
        return len(self.images)

    def image(self, index: int) -> NDArray[np.uint8]:
        image: NDArray[np.uint8] = self.images[index]
        return image


class Streamed(Decoded):
    """Samples that are cheap in ascending order only: going back is an error here."""

    streaming = True

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.last = -1
        self.passes = 0

    def image(self, index: int) -> NDArray[np.uint8]:
        if index == 0:
            self.passes, self.last = self.passes + 1, -1
        assert index >= self.last
        self.last = index
        return super().image(index)


def test_a_stream_is_read_in_order(context: Context) -> None:
    """Once for the size, from its start, once for the number of channels and once for the images."""
    stream = Streamed(num_samples=300, size=16)
    assert automatic_size(stream) == 16
    assert (stream.passes, stream.last) == (1, 63)
    resize = Preprocessing(16, 16, torch.device("cpu")).resized
    found = resident(stream, 16, resize, 0.1, context(stream))
    assert torch.equal(found.images, torch.from_numpy(stream.images).permute(0, 3, 1, 2))
    assert stream.passes <= 3


@pytest.mark.parametrize("size", [16, 20])
def test_images_in_memory_are_read_like_any_others(context: Context, size: int) -> None:
    """By the slice and without decoding, with the same pixels."""
    options: dict[str, Any] = {"num_samples": 70, "size": 16, "channels": 1}
    whole, decoded = ShapesDataset(**options), Decoded(**options)
    whole.array.flags.writeable = False
    resize = Preprocessing(size, size, torch.device("cpu")).resized
    one, other = (resident(source, size, resize, 0.1, context(source)) for source in (whole, decoded))
    assert torch.equal(one.images, other.images)
    assert one.images.shape == (70, 1, size, size)
    assert torch.equal(one.held_out_rows, other.held_out_rows)


def test_every_image_is_mirrored_in_every_other_epoch(context: Context) -> None:
    data = ShapesDataset(num_samples=40, size=16)
    network = initialised(2, "cifar", 3, seed=0)
    loaded = resident(data, 16, lambda images: images, 0.0, context(data))
    recipe = recipe_for({"batch_size": 8}, torch.device("cpu"), 40, 16)
    training = Training(network, loaded, recipe, lambda images: images.float(), context(data))
    generator = torch.Generator().manual_seed(0)
    mirrored = training._mirrored(generator)
    assert 8 < int(mirrored.sum()) < 32
    for epoch in range(2):
        flips = mirrored ^ bool(epoch)
        state = generator.get_state()
        shown = torch.cat([images for images, _ in training._epoch(flips, generator)])
        generator.set_state(state)
        order = torch.randperm(40, generator=generator)
        shifts = torch.randint(0, 3, (40, 2), generator=generator)
        assert torch.equal(shown, cropped(loaded.images[order], 1, shifts, flips[order]))


def test_recipes_suit_the_device() -> None:
    def chosen(device: str, num_samples: int, image_size: int, **given: Any) -> tuple[int, int, float]:
        recipe = recipe_for(given, torch.device(device), num_samples, image_size)
        return recipe.epochs, recipe.batch_size, recipe.learning_rate

    assert chosen("cpu", 50_000, 32) == (8, 64, 0.1)
    assert chosen("cuda", 50_000, 32) == (12, 512, 0.4)
    assert chosen("cuda", 4_000, 28) == (12, 64, 0.1)
    assert chosen("cuda", 9_469, 224) == (12, 128, 0.1587)
    assert chosen("cuda", 50_000, 32, batch_size=64, epochs=3) == (3, 64, 0.1)
    assert chosen("cuda", 50_000, 32, learning_rate=1.0) == (12, 512, 1.0)
    with pytest.raises(OptionError, match="batch_size=-3"):
        chosen("cpu", 10, 32, batch_size=-3)


def test_a_full_memory_is_an_error_of_the_user(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Training, "run", full)
    with pytest.raises(OptionError, match="does not hold 16 images at a time: lower --set batch_size=16"):
        ResNet18(**SMALL).load(context(ShapesDataset()))


def test_nothing_held_out(context: Context) -> None:
    info = ResNet18(**SMALL, held_out=0.0).load(context(ShapesDataset()))
    assert info.details == {"held_out_accuracy": None, "num_held_out": 0, "num_trained": 24}


@pytest.mark.parametrize(
    ("dataset", "lack"),
    [
        (ShapesDataset(num_classes=0), "no labels"),
        (ShapesDataset(num_classes=1), "images of one class only"),
        (ShapesDataset(num_samples=1, num_classes=1), "images of one class only"),
    ],
)
def test_no_labels_to_learn_from(context: Context, dataset: DatasetSource, lack: str) -> None:
    with pytest.raises(WeightsError, match=f"{lack}.*--weights imagenet"):
        ResNet18(**SMALL).load(context(dataset))


def test_two_images_are_enough(context: Context) -> None:
    info = ResNet18(**SMALL).load(context(ShapesDataset(num_samples=2, num_classes=2)))
    assert info.details["num_trained"] == 2


def test_divergence_is_an_error(context: Context, tmp_path: Path) -> None:
    with pytest.raises(TrainingDiverged, match="learning_rate"):
        ResNet18(width=8, epochs=4, batch_size=4, learning_rate=1e30).load(context(ShapesDataset()))
    assert weights_in(tmp_path / "cache") == []


def test_large_images_use_the_imagenet_stem(context: Context, tmp_path: Path) -> None:
    info = ResNet18(width=8, epochs=1).load(context(ShapesDataset(num_samples=6, size=70)))
    assert info.settings["image_size"] == 70
    state, _ = read_weights(weights_in(tmp_path / "cache")[0])
    assert state["conv1.weight"].shape == (8, 3, 7, 7)


def test_one_cycle() -> None:
    rates = [one_cycle(step, 100, 0.4) for step in range(100)]
    assert max(rates) == pytest.approx(0.4)
    assert rates.index(max(rates)) in (24, 25)
    assert np.allclose(np.diff(rates[:25]), 0.016)
    assert np.allclose(np.diff(rates[26:]), -0.4 / 75)
    assert 0 < rates[-1] < 0.006
    for total in (1, 2, 3):
        assert all(0 < one_cycle(step, total, 1.0) <= 1 for step in range(total))


def test_stratified_split() -> None:
    labels = np.array([0] * 50 + [1] * 20 + [3] * 3 + [4], dtype=np.int64)
    train, held = stratified_split(labels, 0.2, np.random.default_rng(0))
    assert np.bincount(labels[held], minlength=5).tolist() == [10, 4, 0, 1, 0]
    assert sorted([*train, *held]) == list(range(len(labels)))
    assert (np.diff(held) > 0).all()
    everything = stratified_split(labels, 0.99, np.random.default_rng(0))[0]
    assert set(labels[everything]) == {0, 1, 3, 4}


@pytest.mark.parametrize("channels", [1, 3])
def test_crops_against_slices_of_the_padded_image(channels: int) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (5, channels, 7, 7), dtype=torch.uint8, generator=generator)
    shifts = torch.tensor([[0, 0], [2, 2], [4, 4], [1, 3], [3, 0]])
    flips = torch.tensor([False, False, True, True, False])
    found = cropped(images, 2, shifts, flips)
    padded = F.pad(images, [2] * 4)
    for row in range(5):
        top, left = shifts[row].tolist()
        expected = padded[row, :, top : top + 7, left : left + 7]
        assert torch.equal(found[row], expected.flip(2) if flips[row] else expected)
