"""Pages about data of other shapes than ten classes of small images."""

from __future__ import annotations

import re
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from dcprune import formats, sources
from tests.report.conftest import report
from tests.report.test_page import Tree

if TYPE_CHECKING:
    from dcprune.interfaces import DatasetSource
    from tests.report.conftest import Chain

    MakeChain = Callable[[Path, DatasetSource], Chain]


@pytest.fixture(scope="module")
def clothes() -> DatasetSource:
    return sources.open_dataset("fashion-mini")


def write_images(folder: Path, source: DatasetSource, indices: range, size: tuple[int, int]) -> None:
    folder.mkdir(parents=True)
    for index in indices:
        Image.fromarray(source.image(index)[..., 0]).convert("RGB").resize(size).save(folder / f"{index}.png")


def test_class_less_data(make_chain: MakeChain, clothes: DatasetSource, tmp_path: Path) -> None:
    write_images(tmp_path / "flat", clothes, range(60), (28, 20))
    chain = make_chain(tmp_path, sources.open_dataset(tmp_path / "flat"))
    html = report(chain.runs, output=tmp_path / "report.html").read_text()
    assert re.findall(r'<section id="(\w+)"', html) == [
        "chain",
        "results",
        "choice",
        "training",
        "metrics",
        "cost",
        "commands",
    ]
    assert "no classes" in html
    assert 'alt="8 kept images"' in html
    assert "over all classes together" not in html
    assert "Images per class" not in html
    assert "Scores within each class" not in html


def test_many_classes_of_photos(make_chain: MakeChain, clothes: DatasetSource, tmp_path: Path) -> None:
    for label in range(45):
        write_images(tmp_path / "many" / f"class-{label:02d}", clothes, range(6 * label, 6 * label + 6), (60, 80))
    chain = make_chain(tmp_path, sources.open_dataset(tmp_path / "many"))
    html = report(chain.runs, output=tmp_path / "report.html").read_text()
    assert len(html.encode()) < 5_000_000
    assert "24 of 45 classes" in html
    assert "12 classes with the highest and the 12 with the lowest weight of 45" in html
    trajectory = next(each for each in re.findall(r"<svg.*?</svg>", html, re.DOTALL) if "Weights while" in each)
    assert trajectory.count("<polyline") == 45
    assert len(re.findall(r"class-\d\d</text>", trajectory)) == 10
    assert "data:image/webp" in html
    assert "<title>many: moderate 17" in html


def test_coreset_of_everything(chain: Chain, tmp_path: Path) -> None:
    """Nothing is dropped, so half of every picture is empty."""
    coreset = formats.read_coreset(chain.folder / "coreset.json")
    everything = coreset.model_copy(
        update={
            "indices": tuple(range(coreset.dataset.num_samples)),
            "num_selected": coreset.dataset.num_samples,
            "class_counts": dict.fromkeys(coreset.dataset.class_names, 400),
        }
    )
    formats.write_coreset(everything, chain.folder / "coreset.json", overwrite=True)
    html = report([chain.core], output=tmp_path / "report.html").read_text()
    assert "400 of 400" in html
    assert "0 dropped" in html


def test_two_runs_of_one_name_are_told_apart(chain: Chain, tmp_path: Path) -> None:
    second = chain.folder / "again" / "core"
    second.parent.mkdir()
    chain.random.rename(second)
    html = report([chain.core, second], output=tmp_path / "report.html").read_text()
    assert "runs/core" in html
    assert "again/core" in html


def test_one_dimension_and_one_class_of_scores(make_chain: MakeChain, tmp_path: Path) -> None:
    for index in range(45):
        folder = tmp_path / "grey" / "only"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.full((1, 1), 7, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    chain = make_chain(tmp_path, sources.open_dataset(tmp_path / "grey"))
    html = report(chain.runs, output=tmp_path / "report.html").read_text()
    assert "nan" not in html


def linked(folder: Path, classes: dict[str, int], picture: Path) -> DatasetSource:
    """A folder of classes whose images are all the same file."""
    for name, count in classes.items():
        (folder / name).mkdir(parents=True)
        for index in range(count):
            (folder / name / f"{index}.png").hardlink_to(picture)
    return sources.open_dataset(folder)


@pytest.fixture
def picture(tmp_path: Path, clothes: DatasetSource) -> Path:
    Image.fromarray(clothes.image(0)[..., 0]).save(tmp_path / "one.png")
    return tmp_path / "one.png"


def test_a_thousand_classes_stay_small_and_readable(make_chain: MakeChain, picture: Path, tmp_path: Path) -> None:
    source = linked(tmp_path / "many", {f"n{index:08d}": 5 for index in range(1000)}, picture)
    chain = make_chain(tmp_path, source)
    html = report(chain.runs, output=tmp_path / "report.html").read_text()
    assert len(html.encode()) < 2_500_000
    tree = Tree(html)
    assert max(map(len, (str(each["aria-label"]) for each in tree.all("svg")))) < 400
    assert "24 of 1000 classes" in html
    assert tree.text.count("n00000500") < 30


@pytest.mark.parametrize("classes", [{"only": 12}, {f"class {index}": 1 for index in range(7)}, {"a": 30, "b": 1}])
def test_few_images_of_few_classes(
    classes: dict[str, int], make_chain: MakeChain, picture: Path, tmp_path: Path
) -> None:
    source = linked(tmp_path / "few", classes, picture)
    html = report(make_chain(tmp_path, source).runs, output=tmp_path / "report.html").read_text()
    Tree(html)
    assert "nan" not in html
    assert not re.search(r"\binf\b", html)


def test_names_of_any_kind_are_shown_whole_and_apart(make_chain: MakeChain, picture: Path, tmp_path: Path) -> None:
    names = ('<b>bold & "quoted"', "تيشيرت", "a" * 180, "line\N{ZERO WIDTH JOINER}joined", "ünïcödé 猫")
    chain = make_chain(tmp_path, linked(tmp_path / "names", dict.fromkeys(names, 10), picture))
    html = report(chain.runs, output=tmp_path / "report.html").read_text()
    tree = Tree(html)
    for name in names:
        assert f"<bdi>{escape(name, quote=False)}</bdi>" in html.replace("&#34;", '"')
    assert "<b>" not in html
    assert tree.text.count("a" * 180) >= 3
