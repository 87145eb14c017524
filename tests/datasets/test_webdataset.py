"""Shards of real images give what the same images give as a folder; what is broken or unsafe is refused and named."""

import gzip
import io
import json
import shutil
import tarfile
import warnings
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from PIL import Image

from dcprune.datasets.webdataset import expand_braces, find_shards
from dcprune.errors import DatasetError, DcpruneError, MissingInput, OptionError
from dcprune.interfaces import DatasetSource
from dcprune.sources import identify, open_dataset, open_for
from dcprune.testing import check_dataset

CLASSES = ("bag", "boot", "scarf")


def photo(row: int) -> Image.Image:
    """Fashion-MNIST in grey, and two rows of one in colours."""
    images = open_dataset("fashion-mini", split="test")
    grey = Image.fromarray(images.image(row)[:, :, 0])
    return (
        grey
        if row % 3
        else Image.merge("RGB", [grey, *(Image.fromarray(images.image(row + n)[:, :, 0]) for n in (1, 2))])
    )


def encoded(image: Image.Image, kind: str) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "JPEG" if kind == "jpg" else kind)
    return stream.getvalue()


Sample = dict[str, bytes]


@pytest.fixture(scope="module")
def samples() -> dict[str, Sample]:
    """Key -> members of 20 images of three classes, in four formats."""
    found = {}
    for row in range(20):
        kind = ("png", "jpg", "webp", "png")[row % 4]
        found[f"{CLASSES[row % 3]}/{row:04d}"] = {
            kind: encoded(photo(row), kind),
            "cls": str(row % 3).encode(),
            "txt": f"Ein Bild, № {row}".encode(),
        }
    return found


def write(path: Path, samples: Iterable[tuple[str, Sample]], **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz" if path.suffix != ".tar" else "w", **options) as archive:
        for key, members in samples:
            for kind, content in members.items():
                member = tarfile.TarInfo(f"{key}.{kind}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return path


def shards(folder: Path, samples: dict[str, Sample], suffix: str = ".tar") -> Path:
    """Three shards and a list of the classes."""
    items = list(samples.items())
    for number in range(3):
        write(folder / f"{number:03d}{suffix}", items[number * 7 : number * 7 + 7])
    (folder / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    return folder


def wds(location: Path | str, **options: Any) -> DatasetSource:
    return open_dataset(f"wds:{location}", **options)


def check_against(source: DatasetSource, samples: dict[str, Sample]) -> None:
    check_dataset(source)
    assert tuple(source.ids or ()) == tuple(samples)
    assert source.class_names == CLASSES
    assert source.labels is not None
    assert source.labels.tolist() == [int(each["cls"]) for each in samples.values()]
    assert tuple(source.captions or ()) == tuple(each["txt"].decode() for each in samples.values())
    contents = [next(iter(each.values())) for each in samples.values()]
    assert source.sizes.tolist() == [len(content) for content in contents]
    for index, content in enumerate(contents):
        assert source.content(index) == content
        assert np.array_equal(source.image(index), np.asarray(Image.open(io.BytesIO(content)).convert("RGB")))


# --- what it gives ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tgz"])
def test_shards(suffix: str, samples: dict[str, Sample], tmp_path: Path) -> None:
    folder = shards(tmp_path, samples, suffix)
    for location in (folder, f"{folder}/{{000..002}}{suffix}", f"{folder}/*{suffix}", f"{folder}/00{{0,1,2}}{suffix}"):
        source = wds(location)
        assert source.uri == f"wds:{location}"
        assert source.streaming == (suffix != ".tar")
        check_against(source, samples)
        identity = identify(source)
        assert identify(open_for(identity)) == identity


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_kinds_of_tar(kind: int, samples: dict[str, Sample], tmp_path: Path) -> None:
    long = {f"{'folder/' * 12}{key}": members for key, members in samples.items()}
    shard = write(tmp_path / "a.tar", long.items(), format=kind)
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES))
    check_against(wds(shard), long)


def test_written_by_the_webdataset_library(samples: dict[str, Sample], tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it leaves its own files open
        with webdataset.TarWriter(str(tmp_path / "a.tar")) as writer:
            for key, members in samples.items():
                values: dict[str, Any] = {"__key__": key, **members}
                writer.write({**values, "cls": int(members["cls"]), "txt": members["txt"].decode()})
    check_against(wds(tmp_path), samples)


def test_the_same_images_as_a_folder(samples: dict[str, Sample], tmp_path: Path) -> None:
    by_class = dict(sorted(samples.items()))
    for key, members in by_class.items():
        kind, content = next(iter(members.items()))
        path = tmp_path / "folder" / f"{key}.{kind}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    folder, shard = open_dataset(tmp_path / "folder"), wds(shards(tmp_path / "wds", by_class))
    assert [each.rpartition(".")[0] for each in folder.ids or ()] == list(shard.ids or ())
    assert folder.class_names == shard.class_names
    assert np.array_equal(folder.labels, shard.labels)  # type: ignore[arg-type]
    assert np.array_equal(folder.sizes, shard.sizes)
    for index in range(len(folder)):
        assert np.array_equal(folder.image(index), shard.image(index))


def test_threads_in_any_order(samples: dict[str, Sample], tmp_path: Path) -> None:
    order = np.random.default_rng(0).permutation(20).tolist() * 5
    for suffix in (".tar", ".tar.gz"):
        source = wds(shards(tmp_path / suffix, samples, suffix))
        expected = [source.content(index) for index in range(20)]
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(source.content, order)) == [expected[index] for index in order]


def test_more_shards_than_are_kept_open(samples: dict[str, Sample], tmp_path: Path) -> None:
    for number, sample in enumerate(samples.items()):
        write(tmp_path / f"{number:02d}.tar", [sample])
    source = wds(tmp_path / "{00..19}.tar")
    for _ in range(2):
        contents = [source.content(index) for index in range(20)]
        assert contents == [next(iter(each.values())) for each in samples.values()]


# --- labels, classes, captions ----------------------------------------------------------------------------------------

PNG = encoded(Image.new("RGB", (3, 2), "red"), "png")


def opened(folder: Path, samples: dict[str, Sample], **options: Any) -> DatasetSource:
    return wds(write(folder / "a.tar", samples.items()), **options)


@pytest.mark.parametrize("kind", ["cls", "cls.txt", "label", "label.txt"])
def test_labels_are_sorted_as_numbers_where_all_are(kind: str, tmp_path: Path) -> None:
    source = opened(
        tmp_path, {f"{row}": {"png": PNG, kind: f"{value}\n".encode()} for row, value in enumerate((10, 9, 2, 10))}
    )
    assert source.class_names == ("2", "9", "10")
    assert source.labels is not None
    assert source.labels.tolist() == [2, 1, 0, 2]
    words = opened(tmp_path, {f"{row}": {"png": PNG, kind: value} for row, value in enumerate((b"dog", b"cat", b"10"))})
    assert words.class_names == ("10", "cat", "dog")


def test_json_holds_what_has_no_member(tmp_path: Path) -> None:
    facts = [{"label": 3, "caption": "drei", "class": "c"}, {"label": 1, "caption": "eins", "class": "a"}]
    source = opened(
        tmp_path, {f"{row}": {"json": json.dumps(each).encode(), "png": PNG} for row, each in enumerate(facts)}
    )
    assert (source.class_names, list(source.captions or ())) == (("1", "3"), ["drei", "eins"])
    source = wds(tmp_path / "a.tar", columns={"label": "class", "caption": "class"})
    assert (source.class_names, list(source.captions or ())) == (("a", "c"), ["c", "a"])
    assert source.uri == f"wds:{tmp_path}/a.tar?label=class&caption=class"
    identity = identify(source)
    assert identify(open_for(identity)) == identity
    check_dataset(open_for(identity))


def test_a_list_of_classes_is_numbered_or_named(tmp_path: Path) -> None:
    (tmp_path / "classnames.txt").write_text("Bär\n\n Hund \n7\n")
    for values in (("2", "0"), ("7", "Bär")):
        source = opened(tmp_path, {key: {"png": PNG, "cls": key.encode()} for key in values})
        assert source.class_names == ("Bär", "Hund", "7")
        assert source.labels is not None
        assert source.labels.tolist() == [2, 0]
    for value in ("3", "9" * 30, "Katze"):
        with pytest.raises(DatasetError, match=rf"label '{value}' is not among the 3 classes of '.*classnames\.txt'"):
            opened(tmp_path, {value: {"png": PNG, "cls": value.encode()}})


def test_classes_beside_the_folders_of_splits(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("a\nb\n")
    for split in ("train", "test"):
        write(tmp_path / split / "0.tar", [("1", {"png": PNG, "cls": b"1"})])
    for split in ("train", "test"):
        assert wds(tmp_path, split=split).class_names == ("a", "b")
    identity = identify(wds(tmp_path))
    assert open_for(identity, split="test").split == "test"


def test_without_labels_or_all_captions(tmp_path: Path) -> None:
    source = opened(tmp_path, {"a": {"png": PNG, "txt": b"a"}, "b": {"png": PNG}})
    assert (source.class_names, source.labels, source.captions) == ((), None, None)
    assert getattr(source, "num_captioned", 0) == 1
    check_dataset(source)


def test_keys_that_return_in_other_shards(tmp_path: Path) -> None:
    for name in ("train-0.tar", "train-1.tar.gz"):
        write(tmp_path / name, [("000", {"png": PNG}), ("001", {"png": PNG})])
    source = wds(tmp_path)
    assert list(source.ids or ()) == ["train-0/000", "train-0/001", "train-1/000", "train-1/001"]
    check_dataset(source)


def test_what_is_no_part_of_a_sample_is_left_out(tmp_path: Path) -> None:
    shard = tmp_path / "a.tar"
    with tarfile.open(shard, "w") as archive:
        for name, content in {
            "__meta__": b"x",
            "README": b"x",
            "._a.png": b"AppleDouble",
            "a.PNG": PNG,
            "a.pyd": b"cos\nsystem\n(S'touch /tmp/datasets/pwned'\ntR.",
            "a.pkl": b"\x80\x04.",
            "b.left.png": PNG,
            "b.pth": b"PK",
        }.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    source = wds(shard)
    assert list(source.ids or ()) == ["a", "b"]
    assert source.content(1) == PNG


def test_the_image_that_is_meant(tmp_path: Path) -> None:
    sample = {"input.png": PNG, "mask.png": encoded(Image.new("L", (3, 2), 255), "png")}
    with pytest.raises(OptionError, match=r"'a'.*several images: input\.png, mask\.png.*--image-column"):
        opened(tmp_path, {"a": sample})
    source = wds(tmp_path / "a.tar", columns={"image": "mask.png"})
    assert source.content(0) == sample["mask.png"]
    assert source.uri.endswith("?image=mask.png")
    with pytest.raises(DatasetError, match=r"'a'.*no member 'depth\.png'; its members are input\.png, mask\.png"):
        wds(tmp_path / "a.tar", columns={"image": "depth.png"})


# --- faults -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"cls": b"1"}, r"'b'.*no image; its members are cls"),
        ({"png": PNG}, r"'b'.*no label, unlike the samples before it"),
        ({"png": PNG, "cls": b"\xff"}, r"'b'.*cannot be read"),
        ({"png": PNG, "json": b"{"}, r"'b'.*cannot be read"),
        ({"png": PNG, "json": b"[" * 100_000}, r"'b'.*cannot be read"),
        ({"png": PNG, "json": b'{"label": 0, "caption": "\\ud800"}'}, r"'b'.*cannot be read"),
        ({"png": PNG, "cls": b"1" * 5000}, r"'b'.*label of 5,000 characters"),
        ({"png": PNG, "cls": b"1" * (2 << 20)}, r"b\.cls.*too many for a text"),
    ],
)
def test_samples_that_lack_what_others_have(bad: Sample, message: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=message):
        opened(tmp_path, {"a": {"png": PNG, "cls": b"0"}, "b": bad})


def test_what_was_asked_for_is_in_every_sample(tmp_path: Path) -> None:
    write(tmp_path / "a.tar", [("a", {"png": PNG, "txt": b"x"}), ("b", {"png": PNG})])
    with pytest.raises(DatasetError, match=r"'b'.*no caption 'txt'"):
        wds(tmp_path / "a.tar", columns={"caption": "txt"})
    with pytest.raises(DatasetError, match=r"'a'.*no label 'kind'"):
        wds(tmp_path / "a.tar", columns={"label": "kind"})


def test_members_of_a_sample_lie_together(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"'a'.*do not lie together"):
        wds(write(tmp_path / "a.tar", [("a", {"png": PNG}), ("b", {"png": PNG}), ("a", {"cls": b"0"})]))
    with pytest.raises(DatasetError, match=r"two members 'a\.png'"):
        wds(write(tmp_path / "b.tar", [("a", {"png": PNG}), ("a", {"png": PNG})]))


@pytest.mark.parametrize("name", ["/abs/a.png", "../a.png"])
def test_members_that_lead_out(name: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=f"'{name}' in '.*a.tar' leads out"):
        wds(write(tmp_path / "a.tar", [(name.removesuffix(".png"), {"png": PNG})]))


def test_links(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        link = tarfile.TarInfo("a.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with pytest.raises(DatasetError, match=r"'a\.png' in '.*a\.tar' is a symbolic link"):
        wds(tmp_path / "a.tar")


@pytest.mark.parametrize(
    "location", ["pipe:cat a.tar", "https://host/a.tar", "s3://bucket/{0..9}.tar", "hf://org/a.tar"]
)
def test_commands_and_addresses_are_refused(location: str) -> None:
    with pytest.raises(DatasetError, match="neither commands nor addresses"):
        wds(location)


def test_missing_shards(tmp_path: Path) -> None:
    write(tmp_path / "0.tar", [("a", {"png": PNG})])
    with pytest.raises(MissingInput, match=r"'.*1\.tar' does not exist"):
        wds(tmp_path / "{0..1}.tar")
    with pytest.raises(MissingInput, match=r"No shard is called like '.*x\*\.tar'"):
        wds(tmp_path / "x*.tar")
    with pytest.raises(MissingInput, match="does not exist"):
        wds(tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="holds no shards"):
        wds(tmp_path / "empty")
    with pytest.raises(DatasetError, match="has the split 'train' alone, not 'test'"):
        wds(tmp_path / "0.tar", split="test")
    with tarfile.open(tmp_path / "none.tar", "w"):
        pass
    with pytest.raises(DatasetError, match="holds no samples"):
        wds(tmp_path / "none.tar")


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
def test_truncated_shards(suffix: str, samples: dict[str, Sample], tmp_path: Path) -> None:
    shard = write(tmp_path / f"a{suffix}", samples.items())
    content = shard.read_bytes()
    for length in (1, 700, len(content) // 2, len(content) // 2 + 300):
        shard.write_bytes(content[:length])
        with pytest.raises(DatasetError, match=r"a\.tar"):
            wds(shard)


def test_damaged_gzip(samples: dict[str, Sample], tmp_path: Path) -> None:
    shard = write(tmp_path / "a.tar.gz", samples.items())
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 0xFF
    shard.write_bytes(content)
    with pytest.raises(DatasetError, match=r"a\.tar\.gz"):
        wds(shard)


def test_shards_that_change_while_they_are_used(samples: dict[str, Sample], tmp_path: Path) -> None:
    source = wds(shards(tmp_path, samples))
    whole = (tmp_path / "000.tar").read_bytes()
    (tmp_path / "000.tar").write_bytes(whole[:600])
    with pytest.raises(DatasetError, match=r"bag/0000.*has become shorter"):
        source.content(0)
    shutil.rmtree(tmp_path)
    with pytest.raises(DatasetError, match=r"0007.*No such file"):
        source.content(7)


def test_empty_and_broken_images_are_named_when_they_are_read(tmp_path: Path) -> None:
    source = opened(tmp_path, {"good": {"png": PNG}, "none": {"png": b""}, "bad": {"jpg": b"\xff\xd8\xff no"}})
    assert source.image(0).shape == (2, 3, 3)
    for index, name in ((1, "none"), (2, "bad")):
        with pytest.raises(DatasetError, match=f"{name} in "):
            source.image(index)


# --- patterns ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a.tar", ["a.tar"]),
        ("{8..11}", ["8", "9", "10", "11"]),
        ("{08..11}", ["08", "09", "10", "11"]),
        ("{2..0}", ["2", "1", "0"]),
        ("x-{a,b}-{0..1}.tar", ["x-a-0.tar", "x-a-1.tar", "x-b-0.tar", "x-b-1.tar"]),
        ("{train/00,val/11}.tar", ["train/00.tar", "val/11.tar"]),
        ("{a}", ["{a}"]),
        ("{a,}", ["a", ""]),
    ],
)
def test_braces_as_in_a_shell(pattern: str, expected: list[str]) -> None:
    assert expand_braces(pattern) == expected


def test_too_many_shards() -> None:
    with pytest.raises(DatasetError, match="more than 1,000,000"):
        expand_braces("{0..1000000}.tar")


def test_nested_braces_are_refused() -> None:
    with pytest.raises(DatasetError, match="nested"):
        expand_braces("{train/{00..01},val/00}.tar")


def test_braces_and_brackets_in_a_name(tmp_path: Path) -> None:
    shard = write(tmp_path / "a{0..1}[x].tar", [("a", {"png": PNG})])
    assert find_shards(str(shard), "train") == [shard]


def test_nothing_but_dcprune_errors(samples: dict[str, Sample], tmp_path: Path) -> None:
    """Shards that are damaged at random open, or are refused by name."""
    whole = write(tmp_path / "a.tar", list(samples.items())[:3]).read_bytes()
    rng = np.random.default_rng(0)
    for row in range(200):
        content = bytearray(whole)
        for at in rng.integers(0, len(content), 30):
            content[at] = rng.integers(0, 256)
        shard = tmp_path / ("a.tar" if row % 2 else "a.tar.gz")
        shard.write_bytes(content if row % 2 else gzip.compress(content))
        try:
            source = wds(shard)
            contents = [source.content(index) for index in range(len(source))]
        except DcpruneError:
            continue
        assert len(contents) == len(source.sizes)
