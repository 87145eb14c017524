"""Clusters in place of classes, over every kind of dataset."""

import io
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dcprune import formats
from dcprune.artifacts import Classes
from dcprune.errors import DatasetError, DatasetMismatch, MissingInput
from dcprune.interfaces import DatasetSource
from dcprune.sources import identify, open_dataset, open_for
from dcprune.testing import check_dataset, gaussian_embeddings


def clustered(source: DatasetSource, path: Path, *, overwrite: bool = False) -> Path:
    """Two clusters, in turns."""
    template = gaussian_embeddings(dim=3)
    classes = Classes(
        labels=np.arange(len(source), dtype=np.int64) % 2,
        centroids=np.zeros((2, 3), dtype=np.float32),
        class_names=("cluster-0", "cluster-1"),
        encoder=template.encoder,
        seed=0,
        inertia=1.0,
        dataset=identify(source),
        provenance=template.provenance,
    )
    formats.write_classes(classes, path, overwrite=overwrite)
    return path


def images(folder: Path, count: int = 5) -> Path:
    folder.mkdir(parents=True)
    for row in range(count):
        Image.new("RGB", (4 + row, 4), (row, 2, 3)).save(folder / f"{row}.png")
    return folder


def shard(path: Path, folder: Path) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for file in sorted(folder.glob("*.png")):
            for kind, content in (("png", file.read_bytes()), ("txt", file.stem.encode())):
                member = tarfile.TarInfo(f"{file.stem}.{kind}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return path


def test_the_rest_is_the_datasets(tmp_path: Path) -> None:
    folder = images(tmp_path / "images")
    bases = [str(folder), f"wds:{shard(tmp_path / 'a.tar.gz', folder)}", "fashion-mini"]
    for number, uri in enumerate(bases):
        base = open_dataset(uri)
        pseudo = open_dataset(f"pseudo:{clustered(base, tmp_path / f'{number}.safetensors')}")
        check_dataset(pseudo)
        assert pseudo.class_names == ("cluster-0", "cluster-1")
        assert pseudo.labels is not None
        assert pseudo.labels.tolist() == [row % 2 for row in range(len(base))]
        assert (pseudo.encoded, pseudo.streaming, pseudo.split) == (base.encoded, base.streaming, base.split)
        assert list(pseudo.ids or ()) == list(base.ids or ())
        assert list(pseudo.captions or ()) == list(base.captions or ())
        assert np.array_equal(pseudo.sizes, base.sizes)
        assert (pseudo.array is None) == (base.array is None)
        assert np.array_equal(pseudo.image(3), base.image(3))
        assert pseudo.content(3) == base.content(3)
        identity = identify(pseudo)
        assert identity.uri == f"pseudo:{tmp_path}/{number}.safetensors"
        assert identify(open_for(identity)) == identity


def test_file_and_dataset_that_have_moved(tmp_path: Path) -> None:
    path = clustered(open_dataset(images(tmp_path / "here" / "images")), tmp_path / "here" / "c.safetensors")
    identity = identify(open_dataset(f"pseudo:{path}"))
    (tmp_path / "here").rename(tmp_path / "there")
    with pytest.raises(MissingInput, match=r"c\.safetensors"):
        open_for(identity, data_dir=tmp_path / "nowhere")
    assert identify(open_for(identity, data_dir=tmp_path / "there")).fingerprint == identity.fingerprint


def test_another_dataset_is_refused(tmp_path: Path) -> None:
    folder = images(tmp_path / "images")
    path = clustered(open_dataset(folder), tmp_path / "c.safetensors")
    (folder / "4.png").unlink()
    with pytest.raises(DatasetMismatch, match="4 samples, not 5"):
        open_dataset(f"pseudo:{path}")
    shutil.rmtree(folder)
    with pytest.raises(MissingInput, match="images"):
        open_dataset(f"pseudo:{path}")


def test_another_split_is_refused(tmp_path: Path) -> None:
    path = clustered(open_dataset("fashion-mini", split="test"), tmp_path / "c.safetensors")
    assert len(open_dataset(f"pseudo:{path}", split="test")) == 1000
    with pytest.raises(DatasetError, match="classes of the split 'test'; the split 'train' has none"):
        open_dataset(f"pseudo:{path}")


def test_a_file_that_stands_for_itself(tmp_path: Path) -> None:
    path = clustered(open_dataset(images(tmp_path / "images")), tmp_path / "c.safetensors")
    clustered(open_dataset(f"pseudo:{path}"), path, overwrite=True)
    with pytest.raises(DatasetError, match="written over the classes that it was made from"):
        open_dataset(f"pseudo:{path}")


def test_clusters_of_clusters(tmp_path: Path) -> None:
    path = clustered(open_dataset(images(tmp_path / "images")), tmp_path / "c.safetensors")
    again = clustered(open_dataset(f"pseudo:{path}"), tmp_path / "d.safetensors")
    check_dataset(open_dataset(f"pseudo:{again}"))
