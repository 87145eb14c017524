"""Which text a sample has, and which texts images are drawn for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dcprune.backends.stable_diffusion.backend import StableDiffusion
from dcprune.backends.stable_diffusion.prompts import Prompts, doubts, prompted
from dcprune.errors import OptionError, WeightsError
from dcprune.sources import open_dataset
from dcprune.subset import Subset
from dcprune.testing import ShapesDataset, preparation_context

TEMPLATE = "a photo of a {class}"


def test_classes_go_into_the_template() -> None:
    shapes = ShapesDataset(5)
    shapes.class_names = ("big_square", "disc", "stripes")
    found = prompted(shapes, "auto", TEMPLATE)
    assert found.texts == ("a photo of a big square", "a photo of a disc", "a photo of a stripes")
    assert found.of_sample.tolist() == [0, 1, 2, 0, 1]
    assert [found.prompts.choose(label, 7) for label in range(3)] == list(found.texts)


def test_captions_go_before_classes(captioned: Callable[..., Any]) -> None:
    dataset = captioned(15)
    found = prompted(dataset, "auto", TEMPLATE)
    assert [found.texts[position] for position in found.of_sample] == dataset.captions
    assert len(set(found.texts)) == len(found.texts) == 15
    assert prompted(dataset, "classes", TEMPLATE).texts[0] == "a photo of a square"
    for label in range(3):
        own = {caption for caption, own in zip(dataset.captions, dataset.labels, strict=True) if own == label}
        chosen = [found.prompts.choose(label, seed) for seed in range(100)]
        assert set(chosen) == own
        assert chosen == [found.prompts.choose(label, seed) for seed in range(100)]


def test_a_run_remembers_captions_from_all_over(captioned: Callable[..., Any]) -> None:
    dataset = captioned(5000, 1)
    dataset.captions = [f"number {number}" for number in range(5000)]
    (kept,) = prompted(dataset, "captions", TEMPLATE).prompts.by_label
    assert 900 <= len(kept) <= 1000
    assert (kept[0], kept[-1]) == ("number 0", "number 4995")


def test_data_without_classes_and_captions() -> None:
    found = prompted(ShapesDataset(4, 0), "auto", TEMPLATE)
    assert (found.texts, found.of_sample.tolist(), found.prompts.by_label) == (("",), [0] * 4, (("",),))
    for source, message in (("captions", "has no captions"), ("classes", "has no classes")):
        with pytest.raises(OptionError, match=message):
            prompted(ShapesDataset(4, 0), source, TEMPLATE)  # type: ignore[arg-type]


def test_captions_that_are_odd_are_named(captioned: Callable[..., Any], tmp_path: Path) -> None:
    assert doubts(ShapesDataset(4), "auto") is None
    dataset = captioned(15)
    assert doubts(dataset, "auto") is None
    dataset.captions = ["", " ", *dataset.captions[2:]]
    assert doubts(dataset, "captions") == f"2 of 15 captions of {dataset.uri!r} are empty."
    assert doubts(dataset, "classes") is None
    for number, image in enumerate(ShapesDataset(4).array):
        (tmp_path / "ab"[number % 2]).mkdir(exist_ok=True)
        Image.fromarray(image).save(tmp_path / "ab"[number % 2] / f"{number}.png")
    (tmp_path / "a" / "0.txt").write_text("one of four")
    for source in (open_dataset(tmp_path), Subset(open_dataset(tmp_path), np.arange(3))):
        assert source.captions is None
        assert str(doubts(source, "auto")).startswith("Not all images of")
        assert doubts(source, "classes") is None


def test_prompts_survive_a_file(tmp_path: Path) -> None:
    prompts = Prompts((("a café", "b"), ("",)))
    prompts.save(tmp_path)
    assert Prompts.load(tmp_path) == prompts
    (tmp_path / "prompts.json").write_text('{"by_label": [[]]}')
    with pytest.raises(WeightsError, match="a label has no prompt"):
        Prompts.load(tmp_path)


def test_conditions_are_those_of_the_samples_texts(captioned: Callable[..., Any], settings: dict[str, Any]) -> None:
    backend, dataset = StableDiffusion(**settings), captioned(12)
    data = backend.prepare(dataset, preparation_context())
    rows = torch.tensor([7, 0, 7])
    encoder = backend._pipeline().texts
    expected = encoder([dataset.captions[row] for row in rows.tolist()], torch.device("cpu"))
    torch.testing.assert_close(data.condition(rows), expected, rtol=1e-3, atol=2e-3)
    alone = torch.cat([encoder([dataset.captions[row]], torch.device("cpu")) for row in rows.tolist()])
    torch.testing.assert_close(expected, alone, rtol=1e-4, atol=1e-4)
    assert data.labels.tolist() == np.asarray(dataset.labels).tolist()


def test_a_run_without_conditions_has_no_prompts(settings: dict[str, Any]) -> None:
    backend = StableDiffusion(**settings)
    data = backend.prepare(ShapesDataset(), preparation_context())
    backend.build(num_classes=0, sample_shape=data.sample_shape, seed=0)
    assert backend._asked.by_label == (("",),)
