"""`dcprune.api.sample` and what evaluation draws with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from dcprune.api.runs import balanced_labels, generate, image_seeds, reweight, sample, train
from dcprune.artifacts import Coreset
from dcprune.errors import DcpruneError, OptionError, OutputExists, UnknownName
from dcprune.interfaces import DatasetSource, Sampling
from dcprune.sources import open_dataset

pytestmark = pytest.mark.usefixtures("small_grids")

Options = dict[str, Any]


def test_samples_are_balanced_in_one_folder_a_class(reference: Path, tmp_path: Path) -> None:
    folder = sample(reference, output=tmp_path / "out", num_samples=23, num_inference_steps=2)
    counts = {path.name: len(list(path.iterdir())) for path in folder.iterdir()}
    assert counts["T-shirt_top"] == counts["Trouser"] == counts["Pullover"] == 3
    assert sorted(counts.values()) == [2] * 7 + [3] * 3
    with Image.open(folder / "Ankle_boot" / "000009.png") as image:
        assert image.size == (8, 8)
    read_back = open_dataset(folder)
    assert len(read_back) == 23


def test_images_do_not_depend_on_the_batch_or_on_how_many_there_are(reference: Path) -> None:
    sampling = Sampling("ddpm", 3, 1.5)
    images = {}
    for batch_size, count in ((1, 5), (4, 12), (12, 12)):
        labels, seeds = balanced_labels(count, 10), image_seeds(7, count)
        images[batch_size] = torch.cat(list(generate(reference, labels, seeds, sampling, batch_size=batch_size)))
    assert images[4].shape == (12, 1, 8, 8)
    assert int((images[4].int() - images[12].int()).abs().max()) <= 1
    assert int((images[1].int() - images[12][:5].int()).abs().max()) <= 1


def test_a_compiled_network_draws_the_same_images_in_batches_of_one_shape(
    reference: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the condition for it, a GPU and many images, taken away; dynamo's own backend runs on any machine."""
    from dcprune.api import generation

    labels, seeds, sampling = balanced_labels(10, 10), image_seeds(3, 10), Sampling("ddim", 3, 1.5)
    expected = torch.cat(list(generate(reference, labels, seeds, sampling, batch_size=4)))
    shapes: list[int] = []
    compile_network = torch.compile

    def spied(model: torch.nn.Module, **settings: Any) -> Any:
        model.register_forward_pre_hook(lambda _, inputs: shapes.append(len(inputs[0])))
        assert settings == {"dynamic": False}
        return compile_network(model, backend="eager", **settings)

    monkeypatch.setattr(generation, "_compiling_repays", lambda *_: True)
    monkeypatch.setattr(torch, "compile", spied)
    images = list(generate(reference, labels, seeds, sampling, batch_size=4))
    assert [len(each) for each in images] == [4, 4, 2]
    assert int((torch.cat(images).int() - expected.int()).abs().max()) <= 1
    assert set(shapes) == {8}


def test_seeds_never_meet_within_a_list_and_differ_between_lists() -> None:
    seeds = image_seeds(0, 50_000)
    assert len(set(seeds)) == 50_000
    assert all(0 <= seed < 2**32 for seed in seeds)
    assert set(seeds).isdisjoint(image_seeds(1, 50_000))
    assert image_seeds(0, 10) == seeds[:10]


def test_some_classes_can_be_drawn(reference: Path, tmp_path: Path) -> None:
    chosen = ["Bag", "Shirt"]
    folder = sample(reference, output=tmp_path / "out", num_samples=4, num_inference_steps=1, class_names=chosen)
    assert sorted(path.name for path in folder.iterdir()) == ["Bag", "Shirt"]
    with pytest.raises(UnknownName, match="Did you mean 'Shirt'"):
        sample(reference, output=tmp_path / "no", num_samples=4, class_names=["Shrit"])


def test_sampling_that_cannot_be_done_leaves_nothing_behind(reference: Path, scripted: Any, tmp_path: Path) -> None:
    for change, named in (
        ({"num_samples": 0}, "num_samples=0"),
        ({"num_inference_steps": 1001}, "num_inference_steps=1001"),
        ({"guidance_scale": float("nan")}, "guidance_scale"),
        ({"sampler": "plms"}, "plms"),
        ({"batch_size": 0}, "batch_size=0"),
    ):
        with pytest.raises(DcpruneError, match=named):
            sample(reference, output=tmp_path / "out", **change)
    (tmp_path / "taken").mkdir()
    with pytest.raises(OutputExists):
        sample(reference, output=tmp_path / "taken", num_samples=1)
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_class_less_images_train_and_sample(
    fashion: DatasetSource,
    rows: NDArray[np.int64],
    options: Options,
    make_coreset: Callable[..., Coreset],
    tmp_path: Path,
) -> None:
    (tmp_path / "images").mkdir()
    for row in rows[:12]:
        Image.fromarray(fashion.image(int(row))[..., 0]).save(tmp_path / "images" / f"{row}.png")
    changed = {**options, "coreset": None, "steps": 2}
    run = train(tmp_path / "images", output=tmp_path / "run", **changed)
    assert (run.dataset.num_classes, run.num_trained_samples) == (0, 12)
    folder = sample(tmp_path / "run", output=tmp_path / "out", num_samples=3, num_inference_steps=2)
    assert sorted(path.name for path in folder.iterdir()) == ["000000.png", "000001.png", "000002.png"]
    with pytest.raises(OptionError, match="no classes"):
        reweight(make_coreset(open_dataset(tmp_path / "images"), np.arange(4)), tmp_path / "run")
