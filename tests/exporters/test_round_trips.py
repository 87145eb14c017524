"""What is exported, opened again by dcprune's own sources: the same images, labels, captions and ids."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from dcprune import export, formats, sources
from dcprune.artifacts import Classes, Coreset
from dcprune.errors import OptionError
from dcprune.interfaces import DatasetSource
from dcprune.testing import ShapesDataset, gaussian_embeddings

MakeCoreset = Callable[[DatasetSource, Sequence[int]], Coreset]
ROWS = [0, 2, 3, 5]
MIXED = [0, 2, 3, 4]


def opened(form: str, folder: Path) -> DatasetSource:
    return sources.open_dataset({"folder": f"{folder}", "hf": f"hf:{folder}", "webdataset": f"wds:{folder}"}[form])


def labelled(source: DatasetSource) -> list[str]:
    assert source.labels is not None
    return [source.class_names[label] for label in source.labels]


@pytest.fixture
def captioned(pets: Path) -> Path:
    """The pets with a text file beside each."""
    for number, path in enumerate(sorted(pets.rglob("*.*"))):
        if path.is_file():
            path.with_suffix(".txt").write_text(f"pet {number}, \N{CAT FACE}")
    (pets / "dogs" / "rex.JPEG").rename(pets / "dogs" / "max.JPEG")
    (pets / "dogs" / "max.txt").write_text("another\npet")
    return pets


@pytest.mark.parametrize("form", ["folder", "hf", "webdataset"])
def test_image_files_come_back_byte_for_byte(
    captioned: Path, form: str, make_coreset: MakeCoreset, tmp_path: Path
) -> None:
    before = sources.open_dataset(captioned)
    assert before.captions is not None
    after = opened(form, export(make_coreset(before, ROWS), form, tmp_path / "out"))
    assert [after.content(row) for row in range(4)] == [before.content(row) for row in ROWS]
    assert after.class_names == before.class_names
    assert labelled(after) == [labelled(before)[row] for row in ROWS]
    assert after.captions is not None
    assert [after.captions[row] for row in range(4)] == [before.captions[row] for row in ROWS]
    if form == "folder":
        assert before.ids is not None
        assert list(after.ids or ()) == [before.ids[row] for row in ROWS]


@pytest.mark.parametrize("form", ["folder", "hf", "webdataset"])
@pytest.mark.parametrize("num_classes", [0, 3])
@pytest.mark.parametrize("channels", [1, 3])
def test_arrays_come_back_pixel_for_pixel(
    form: str, num_classes: int, channels: int, make_coreset: MakeCoreset, tmp_path: Path
) -> None:
    before = ShapesDataset(num_classes=num_classes, channels=channels)
    after = opened(form, export(make_coreset(before, MIXED), form, tmp_path / "out", dataset=before))
    wanted = [np.broadcast_to(before.array[row], (16, 16, 3)).tobytes() for row in MIXED]
    found = [after.image(row).tobytes() for row in range(4)]
    if num_classes == 0:
        assert found == wanted
        assert after.labels is None
    else:
        named = [labelled(before)[row] for row in MIXED]
        assert sorted(zip(labelled(after), found, strict=True)) == sorted(zip(named, wanted, strict=True))
        assert after.class_names == (before.class_names if form != "folder" else tuple(sorted(before.class_names)))


def test_an_export_can_be_exported(captioned: Path, make_coreset: MakeCoreset, tmp_path: Path) -> None:
    """A coreset of shards, which are a dataset like any other."""
    first = opened(
        "webdataset", export(make_coreset(sources.open_dataset(captioned), range(6)), "webdataset", tmp_path / "w")
    )
    second = opened("hf", export(make_coreset(first, ROWS), "hf", tmp_path / "h"))
    third = opened("folder", export(make_coreset(second, [1, 2]), "folder", tmp_path / "f"))
    assert [third.content(row) for row in range(2)] == [first.content(row) for row in (2, 3)]
    assert third.class_names == ("cats", "dogs")


def test_files_of_a_manifest_are_linked_into_a_class_tree(
    pets: Path, make_coreset: MakeCoreset, tmp_path: Path
) -> None:
    rows = [("cats/tom.png", "tabby"), ("dogs/rex.png", "hound"), ("cats/v1.2.webp", "hound")]
    lines = "".join(f"{name},{label}\n" for name, label in rows)
    (pets / "list.csv").write_text(f"image,label\n{lines}")
    source = sources.open_dataset(pets / "list.csv")
    folder = export(make_coreset(source, [0, 1, 2]), "folder", tmp_path / "out", link="symlink")
    links = {path.relative_to(folder).as_posix(): path.resolve() for path in folder.rglob("*") if path.is_symlink()}
    assert links == {
        "tabby/cats_tom.png": pets / "cats/tom.png",
        "hound/dogs_rex.png": pets / "dogs/rex.png",
        "hound/cats_v1.2.webp": pets / "cats/v1.2.webp",
    }


def test_a_dataset_of_hugging_face_keeps_all_its_columns(make_coreset: MakeCoreset, tmp_path: Path) -> None:
    import datasets
    from PIL import Image

    shapes = ShapesDataset()
    columns = {
        "image": [Image.fromarray(image) for image in shapes.array],
        "label": shapes.labels,
        "area": [row / 7 for row in range(24)],
    }
    features = datasets.Features(
        image=datasets.Image(),
        label=datasets.ClassLabel(names=list(shapes.class_names)),
        area=datasets.Value("float32"),
    )
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(tmp_path / "all")
    source = opened("hf", tmp_path / "all")
    found = datasets.load_from_disk(str(export(make_coreset(source, MIXED), "hf", tmp_path / "some")))
    assert found.features == features
    assert found["area"][:] == pytest.approx([row / 7 for row in MIXED])
    assert [np.asarray(each).tobytes() for each in found["image"]] == [shapes.array[row].tobytes() for row in MIXED]


def test_pseudo_classes_become_the_classes_of_an_export(pets: Path, make_coreset: MakeCoreset, tmp_path: Path) -> None:
    base = sources.open_dataset(pets)
    template = gaussian_embeddings()
    classes = Classes(
        labels=np.array([0, 1, 0, 1, 0, 1]),
        centroids=np.zeros((2, 8), dtype=np.float32),
        class_names=("cluster-0", "cluster-1"),
        encoder=template.encoder,
        seed=0,
        inertia=0.0,
        dataset=sources.identify(base),
        provenance=template.provenance,
    )
    formats.write_classes(classes, tmp_path / "classes.safetensors")
    source = sources.open_dataset(f"pseudo:{tmp_path / 'classes.safetensors'}")
    coreset = make_coreset(source, [0, 1, 5])
    folder = export(coreset, "folder", tmp_path / "links", link="hardlink")
    after = sources.open_dataset(folder)
    assert labelled(after) == ["cluster-0", "cluster-1", "cluster-1"]
    assert {after.content(row) for row in range(3)} == {base.content(row) for row in (0, 1, 5)}
    with pytest.raises(OptionError, match="lies in the dataset's folder"):
        export(coreset, "folder", pets / "core")
