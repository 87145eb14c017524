"""The same images are the same samples, whichever way they are stored."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from dcprune.datasets.decode import decode
from dcprune.interfaces import DatasetSource, FilesOnDisk
from dcprune.sources import identify, open_dataset, open_for
from dcprune.testing import check_dataset

if TYPE_CHECKING:
    from tests.datasets.conftest import Photos

CLASSES = ("bag", "shirt", "trouser")


def folder_with_texts(photos: Photos) -> str:
    for name, caption in zip(photos.names, photos.captions, strict=True):
        (photos.root / name).with_suffix(".txt").write_text(f"{caption}\n", encoding="utf-8")
    return str(photos.root)


def folder_with_metadata_csv(photos: Photos) -> str:
    rows = [{"file_name": row["image"], "text": row["caption"]} for row in photos.rows()]
    photos.write_csv("metadata.csv", rows[::-1])
    return str(photos.root)


def folder_with_metadata_lines(photos: Photos) -> str:
    lines = [json.dumps({"file_name": row["image"], "text": row["caption"]}) for row in photos.rows()]
    (photos.root / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return str(photos.root)


def csv_manifest(photos: Photos) -> str:
    return str(photos.write_csv("photos.csv", photos.rows()))


def tsv_manifest(photos: Photos) -> str:
    return str(photos.write_csv("photos.tsv", photos.rows(), "\t"))


def parquet_manifest(photos: Photos) -> str:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(photos.rows()), photos.root / "photos.parquet")
    return str(photos.root / "photos.parquet")


def hf_dataset(photos: Photos) -> Any:
    import datasets

    columns = {
        "image": [{"bytes": each, "path": name} for each, name in zip(photos.contents, photos.names, strict=True)],
        "label": photos.labels,
        "caption": photos.captions,
    }
    label = datasets.ClassLabel(names=list(CLASSES))
    features = datasets.Features({"image": datasets.Image(), "label": label, "caption": datasets.Value("string")})
    return datasets.Dataset.from_dict(columns, features)


def hf_saved(photos: Photos) -> str:
    hf_dataset(photos).save_to_disk(photos.root.parent / "saved", num_shards=3)
    return f"hf:{photos.root.parent / 'saved'}"


def hf_saved_splits(photos: Photos) -> str:
    import datasets

    data = hf_dataset(photos)
    datasets.DatasetDict({"train": data, "test": data.select([1])}).save_to_disk(photos.root.parent / "splits")
    return f"hf:{photos.root.parent / 'splits'}"


def hf_parquet_file(photos: Photos) -> str:
    hf_dataset(photos).to_parquet(photos.root.parent / "photos.parquet")
    return f"hf:{photos.root.parent / 'photos.parquet'}"


def hf_parquet_folder(photos: Photos) -> str:
    data = hf_dataset(photos)
    for shard in range(2):
        path = photos.root.parent / "repository" / "data" / f"train-{shard:05d}-of-00002.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        data.shard(2, shard, contiguous=True).to_parquet(path)
    return f"hf:{photos.root.parent / 'repository'}"


def plain_parquet(photos: Photos) -> str:
    """Written without `datasets`: no word of features inside, labels as texts."""
    import pyarrow
    from pyarrow import parquet

    rows = [
        {**row, "image": {"bytes": content, "path": row["image"]}}
        for row, content in zip(photos.rows(), photos.contents, strict=True)
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), photos.root.parent / "plain.parquet")
    return f"hf:{photos.root.parent / 'plain.parquet'}"


def hf_image_folder(photos: Photos) -> str:
    folder_with_metadata_lines(photos)
    return f"hf:{photos.root}"


ROUTES: list[Callable[[Photos], str]] = [
    folder_with_texts,
    folder_with_metadata_csv,
    folder_with_metadata_lines,
    csv_manifest,
    tsv_manifest,
    parquet_manifest,
    hf_saved,
    hf_saved_splits,
    hf_parquet_file,
    hf_parquet_folder,
    plain_parquet,
]


@pytest.mark.usefixtures("hf_cache")
@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.__name__)
def test_same_samples(photos: Photos, route: Callable[[Photos], str]) -> None:
    source = open_dataset(route(photos))
    check_dataset(source)
    assert len(source) == 21
    assert source.class_names == CLASSES
    assert source.labels is not None
    assert source.labels.dtype == np.int64
    assert source.labels.tolist() == photos.labels
    if route in (hf_saved, hf_saved_splits):  # save_to_disk keeps the last part of a path, which repeats here
        assert source.ids is None
    else:
        assert source.ids is not None
        assert list(source.ids) == photos.names
    assert source.captions is not None
    assert list(source.captions) == photos.captions
    assert list(source.captions[3:5]) == photos.captions[3:5]
    assert (source.encoded, source.streaming, source.array) == (True, False, None)
    assert source.sizes.tolist() == [len(content) for content in photos.contents]
    for row, content in enumerate(photos.contents):
        assert source.content(row) == content
        assert np.array_equal(source.image(row), decode(content, "a"))


@pytest.mark.usefixtures("hf_cache")
@pytest.mark.parametrize("route", [csv_manifest, hf_parquet_file, plain_parquet], ids=lambda route: route.__name__)
def test_one_fingerprint(photos: Photos, route: Callable[[Photos], str]) -> None:
    """Ids, labels and sizes agree, so that an artifact of one route fits the others."""
    assert identify(open_dataset(route(photos))).fingerprint == identify(open_dataset(photos.root)).fingerprint


@pytest.mark.usefixtures("hf_cache")
@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.__name__)
def test_files_can_be_linked_to_where_they_are_files(photos: Photos, route: Callable[[Photos], str]) -> None:
    source = open_dataset(route(photos))
    assert isinstance(source, FilesOnDisk) is not source.uri.startswith("hf:")
    if isinstance(source, FilesOnDisk):
        assert source.path(4).read_bytes() == photos.contents[4]


def renamed(photos: Photos) -> list[dict[str, Any]]:
    """Columns of other names, and a second column of labels."""
    return [
        {"picture": row["image"], "kind": row["label"], "text?&=x": row["caption"], "label": "all"}
        for row in photos.rows()
    ]


@pytest.mark.usefixtures("hf_cache")
def test_columns_that_a_user_names_are_part_of_the_uri(photos: Photos) -> None:
    import datasets

    photos.write_csv("photos.csv", renamed(photos))
    rows = [
        {**row, "picture": {"bytes": each, "path": None}}
        for row, each in zip(renamed(photos), photos.contents, strict=True)
    ]
    datasets.Dataset.from_list(rows).save_to_disk(photos.root.parent / "saved")
    columns = {"image": "picture", "label": "kind", "caption": "text?&=x"}
    for uri in (str(photos.root / "photos.csv"), f"hf:{photos.root.parent / 'saved'}"):
        source = open_dataset(uri, columns=columns)
        assert source.uri == f"{uri}?image=picture&label=kind&caption=text%3F%26%3Dx"
        check_same(source, open_dataset(source.uri))
        check_same(source, open_for(identify(source)))
        assert source.class_names == CLASSES
        assert list(source.captions or ()) == photos.captions
        assert open_dataset(source.uri, columns={"label": "label"}).class_names == ("all",)


def check_same(one: DatasetSource, other: DatasetSource) -> None:
    assert one.uri == other.uri
    assert identify(one) == identify(other)
    assert list(one.captions or ()) == list(other.captions or ())


def test_manifest_that_has_moved(photos: Photos, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(photos.root)
    photos.write_csv("photos.csv", renamed(photos))
    identity = identify(open_dataset("photos.csv", columns={"image": "picture", "label": "kind"}))
    assert identity.uri == "photos.csv?image=picture&label=kind"
    monkeypatch.chdir(os.sep)
    assert len(open_for(identity, data_dir=photos.root)) == 21
    found = open_for(identity, data_dir=photos.root, columns={"caption": "text?&=x"})
    assert list(found.captions or ()) == photos.captions


@pytest.mark.usefixtures("hf_cache")
def test_image_folder_of_hugging_face(photos: Photos) -> None:
    """Images that are paths: read from the folder, in the order that `datasets` gives them."""
    source = open_dataset(hf_image_folder(photos))
    check_dataset(source)
    assert source.ids is not None
    order = [photos.names.index(name) for name in source.ids]
    assert sorted(order) == list(range(21))
    assert [source.content(row) for row in range(21)] == [photos.contents[each] for each in order]
    assert list(source.captions or ()) == [photos.captions[each] for each in order]


def test_a_path_may_hold_a_question_mark(photos: Photos, tmp_path: Path) -> None:
    photos.root.rename(tmp_path / "a?label=b")
    assert len(open_dataset(tmp_path / "a?label=b")) == 21
