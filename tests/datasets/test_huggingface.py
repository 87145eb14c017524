"""Hugging Face: columns, splits, and what is refused; the hub itself is out of reach."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import pyarrow
import pytest
from pyarrow import parquet

from dcprune.errors import DatasetError, MissingInput, OptionError, UnknownName
from dcprune.interfaces import DatasetSource
from dcprune.sources import identify, open_dataset, open_for
from dcprune.testing import check_dataset

if TYPE_CHECKING:
    from tests.datasets.conftest import Photos

pytestmark = pytest.mark.usefixtures("hf_cache")


@pytest.fixture
def saved(photos: Photos) -> Callable[..., str]:
    """Saves columns beside the first images, and gives the URI; `features` are those that are not plain."""

    def save(columns: dict[str, Any], features: dict[str, Any] | None = None, image: str = "image") -> str:
        count = len(next(iter(columns.values()))) if columns else 4
        path = photos.root.parent / "saved"
        shutil.rmtree(path, ignore_errors=True)
        images = [{"bytes": content, "path": None} for content in photos.contents[:count]]
        data = datasets.Dataset.from_dict({image: images, **columns})
        data.cast_column(image, datasets.Image()).cast(
            datasets.Features({**data.features, image: datasets.Image(), **(features or {})})
        ).save_to_disk(path)
        return f"hf:{path}"

    return save


def test_images_alone(saved: Callable[..., str]) -> None:
    source = open_dataset(saved({}, image="anything"))
    check_dataset(source)
    assert (source.labels, source.class_names, source.ids, source.captions) == (None, (), None, None)


def test_labels_of_any_name_and_kind(saved: Callable[..., str]) -> None:
    one = {"fine": datasets.ClassLabel(names=["x", "y", "z"])}
    source = open_dataset(saved({"fine": [2, 0, 2]}, one))
    assert source.class_names == ("x", "y", "z")
    assert source.labels is not None
    assert source.labels.tolist() == [2, 0, 2]
    assert open_dataset(saved({"category": ["b", "a", "b"]})).class_names == ("a", "b")
    assert open_dataset(saved({"label": [10, 9, 10]})).class_names == ("9", "10")


def test_several_columns_of_labels(saved: Callable[..., str]) -> None:
    both = {"fine": datasets.ClassLabel(names=["x", "y"]), "coarse": datasets.ClassLabel(names=["z"])}
    uri = saved({"fine": [1, 0], "coarse": [0, 0]}, both)
    with pytest.raises(OptionError, match=r"several columns of labels: fine, coarse.*--label-column"):
        open_dataset(uri)
    assert open_dataset(uri, columns={"label": "coarse"}).class_names == ("z",)
    with pytest.raises(UnknownName, match=r"'corse'\. Did you mean 'coarse'"):
        open_dataset(uri, columns={"label": "corse"})
    with pytest.raises(DatasetError, match=r"'image'.*no labels"):
        open_dataset(uri, columns={"label": "image"})
    with pytest.raises(DatasetError, match=r"'fine'.*no images"):
        open_dataset(uri, columns={"image": "fine", "label": "coarse"})
    with pytest.raises(UnknownName, match="caption column"):
        open_dataset(uri, columns={"caption": "image", "label": "coarse"})


def test_captions(saved: Callable[..., str]) -> None:
    source = open_dataset(saved({"text": ["one", None, "three"], "id": ["1", "2", "3"]}))
    assert list(source.captions or ()) == ["one", "", "three"]
    with pytest.raises(OptionError, match="may be the caption: text, prompt"):
        open_dataset(saved({"text": ["a"], "prompt": ["b"]}))


def test_absent_labels(saved: Callable[..., str]) -> None:
    feature = {"label": datasets.ClassLabel(names=["x"])}
    assert open_dataset(saved({"label": [-1, -1]}, feature)).labels is None
    for columns, features in (({"label": [0, -1]}, feature), ({"label": ["a", None]}, {})):
        with pytest.raises(DatasetError, match=r"1 samples .* have no label, the first in row 2"):
            open_dataset(saved(columns, features))


def test_splits_have_the_same_classes(photos: Photos) -> None:
    path = photos.root.parent / "saved"
    rows = [
        {"image": {"bytes": each, "path": None}, "label": name}
        for each, name in zip(photos.contents, "abc", strict=False)
    ]
    every = datasets.Dataset.from_list(rows)
    datasets.DatasetDict({"train": every, "validation": every.select([2])}).save_to_disk(path)
    train = open_dataset(f"hf:{path}")
    validation = open_for(identify(train), split="val")
    assert (validation.split, validation.class_names) == ("val", ("a", "b", "c"))
    assert validation.labels is not None
    assert validation.labels.tolist() == [2]
    with pytest.raises(DatasetError, match=r"no split 'test'\. Splits: train, validation"):
        open_dataset(f"hf:{path}", split="test")


def test_split_of_a_saved_part(photos: Photos) -> None:
    path = photos.root.parent / "saved"
    features = datasets.Features({"image": datasets.Image()})
    rows = {"image": [{"bytes": photos.contents[0], "path": None}]}
    datasets.Dataset.from_dict(rows, features, split=datasets.Split.TEST).save_to_disk(path)
    assert len(open_dataset(f"hf:{path}", split="test")) == 1
    with pytest.raises(DatasetError, match=r"no split 'val'"):
        open_dataset(f"hf:{path}", split="val")


def test_split_that_parquet_files_do_not_have(photos: Photos, hf_cache: Path) -> None:
    """Known from the names of the files: nothing is unpacked for it."""
    folder = photos.root.parent / "repository"
    folder.mkdir()
    parquet.write_table(pyarrow.table({"image": photos.contents[:2]}), folder / "train.parquet")
    with pytest.raises(DatasetError, match=r"no split 'test'\. Splits: train"):
        open_dataset(f"hf:{folder}", split="test")
    assert not list(hf_cache.rglob("*.arrow"))
    assert open_dataset(f"hf:{folder}").content(1) == photos.contents[1]
    with pytest.raises(DatasetError, match=r"no split 'test'\. Splits: train"):
        open_dataset(f"hf:{folder / 'train.parquet'}", split="test")


def paths(photos: Photos, entries: list[str], folder: Path) -> DatasetSource:
    """A parquet file of paths in the form of images without bytes."""
    rows = [{"bytes": None, "path": entry} for entry in entries]
    kind = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})
    parquet.write_table(pyarrow.table({"image": pyarrow.array(rows, kind)}), folder / "list.parquet")
    return open_dataset(f"hf:{folder / 'list.parquet'}")


def test_images_that_are_paths(photos: Photos) -> None:
    source = paths(photos, ["bag/0.png", str(photos.root / "shirt" / "0.png")], photos.root)
    check_dataset(source)
    assert source.ids == ("bag/0.png", "shirt/0.png")
    assert source.content(0) == photos.contents[0]
    (photos.root / "bag" / "0.png").unlink()
    with pytest.raises(DatasetError, match=r"0\.png'.*No such file"):
        source.image(0)
    with pytest.raises(DatasetError, match=r"row 1: the file .*0\.png' is not there"):
        paths(photos, ["bag/0.png"], photos.root)


@pytest.mark.parametrize("entry", ["../secret.png", "{outside}", "out.png"])
def test_a_path_that_leads_out_is_refused(photos: Photos, entry: str) -> None:
    outside = photos.root.parent / "secret.png"
    outside.write_bytes(photos.contents[0])
    (photos.root / "out.png").symlink_to(outside)
    with pytest.raises(DatasetError, match=r"row 2: .*leads out of the folder"):
        paths(photos, ["bag/0.png", entry.format(outside=outside)], photos.root)


def test_saved_state_that_leads_out_is_refused(photos: Photos, saved: Callable[..., str]) -> None:
    folder = Path(saved({}).removeprefix("hf:"))
    state = json.loads((folder / "state.json").read_text())
    (folder / state["_data_files"][0]["filename"]).rename(folder.parent / "elsewhere.arrow")
    state["_data_files"][0]["filename"] = "../elsewhere.arrow"
    (folder / "state.json").write_text(json.dumps(state))
    with pytest.raises(DatasetError, match="leads out of the folder"):
        open_dataset(f"hf:{folder}")


def test_repository_that_names_files_elsewhere_is_refused(photos: Photos) -> None:
    folder = photos.root.parent / "repository"
    folder.mkdir()
    parquet.write_table(pyarrow.table({"image": photos.contents[:2]}), folder.parent / "elsewhere.parquet")
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files: ../elsewhere.parquet\n---\n", encoding="utf-8"
    )
    with pytest.raises(DatasetError, match="cannot be opened"):
        open_dataset(f"hf:{folder}")


def test_scripts_are_not_run(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "data.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    with pytest.raises(DatasetError, match="scripts are no longer supported"):
        open_dataset(f"hf:{folder}")
    assert not (tmp_path / "ran").exists()


def test_other_kinds_of_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text('[{"image": "a.png"}]')
    with pytest.raises(DatasetError, match="of the kind 'json', not arrow, imagefolder, parquet"):
        open_dataset(f"hf:{tmp_path}")
    with pytest.raises(DatasetError, match=r"it is a file, but no \.parquet"):
        open_dataset(f"hf:{tmp_path / 'list.json'}")


@pytest.mark.parametrize("path", ["./nowhere", "/no/such/place", "~/no-such-place", "gone.parquet"])
def test_missing_path(path: str) -> None:
    with pytest.raises(MissingInput, match="does not exist"):
        open_dataset(f"hf:{path}")


def test_damaged_parquet(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(DatasetError, match=r"a\.parquet' cannot be opened"):
        open_dataset(f"hf:{tmp_path / 'a.parquet'}")


@pytest.mark.parametrize("download", [True, False])
def test_hub_out_of_reach(download: bool) -> None:
    with pytest.raises(DatasetError) as caught:
        open_dataset("hf:org/name/config@v1", download=download)
    message = str(caught.value)
    assert "'hf:org/name/config@v1' cannot be opened" in message
    assert "hf download org/name --repo-type dataset --revision v1 --local-dir FOLDER" in message
    assert "HF_HUB_OFFLINE" in message
    assert "'hf:FOLDER'" in message


@pytest.mark.parametrize("name", ["a/b/c/d", "org//name"])
def test_names_that_the_hub_does_not_have(name: str) -> None:
    with pytest.raises(DatasetError, match=r"ORG/NAME/CONFIG"):
        open_dataset(f"hf:{name}")


def test_without_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DatasetError, match=r"pip install 'dcprune\[datasets\]'"):
        open_dataset("hf:org/name")


def test_broken_samples_are_named(photos: Photos) -> None:
    folder = photos.root.parent
    rows = [
        {"bytes": b"", "path": "empty.png"},
        {"bytes": photos.contents[1][:200], "path": "cut.jpg"},
        {"bytes": None, "path": None},
        {"bytes": photos.contents[0], "path": "good.png"},
    ]
    kind = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})
    parquet.write_table(pyarrow.table({"image": pyarrow.array(rows, kind)}), folder / "list.parquet")
    source = open_dataset(f"hf:{folder / 'list.parquet'}")
    assert source.sizes.tolist() == [0, 200, 0, len(photos.contents[0])]
    for row, message in enumerate(("'0'.*empty", "'1'.*", "'2'.*no bytes and no path")):
        with pytest.raises(DatasetError, match=message):
            source.image(row)
    assert source.image(3).shape == (28, 28, 3)


@pytest.mark.parametrize("name", ["../a.png", "/a.png", "..", "x/../../a.png", "", "b.png"])
def test_names_that_cannot_be_files_of_a_folder_are_no_ids(photos: Photos, name: str) -> None:
    rows = [{"bytes": each, "path": path} for each, path in zip(photos.contents, [name, "b.png"], strict=False)]
    path = photos.root.parent / "list.parquet"
    parquet.write_table(pyarrow.table({"image": rows}), path)
    source = open_dataset(f"hf:{path}")
    assert source.ids is None
    check_dataset(source)


def test_a_folder_of_tables_says_how_it_is_opened(saved: Callable[..., str]) -> None:
    uri = saved({})
    with pytest.raises(DatasetError, match=f"holds no images.*'{uri}'"):
        open_dataset(uri.removeprefix("hf:"))
