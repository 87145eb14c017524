from __future__ import annotations

import csv
import json
import shutil
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest
import torchvision
from PIL import Image
from webdataset import tariterators

from dcprune import export, formats, sources
from dcprune.api.exporting import sample_weights
from dcprune.artifacts import ClassWeights, Coreset
from dcprune.errors import ArtifactError, DatasetError, DatasetMismatch, OptionError, OutputExists, UnknownName
from dcprune.interfaces import DatasetSource
from dcprune.progress import SILENT
from dcprune.testing import ShapesDataset

MakeCoreset = Callable[[DatasetSource, Sequence[int]], Coreset]
MakeWeights = Callable[[DatasetSource, Sequence[float]], ClassWeights]
ROWS = [1, 2, 5, 6, 7, 12]


class Warnings:
    """A progress that keeps what it is told."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    task = staticmethod(SILENT.task)
    note = staticmethod(SILENT.note)

    def warn(self, message: str) -> None:
        self.warnings.append(message)


def files_in(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".dcprune.json"
    }


def read_shards(folder: Path) -> list[dict[str, Any]]:
    """Samples as the webdataset library groups them; it leaves files open that it opens itself."""
    samples = []
    for path in sorted(folder.glob("*.tar")):
        with path.open("rb") as stream:
            members = tariterators.tar_file_expander([{"stream": stream, "url": str(path)}])
            samples += list(tariterators.group_by_keys(members))
    return samples


@pytest.mark.parametrize("link", [None, "copy", "symlink", "hardlink"])
def test_a_folder_has_the_same_files_and_leaves_the_originals_alone(
    pets: Path, kept_pets: Path, tmp_path: Path, link: str | None
) -> None:
    before = files_in(pets)
    folder = export(kept_pets, "folder", tmp_path / "core", link=link)
    kept = formats.read_coreset(kept_pets).ids
    assert files_in(folder) == {name: before[name] for name in kept or ()}
    assert files_in(pets) == before
    first = folder / "cats/old/kit ten.jpg"
    assert first.is_symlink() == (link == "symlink")
    assert first.samefile(pets / "cats/old/kit ten.jpg") == (link in ("symlink", "hardlink"))


def test_other_programs_and_we_open_an_exported_folder(kept_pets: Path, tmp_path: Path) -> None:
    folder = export(kept_pets, "folder", tmp_path / "core")
    theirs = torchvision.datasets.ImageFolder(folder)
    ours = sources.open_dataset(folder)
    coreset = formats.read_coreset(kept_pets)
    assert theirs.classes == list(ours.class_names) == ["cats", "dogs"]
    assert list(ours.ids or ()) == list(coreset.ids or ())
    assert theirs.targets == [0, 0, 1, 1]
    record = formats.read_export(folder)
    assert (record.form, record.num_samples, record.dataset) == ("folder", 4, coreset.dataset)
    assert [Path(each.path) for each in record.provenance.inputs] == [kept_pets]


@pytest.mark.parametrize("channels", [1, 3])
def test_arrays_become_png_files_of_the_same_pixels(channels: int, make_coreset: MakeCoreset, tmp_path: Path) -> None:
    source = ShapesDataset(channels=channels)
    source.class_names = ("a/b", "a b", "A_B")  # not fit for folders, and the same where case does not count
    folder = export(make_coreset(source, ROWS), "folder", tmp_path / "core", dataset=source)
    found = {}
    for path in folder.rglob("*.png"):
        with Image.open(path) as image:
            found[int(path.stem)] = (np.asarray(image).reshape(16, 16, channels), path.parent.name)
    assert sorted(found) == ROWS
    assert all(np.array_equal(found[row][0], source.array[row]) for row in ROWS)
    assert len({found[row][1] for row in ROWS}) == 3
    assert {found[1][1], found[7][1]} == {"a_b-1"}


def test_class_less_data_stays_flat(make_coreset: MakeCoreset, tmp_path: Path) -> None:
    source = ShapesDataset(num_classes=0)
    folder = export(make_coreset(source, ROWS), "folder", tmp_path / "core", dataset=source)
    assert [path.name for path in sorted(folder.glob("*.png"))] == [f"{row:02d}.png" for row in ROWS]
    assert sources.open_dataset(folder).labels is None
    table = export(make_coreset(source, ROWS), "csv", tmp_path / "core.csv", dataset=source)
    assert pd.read_csv(table)["label"].isna().all()


def test_ids_that_are_no_class_tree_become_safe_names(make_coreset: MakeCoreset, tmp_path: Path) -> None:
    class Odd(ShapesDataset):
        ids = ("x/y.png", "x:y", ".hidden", "\N{SNOWMAN}?", *(f"n{row}" for row in range(20)))  # type: ignore[assignment]

    folder = export(make_coreset(Odd(), [0, 1, 2, 3]), "folder", tmp_path / "core", dataset=Odd())
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    assert names == ["disc/x_y-1.png", "square/image-3.png", "square/x_y-0.png", "stripes/hidden-2.png"]


def test_a_class_without_samples_is_said(make_coreset: MakeCoreset, tmp_path: Path) -> None:
    source, progress = ShapesDataset(), Warnings()
    export(make_coreset(source, [0, 3]), "folder", tmp_path / "core", dataset=source, progress=progress)
    (warning,) = progress.warnings
    assert "disc, stripes" in warning


def test_lists_and_indices_need_no_dataset(pets: Path, kept_pets: Path, tmp_path: Path) -> None:
    coreset = formats.read_coreset(kept_pets)
    paths = export(kept_pets, "list", tmp_path / "paths.txt", absolute=True).read_text().splitlines()
    assert [Path(path).read_bytes() for path in paths] == [(pets / name).read_bytes() for name in coreset.ids or ()]
    shutil.rmtree(pets)
    rows = np.load(export(kept_pets, "numpy", tmp_path / "rows"), allow_pickle=False)
    assert rows.dtype == np.int64
    assert rows.tolist() == [0, 2, 3, 5]
    assert export(kept_pets, "list", tmp_path / "ids.txt").read_text().splitlines() == list(coreset.ids or ())


def test_a_list_of_a_dataset_without_ids_is_its_indices(make_coreset: MakeCoreset, tmp_path: Path) -> None:
    coreset = make_coreset(ShapesDataset(), ROWS)
    assert export(coreset, "list", tmp_path / "ids.txt").read_text().split() == [str(row) for row in ROWS]


def test_hugging_face_opens_it_with_the_same_images_labels_and_captions(
    make_coreset: MakeCoreset, tmp_path: Path
) -> None:
    class Captioned(ShapesDataset):
        captions = tuple(f"shape \N{DEGREE SIGN} {row}" for row in range(24))  # type: ignore[assignment]

    source = Captioned()
    for name in ("one", "two"):
        export(make_coreset(source, ROWS), "hf", tmp_path / name, dataset=source)
    found = datasets.load_from_disk(str(tmp_path / "one"))
    assert found.features["label"].names == list(source.class_names)
    assert source.labels is not None
    assert found["label"][:] == source.labels[ROWS].tolist()
    assert found["caption"][:] == [source.captions[row] for row in ROWS]
    for position, row in enumerate(ROWS):
        assert np.array_equal(np.asarray(found[position]["image"]), source.array[row])
    assert files_in(tmp_path / "one") == files_in(tmp_path / "two")


def test_hugging_face_keeps_the_bytes_of_image_files(pets: Path, kept_pets: Path, tmp_path: Path) -> None:
    found = datasets.load_from_disk(str(export(kept_pets, "hf", tmp_path / "hf")))
    raw = found.cast_column("image", datasets.Image(decode=False))
    assert [row["image"]["bytes"] for row in raw] == [(pets / row["id"]).read_bytes() for row in raw]


def test_webdataset_reads_shards_with_the_ids_as_keys(pets: Path, kept_pets: Path, tmp_path: Path) -> None:
    coreset = formats.read_coreset(kept_pets)
    folders = [export(kept_pets, "webdataset", tmp_path / name, shard_size=3) for name in ("one", "two")]
    assert files_in(folders[0]) == files_in(folders[1])
    assert sorted(files_in(folders[0])) == ["000000.tar", "000001.tar", "classes.txt"]
    samples = read_shards(folders[0])
    assert [each["__key__"] for each in samples] == ["cats/old/kit ten", "cats/v1_2", "dogs/__x", "dogs/rex"]
    facts = [json.loads(each["json"]) for each in samples]
    assert [each["id"] for each in facts] == list(coreset.ids or ())
    assert [int(each["cls"]) for each in samples] == [0, 0, 1, 1]
    assert [each["class"] for each in facts] == ["cats", "cats", "dogs", "dogs"]
    images = [next(each[kind] for kind in ("jpg", "webp", "bmp", "png") if kind in each) for each in samples]
    assert images == [(pets / name).read_bytes() for name in coreset.ids or ()]


def test_keys_are_distinct_and_no_member_is_skipped(pets: Path, make_coreset: MakeCoreset, tmp_path: Path) -> None:
    (pets / "cats").rename(pets / "__cats__")
    source = sources.open_dataset(pets)
    folder = export(make_coreset(source, range(6)), "webdataset", tmp_path / "wds")
    samples = read_shards(folder)
    assert [json.loads(each["json"])["index"] for each in samples] == list(range(6))
    assert {"dogs/rex-4", "dogs/rex-5"} <= {each["__key__"] for each in samples}


def test_shards_carry_no_trace_of_where_they_were_written(kept_pets: Path, tmp_path: Path) -> None:
    with tarfile.open(export(kept_pets, "webdataset", tmp_path / "wds") / "000000.tar") as shard:
        for member in shard:
            assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")


def test_weights_of_a_table_average_one_and_read_back_exactly(
    make_coreset: MakeCoreset, make_weights: MakeWeights, tmp_path: Path
) -> None:
    source = ShapesDataset()
    assert source.labels is not None
    coreset = make_coreset(source, [0, 1, 2, 3, 6, 9])  # four squares, a disc, stripes
    weights = make_weights(source, [0.3, 0.9, 1.8])
    path = export(coreset, "csv", tmp_path / "w.csv", dataset=source, class_weights=weights, dropped=True)
    table = pd.read_csv(path)
    assert table["index"].tolist() == list(range(24))
    assert table["class"].tolist() == [source.class_names[label] for label in source.labels]
    kept = table["weight"] > 0
    assert table.loc[kept, "index"].tolist() == list(coreset.indices)
    scale = 6 / (4 * 0.3 + 0.9 + 1.8)
    assert table.loc[kept, "weight"].tolist() == pytest.approx([scale * [0.3, 0.9, 1.8][i] for i in table[kept].label])
    assert table.loc[kept, "weight"].mean() == pytest.approx(1, abs=1e-15)
    with path.open(newline="") as stream:
        exact = [float(row["weight"]) for row in csv.DictReader(stream)]
    assert [exact[row] for row in coreset.indices] == sample_weights(
        np.array([0.3, 0.9, 1.8]), source.labels[kept]
    ).tolist()
    short = pd.read_csv(export(coreset, "csv", tmp_path / "s.csv", dataset=source, class_weights=weights))
    assert short["weight"].tolist() == pytest.approx(table.loc[kept, "weight"].tolist())


def test_weights_are_those_of_the_training_loss(
    make_coreset: MakeCoreset, make_weights: MakeWeights, tmp_path: Path
) -> None:
    import torch

    from dcprune.training.objectives import WeightedLoss

    source = ShapesDataset()
    assert source.labels is not None
    coreset, weights = make_coreset(source, [0, 1, 2, 3, 6]), make_weights(source, [0.3, 0.9, 1.8])
    table = pd.read_csv(export(coreset, "csv", tmp_path / "w.csv", dataset=source, class_weights=weights))
    loss = WeightedLoss(np.array([0.3, 0.9, 1.8]), source.labels[list(coreset.indices)], torch.device("cpu"))
    assert table["weight"].tolist() == pytest.approx(loss.class_weights[table["label"]].tolist())


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad", ["../secret.png", "cats/../../x.png", "/etc/passwd", "C:\\x.png", "\\\\host\\x", "..\\x", "a\0b"]
)
@pytest.mark.parametrize("form", ["list", "numpy", "folder", "webdataset"])
def test_ids_that_leave_the_folder_are_refused(kept_pets: Path, tmp_path: Path, bad: str, form: str) -> None:
    document = json.loads(kept_pets.read_text())
    document["ids"][1] = bad
    kept_pets.write_text(json.dumps(document))
    with pytest.raises(ArtifactError, match="leaves the dataset's folder"):
        export(kept_pets, form, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_ids_of_other_samples_are_refused(kept_pets: Path, tmp_path: Path) -> None:
    document = json.loads(kept_pets.read_text())
    document["ids"][1] = "cats/other.png"
    kept_pets.write_text(json.dumps(document))
    with pytest.raises(DatasetMismatch, match="ids"):
        export(kept_pets, "folder", tmp_path / "out")


def test_another_dataset_is_refused(pets: Path, kept_pets: Path, make_weights: MakeWeights, tmp_path: Path) -> None:
    weights = make_weights(ShapesDataset(), [1.0, 1.0, 1.0])
    with pytest.raises(DatasetMismatch):
        export(kept_pets, "csv", tmp_path / "out.csv", class_weights=weights)
    (pets / "cats" / "tom.png").unlink()
    with pytest.raises(DatasetMismatch):
        export(kept_pets, "folder", tmp_path / "out")


@pytest.mark.parametrize(
    ("form", "options", "error", "says"),
    [
        ("zip", {}, UnknownName, "form of export"),
        ("folder", {"link": "sym"}, UnknownName, "symlink"),
        ("folder", {"shard_size": 3}, OptionError, "--to webdataset"),
        ("numpy", {"class_weights": "w.json"}, OptionError, "--to webdataset and --to csv"),
        ("list", {"dropped": True}, OptionError, "--all"),
        ("webdataset", {"shard_size": 0}, OptionError, "below 1"),
    ],
)
def test_options_of_another_form_are_refused(
    kept_pets: Path, tmp_path: Path, form: str, options: dict[str, object], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        export(kept_pets, form, tmp_path / "out", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(("form", "options"), [("folder", {"link": "symlink"}), ("list", {"absolute": True})])
def test_arrays_have_no_files_to_point_to(
    make_coreset: MakeCoreset, tmp_path: Path, form: str, options: dict[str, object]
) -> None:
    source = ShapesDataset()
    with pytest.raises(OptionError, match="not files of their own"):
        export(make_coreset(source, ROWS), form, tmp_path / "out", dataset=source, **options)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_only_an_earlier_export_is_replaced(kept_pets: Path, tmp_path: Path) -> None:
    folder = export(kept_pets, "folder", tmp_path / "core")
    with pytest.raises(OutputExists, match="--overwrite"):
        export(kept_pets, "folder", folder)
    export(kept_pets, "webdataset", folder, overwrite=True)
    assert sorted(files_in(folder)) == ["000000.tar", "classes.txt"]
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputExists, match="not an earlier export"):
        export(kept_pets, "folder", precious, overwrite=True)
    assert files_in(precious) == {"thesis.txt": b"years of work"}


def test_the_dataset_is_never_replaced_nor_added_to(pets: Path, kept_pets: Path, tmp_path: Path) -> None:
    before = files_in(pets)
    for place in (pets, pets / "core", pets / "cats" / "core", tmp_path):
        with pytest.raises(OptionError):
            export(kept_pets, "folder", place, overwrite=True)
    with pytest.raises(OutputExists, match="what is exported"):
        export(kept_pets, "numpy", kept_pets, overwrite=True)
    assert files_in(pets) == before


def test_an_export_that_others_link_to_is_not_replaced(
    kept_pets: Path, make_coreset: MakeCoreset, tmp_path: Path
) -> None:
    originals = export(kept_pets, "folder", tmp_path / "originals")
    first = make_coreset(sources.open_dataset(originals), [0, 1, 2, 3])
    links = export(first, "folder", tmp_path / "links", link="symlink")
    second = make_coreset(sources.open_dataset(links), [0])
    with pytest.raises(OptionError, match="holds files of the dataset"):
        export(second, "folder", originals, overwrite=True)
    assert len(files_in(originals)) == 4


def test_nothing_is_left_of_an_export_that_fails(
    pets: Path, make_coreset: MakeCoreset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = sources.open_dataset(pets)
    coreset = make_coreset(source, range(6))
    (tmp_path / "out").mkdir()
    for form in ("folder", "webdataset", "hf"):
        (pets / "dogs" / "rex.png").write_bytes(b"no image, of the same size".ljust(source.sizes[5], b"."))
        with pytest.raises(DatasetError, match="rex"):
            export(coreset, form, tmp_path / "out" / form)
    assert list((tmp_path / "out").iterdir()) == []


def test_an_id_with_a_line_break_is_no_line_of_a_list(make_coreset: MakeCoreset, tmp_path: Path) -> None:
    class Odd(ShapesDataset):
        ids = tuple(f"a\n{row}" for row in range(24))  # type: ignore[assignment]

    with pytest.raises(DatasetError, match="line break"):
        export(make_coreset(Odd(), ROWS), "list", tmp_path / "ids.txt")
    table = pd.read_csv(export(make_coreset(Odd(), ROWS), "csv", tmp_path / "ids.csv", dataset=Odd()))
    assert table["id"].tolist() == [f"a\n{row}" for row in ROWS]
