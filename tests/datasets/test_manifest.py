"""Manifests: which columns they have, and which files they may name."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from dcprune.errors import DatasetError, MissingInput, OptionError, UnknownName
from dcprune.interfaces import DatasetSource
from dcprune.sources import identify, open_dataset, open_for
from dcprune.testing import check_dataset

if TYPE_CHECKING:
    from tests.datasets.conftest import Photos


def opened(path: Path, text: str | bytes, **options: Any) -> DatasetSource:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return open_dataset(path, **options)


def test_paths_alone(photos: Photos) -> None:
    """Class-less data in the order of the lines; the byte order mark of a spreadsheet and empty lines are skipped."""
    names = photos.names[::-1]
    source = opened(photos.root / "list.csv", "\ufeffFile_Name\r\n\r\n" + "\r\n".join(names) + "\r\n")
    check_dataset(source)
    assert (source.labels, source.class_names, source.captions) == (None, (), None)
    assert source.ids == tuple(names)
    assert source.content(0) == photos.contents[-1]


def test_ways_to_write_a_path(photos: Photos) -> None:
    (photos.root / "link.png").symlink_to("bag/0.png")
    entries = ["bag/2.png", "./bag//4.png", "shirt/../bag/0.png", str(photos.root / "shirt" / "0.png"), "link.png"]
    source = opened(photos.root / "list.csv", "path\n" + "\n".join(entries))
    assert source.ids == ("bag/2.png", "bag/4.png", "bag/0.png", "shirt/0.png", "link.png")
    check_dataset(source)


def test_relative_to_the_manifest_and_not_to_the_current_folder(
    photos: Photos, monkeypatch: pytest.MonkeyPatch
) -> None:
    (photos.root / "list.csv").write_text("path\nbag/0.png\n")
    monkeypatch.chdir(photos.root.parent)
    source = open_dataset("photos/list.csv")
    assert source.uri == "photos/list.csv"
    assert open_dataset("manifest:photos/list.csv").uri == "photos/list.csv"
    assert source.content(0) == photos.contents[0]
    monkeypatch.chdir(photos.root)
    assert open_dataset("list.csv").content(0) == photos.contents[0]


def test_an_image_with_several_captions(photos: Photos) -> None:
    source = opened(photos.root / "list.csv", "path,text\nbag/0.png,one\nbag/2.png,\nbag/0.png,two\n")
    check_dataset(source)
    assert source.ids is None
    assert source.captions == ("one", "", "two")


def test_numbers_are_sorted_as_numbers(photos: Photos) -> None:
    lines = [f"{name},{label}" for name, label in zip(photos.names, (10, 9, 9, -1) * 6, strict=False)]
    source = opened(photos.root / "list.csv", "\n".join(["path,target", *lines]))
    assert source.class_names == ("-1", "9", "10")
    assert source.labels is not None
    assert source.labels.tolist()[:4] == [2, 1, 1, 0]


def test_labels_of_parquet(photos: Photos) -> None:
    import pyarrow
    from pyarrow import parquet

    path = photos.root / "list.parquet"
    for values, names in (([3.0, 1.0], ("1", "3")), ([True, False], ("False", "True")), ([7, 7], ("7",))):
        parquet.write_table(pyarrow.table({"path": photos.names[:2], "label": values}), path)
        assert open_dataset(path).class_names == names
    parquet.write_table(pyarrow.table({"path": photos.names[:2], "label": [1, None]}), path)
    with pytest.raises(DatasetError, match="row 2 has no label"):
        open_dataset(path)


def test_splits(photos: Photos) -> None:
    text = "path,label,split\nbag/0.png,bag,train\nshirt/0.png,shirt,validation\nbag/2.png,bag,train\n"
    train = opened(photos.root / "list.csv", text)
    assert train.ids == ("bag/0.png", "bag/2.png")
    assert train.class_names == ("bag", "shirt")
    validation = open_for(identify(train), split="val")
    assert (validation.split, validation.ids) == ("val", ("shirt/0.png",))
    with pytest.raises(DatasetError, match=r"no split 'test'\. Splits: train, validation"):
        open_dataset(photos.root / "list.csv", split="test")


def test_split_without_such_a_column(photos: Photos) -> None:
    with pytest.raises(DatasetError, match=r"no column 'split'.*not 'test'"):
        opened(photos.root / "list.csv", "path\nbag/0.png\n", split="test")


@pytest.mark.parametrize(
    "entry", ["../secret.png", "bag/../../secret.png", "{outside}", "out.png", "out/secret.png", ".."]
)
def test_a_path_that_leads_out_is_refused(photos: Photos, entry: str) -> None:
    outside = photos.root.parent / "secret.png"
    outside.write_bytes(photos.contents[0])
    (photos.root / "out.png").symlink_to(outside)
    (photos.root / "out").symlink_to(outside.parent, target_is_directory=True)
    with pytest.raises(DatasetError, match=r"list\.csv' line 3: .*leads out of the folder '.*photos'"):
        opened(photos.root / "list.csv", f"path\nbag/0.png\n{entry.format(outside=outside)}\n")


def test_a_linked_folder_is_the_folder(photos: Photos) -> None:
    link = photos.root.parent / "link"
    link.symlink_to(photos.root, target_is_directory=True)
    for root in (link, photos.root):
        assert opened(link / "list.csv", f"path\n{root / 'bag' / '0.png'}\n").ids == ("bag/0.png",)


def test_missing_files_are_named(photos: Photos) -> None:
    entries = ["gone.png", "bag/0.png", "no/such.png", "x.png", "y.png"]
    with pytest.raises(
        DatasetError, match=r"4 of the files .*'gone\.png' \(line 2\), 'no/such\.png' \(line 4\).*\.\.\."
    ):
        opened(photos.root / "list.csv", "path\n" + "\n".join(entries))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must name its columns"),
        ("path,path\na,b\n", "must name its columns, each once"),
        ("path\n", "lists no images"),
        ("where,label\nbag/0.png,bag\n", "no column that is called like images are.*--image-column.*where, label"),
        ("path,label\nbag/0.png,bag\nbag/2.png\n", "line 3 has 1 fields, not 2"),
        ("path,label\nbag/0.png,bag\nbag/2.png,\n", "line 3 has no label"),
        ("path,label\n,bag\n", "line 2: there is no path"),
        ("path\nbag\n", "line 2: 'bag' is no file"),
        ('path\n"bag/0.png\n', "Cannot read"),
        (b"path\n\xff\xfe.png\n", "Cannot read.*utf-8"),
    ],
)
def test_broken_tables(photos: Photos, text: str | bytes, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        opened(photos.root / "list.csv", text)


def test_lines_are_counted_with_line_breaks_in_fields(photos: Photos) -> None:
    with pytest.raises(DatasetError, match=r"'gone\.png' \(line 4\)"):
        opened(photos.root / "list.csv", 'path,text\nbag/0.png,"two\nlines"\ngone.png,x\n')


def test_several_columns_that_may_be_meant(photos: Photos) -> None:
    text = "path,label,category\nbag/0.png,bag,thing\n"
    with pytest.raises(OptionError, match=r"may be the label: label, category.*--label-column"):
        opened(photos.root / "list.csv", text)
    assert opened(photos.root / "list.csv", text, columns={"label": "category"}).class_names == ("thing",)
    with pytest.raises(UnknownName, match=r"'kategory'\. Did you mean 'category'"):
        open_dataset(photos.root / "list.csv", columns={"label": "kategory"})
    with pytest.raises(UnknownName, match=r"kind of column 'lable'\. Did you mean 'label'"):
        open_dataset(photos.root / "list.csv", columns={"lable": "category"})
    with pytest.raises(OptionError, match="empty"):
        open_dataset(f"{photos.root / 'list.csv'}?label=")


def test_datasets_without_columns_refuse_them(photos: Photos) -> None:
    with pytest.raises(OptionError, match="'fashion-mini' takes no label column"):
        open_dataset("fashion-mini", columns={"label": "x"})
    with pytest.raises(OptionError, match="takes no label column"):
        open_dataset(photos.root, columns={"label": "x"})


def test_missing_manifest(tmp_path: Path) -> None:
    for uri in ("gone.csv", str(tmp_path / "gone.parquet"), tmp_path / "gone.tsv", "manifest:gone.csv"):
        with pytest.raises(MissingInput, match="gone"):
            open_dataset(uri)


def test_what_is_no_manifest(tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text("[]")
    for uri in (f"manifest:{tmp_path / 'list.json'}", f"manifest:{tmp_path}"):
        with pytest.raises(DatasetError, match="no manifest"):
            open_dataset(uri)


def test_parquet_that_holds_images_or_is_none(photos: Photos) -> None:
    import pyarrow
    from pyarrow import parquet

    path = photos.root / "list.parquet"
    parquet.write_table(pyarrow.table({"image": [photos.contents[0]]}), path)
    with pytest.raises(DatasetError, match=r"'hf:.*list.parquet'"):
        open_dataset(path)
    path.write_bytes(b"no parquet")
    with pytest.raises(DatasetError, match="Cannot read"):
        open_dataset(path)


def test_without_pyarrow(photos: Photos, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (photos.root / "list.parquet").touch()
    with pytest.raises(DatasetError, match=r"pip install 'dcprune\[datasets\]'"):
        open_dataset(photos.root / "list.parquet")


def test_a_file_that_is_gone_or_broken_when_it_is_read(photos: Photos) -> None:
    (photos.root / "empty.png").touch()
    (photos.root / "cut.jpg").write_bytes(photos.contents[1][:300])
    source = opened(photos.root / "list.csv", "path\nbag/0.png\nempty.png\ncut.jpg\n")
    os.unlink(photos.root / "bag" / "0.png")  # noqa: PTH108
    for row, name in enumerate(("0.png", "empty.png", "cut.jpg")):
        with pytest.raises(DatasetError, match=name):
            source.image(row)
