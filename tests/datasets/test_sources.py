"""Opening by name or path, fingerprints, and refusing another dataset."""

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dcprune.datasets.arrays import ArraySource
from dcprune.errors import DatasetError, DatasetMismatch, MissingInput, OptionError, UnknownName
from dcprune.sources import default_data_dir, identify, open_dataset, open_for
from dcprune.testing import ShapesDataset


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two classes, five images, below tmp_path/images."""
    root = tmp_path / "images"
    for number, name in enumerate(("cat/a.png", "cat/b.png", "dog/c.png", "dog/d.png", "dog/e.png")):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4 + number, 4), number).save(root / name)
    return root


def test_registered_name_folder_and_prefix(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert open_dataset("fashion-mini", split="test").uri == "fashion-mini"
    assert open_dataset(str(images)).uri == str(images)
    assert open_dataset(images).uri == str(images)
    assert open_dataset(f"folder:{images}").uri == str(images)
    monkeypatch.chdir(images.parent)
    assert open_dataset("images").uri == "images"


def test_folder_with_a_registered_name(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The URI in an artifact must open the same dataset again."""
    monkeypatch.chdir(images.parent)
    images.rename("fashion-mini")
    for uri in ("./fashion-mini", "folder:fashion-mini", Path("fashion-mini")):
        source = open_dataset(uri)
        assert len(source) == 5
        assert len(open_for(identify(source))) == 5
    assert len(open_dataset("fashion-mini", split="test")) == 1000


def test_unknown_name_has_a_guess() -> None:
    with pytest.raises(UnknownName, match=r"'fashion-mni'\. Did you mean 'fashion-mini'"):
        open_dataset("fashion-mni")


@pytest.mark.parametrize("uri", ["./nothing", "/no/such/folder", "some/where", "~/no-such-folder-here"])
def test_missing_path(uri: str) -> None:
    with pytest.raises(MissingInput, match="does not exist"):
        open_dataset(uri)


def test_unknown_scheme_is_no_path() -> None:
    with pytest.raises(UnknownName, match="'nope:org/name'"):
        open_dataset("nope:org/name")


def test_names_take_an_argument_or_none() -> None:
    with pytest.raises(UnknownName, match="'cifar10:small'"):
        open_dataset("cifar10:small")
    with pytest.raises(OptionError, match="folder:PATH"):
        open_dataset("folder")


def test_data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DCPRUNE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("DCPRUNE_DATA_DIR", raising=False)
    assert default_data_dir() == tmp_path / "cache" / "data"
    monkeypatch.setenv("DCPRUNE_DATA_DIR", str(tmp_path / "env"))
    assert default_data_dir() == tmp_path / "env"
    with pytest.raises(DatasetError, match=r"imagenet is not in '.*env"):
        open_dataset("imagenet")
    with pytest.raises(DatasetError, match=r"imagenet is not in '.*option"):
        open_dataset("imagenet", data_dir=tmp_path / "option")


def test_fingerprint_is_the_documented_hash(images: Path) -> None:
    size = {name: (images / name).stat().st_size for name in ("cat/a.png", "cat/b.png", "dog/c.png", "dog/d.png")}
    (images / "dog" / "e.png").unlink()
    lines = "".join(
        f'[{row},"{name}",{label},{size[name]}]\n'
        for row, (name, label) in enumerate(zip(size, (0, 0, 1, 1), strict=True))
    )
    identity = identify(open_dataset(images))
    assert identity.fingerprint == hashlib.sha256(lines.encode()).hexdigest()
    assert (identity.num_samples, identity.class_names) == (4, ("cat", "dog"))

    class_less = identify(open_dataset(images / "cat"))
    lines = f'[0,"a.png",null,{size["cat/a.png"]}]\n[1,"b.png",null,{size["cat/b.png"]}]\n'
    assert class_less.fingerprint == hashlib.sha256(lines.encode()).hexdigest()
    assert (class_less.num_classes, class_less.class_names) == (0, ())


def test_fingerprint_without_ids_and_with_contents() -> None:
    source = ArraySource("x", "train", np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3), np.array([1, 0]), ("a", "b"))
    assert identify(source).fingerprint == hashlib.sha256(b'[0,"0",1,12]\n[1,"1",0,12]\n').hexdigest()
    hashes = [hashlib.sha256(bytes(range(start, start + 12))).hexdigest() for start in (0, 12)]
    lines = f'[0,"0",1,12,"{hashes[0]}"]\n[1,"1",0,12,"{hashes[1]}"]\n'
    identity = identify(source, content=True)
    assert identity.fingerprint == hashlib.sha256(lines.encode()).hexdigest()
    assert identity.fingerprint_method == "content/1"


def test_empty_and_inconsistent_sources_are_refused() -> None:
    source = ShapesDataset()
    source.sizes = source.sizes[:-1]
    with pytest.raises(DatasetError, match="24 samples but"):
        identify(source)


def test_same_dataset_opens_again(images: Path) -> None:
    for content in (False, True):
        identity = identify(open_dataset(images), content=content)
        assert identify(open_for(identity), content=content) == identity


def test_another_dataset_is_refused(images: Path) -> None:
    identity = identify(open_dataset(images))
    (images / "dog" / "e.png").rename(images / "dog" / "f.png")
    with pytest.raises(DatasetMismatch, match=r"at '.*images'.*ids, labels or file sizes differ \(fingerprint"):
        open_for(identity)
    (images / "dog" / "f.png").unlink()
    with pytest.raises(DatasetMismatch, match="it has 4 samples, not 5"):
        open_for(identity)
    shutil.rmtree(images / "cat")
    with pytest.raises(DatasetMismatch, match=r"its classes are dog, not cat, dog; it has 2 samples, not 5"):
        open_for(identity)


def test_changed_contents_show_in_the_content_method(images: Path) -> None:
    plain, full = (identify(open_dataset(images), content=content) for content in (False, True))
    path = images / "cat" / "a.png"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    assert open_for(plain)
    with pytest.raises(DatasetMismatch, match="its contents differ"):
        open_for(full)


def test_another_split_needs_the_same_classes(tmp_path: Path) -> None:
    for name in ("train/cat", "train/dog", "val/cat", "val/dog", "test/cat"):
        (tmp_path / name).mkdir(parents=True)
        Image.new("L", (4, 4)).save(tmp_path / name / "a.png")
    identity = identify(open_dataset(tmp_path))
    assert open_for(identity, split="val").split == "val"
    with pytest.raises(DatasetMismatch, match="its classes are cat, not cat, dog"):
        open_for(identity, split="test")


@pytest.mark.parametrize("new", ["data/images", "data/sub/images", "data"])
def test_folder_that_has_moved(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, new: str) -> None:
    """By its path in the data folder, by its name there, or as the data folder itself."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    images.rename("sub/images")
    identity = identify(open_dataset("sub/images"))
    (tmp_path / new).parent.mkdir(parents=True, exist_ok=True)
    shutil.move("sub/images", new)
    with pytest.raises(MissingInput, match="--data-dir"):
        open_for(identity)
    assert len(open_for(identity, data_dir=tmp_path / "data")) == 5
    monkeypatch.setenv("DCPRUNE_DATA_DIR", str(tmp_path / "data"))
    assert len(open_for(identity)) == 5


def test_artifact_of_an_absent_plugin_is_an_unknown_name(images: Path) -> None:
    identity = identify(open_dataset(images)).model_copy(update={"uri": "webby:a/b"})
    with pytest.raises(UnknownName, match="webby"):
        open_for(identity)


def test_data_dir_of_other_datasets_is_not_taken_for_the_folder(images: Path, tmp_path: Path) -> None:
    identity = identify(open_dataset(images))
    (tmp_path / "data" / "cat").mkdir(parents=True)
    images.rename(tmp_path / "renamed")
    with pytest.raises(MissingInput, match="--data-dir"):
        open_for(identity, data_dir=tmp_path / "data")
