"""Members lie where tarfile says that they lie, and what is not a plain file inside its folder is refused."""

import contextlib
import gzip
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from dcprune.datasets.tar import Member, members
from dcprune.errors import DatasetError

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def packed(files: dict[str, bytes], kind: int = tarfile.PAX_FORMAT) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=kind) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def listed(content: bytes) -> list[Member]:
    return list(members(io.BytesIO(content), "a.tar", len(content)))


@pytest.mark.parametrize("kind", FORMATS)
def test_the_same_as_tarfile(kind: str) -> None:
    rng = np.random.default_rng(0)
    names = ["a.png", "./b.png", "ä/ö.png", "x/" * 40 + "long.png", "deep/" * 15 + "n" * 90 + ".png", "empty.txt"]
    if kind != "ustar":
        names += ["y" * 300 + ".png", "folder/" * 60 + "z.png"]
    files = {name: rng.bytes(int(rng.integers(0, 2000))) for name in names} | {"empty.txt": b""}
    content = packed(files, FORMATS[kind])
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        expected = [Member(each.name, each.offset_data, each.size) for each in archive]
    assert listed(content) == expected
    assert {name: content[start : start + size] for name, start, size in listed(content)} == files
    with gzip.open(io.BytesIO(gzip.compress(content))) as stream:
        assert [each.name for each in members(stream, "a.tar.gz")] == names  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", FORMATS)
def test_folders_are_left_out(kind: str, tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "a.png").write_bytes(b"a")
    with tarfile.open(tmp_path / "a.tar", "w", format=FORMATS[kind]) as archive:
        archive.add(tmp_path / "cat", "cat")
    assert [each.name for each in listed((tmp_path / "a.tar").read_bytes())] == ["cat/a.png"]


def test_sizes_beyond_octal_digits() -> None:
    """GNU tar writes those in binary; only the header is looked at here, as 9 GB are not written."""
    member = tarfile.TarInfo("big.png")
    member.size = 9 << 30
    content = member.tobuf(tarfile.GNU_FORMAT)
    with pytest.raises(DatasetError, match=f"truncated: it should have at least {512 + (9 << 30)} bytes"):
        listed(content)
    member.size = 5
    assert listed(member.tobuf(tarfile.GNU_FORMAT) + b"12345" + bytes(507 + 512)) == [Member("big.png", 512, 5)]


def test_a_caller_may_read_what_it_gets() -> None:
    files = {"a": b"x" * 700, "b": b"", "c": b"y" * 512}
    stream = io.BytesIO(packed(files))
    found = {}
    for member in members(stream, "a.tar"):
        stream.seek(member.offset)
        found[member.name] = stream.read(member.size)
    assert found == files


@pytest.mark.parametrize("name", ["/etc/passwd.png", "../up.png", "cat/../../up.png", "cat/.."])
def test_names_that_lead_out_are_refused(name: str) -> None:
    with pytest.raises(DatasetError, match=f"'{name}' in 'a.tar' leads out"):
        listed(packed({"good.png": b"1", name: b"2"}))


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        (tarfile.SYMTYPE, "a symbolic link"),
        (tarfile.LNKTYPE, "a hard link"),
        (tarfile.CHRTYPE, "a character device"),
        (tarfile.BLKTYPE, "a block device"),
        (tarfile.FIFOTYPE, "a named pipe"),
        (tarfile.GNUTYPE_SPARSE, "a sparse file"),
        (b"Z", "of the unknown kind 'Z'"),
    ],
)
def test_what_is_no_plain_file_is_refused(kind: bytes, what: str) -> None:
    member = tarfile.TarInfo("cat/evil.png")
    member.type, member.linkname = kind, "/etc/passwd"
    with pytest.raises(DatasetError, match=f"'cat/evil.png' in 'a.tar' is {what}"):
        listed(member.tobuf(tarfile.GNU_FORMAT))


def test_long_link_targets_and_pax_tricks_are_refused() -> None:
    link = tarfile.TarInfo("evil.png")
    link.type, link.linkname = tarfile.SYMTYPE, "x" * 200
    for kind in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        with pytest.raises(DatasetError, match="link"):
            listed(link.tobuf(kind))
    sparse = tarfile.TarInfo("sparse.png")
    sparse.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.name": "sparse.png"}
    with pytest.raises(DatasetError, match="sparse"):
        listed(sparse.tobuf(tarfile.PAX_FORMAT))
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT, pax_headers={"path": "same"}):
        pass
    with pytest.raises(DatasetError, match="names all of its members"):
        listed(stream.getvalue())


def test_harmless_global_headers_are_skipped() -> None:
    """`git archive` writes one."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "0a1b"}) as archive:
        archive.addfile(tarfile.TarInfo("a.png"))
    assert [each.name for each in listed(stream.getvalue())] == ["a.png"]


def test_every_cut_is_noticed() -> None:
    content = packed({"a": b"1" * 600, "b" * 150: b"2" * 100, "c": b""})
    whole = listed(content)
    needed = whole[-1].offset + 512  # with one block of zeros, which end an archive
    for length in range(0, needed, 8):
        with pytest.raises(DatasetError, match=r"'a\.tar' is (truncated|no tar)"):
            listed(content[:length])
    assert listed(content[:needed]) == whole


def test_damage_is_noticed_where_tarfile_sees_the_end() -> None:
    content = bytearray(packed({"a": b"1", "b": b"2", "c": b"3"}))
    content[1024] ^= 1
    with tarfile.open(fileobj=io.BytesIO(bytes(content))) as archive:
        assert archive.getnames() == ["a"]
    with pytest.raises(DatasetError, match=r"'a\.tar' is no tar archive, or damaged at byte 1024"):
        listed(bytes(content))


def test_sizes_that_no_file_has() -> None:
    for digits in (
        b"-0000000010",
        b"+0000000010",
        b"000_0000010",
        b"00000000008",
        b"\x80" + b"\xff" * 10,
        b"\xff" * 11,
    ):
        header = bytearray(tarfile.TarInfo("a.png").tobuf(tarfile.USTAR_FORMAT))
        header[124:135] = digits
        header[148:156] = b"%06o\0 " % (sum(header[:148]) + sum(header[156:512]) + 256)
        with pytest.raises(DatasetError, match="damaged at byte 0"):
            listed(bytes(header))


@pytest.mark.parametrize("content", [b"no archive " * 100, b"x", bytes(range(256)) * 4])
def test_other_files(content: bytes) -> None:
    with pytest.raises(DatasetError, match=r"a\.tar"):
        listed(content)


def test_names_that_are_not_utf8() -> None:
    member = tarfile.TarInfo("caf\udce9.png")
    with pytest.raises(DatasetError, match="not UTF-8"):
        listed(member.tobuf(tarfile.GNU_FORMAT, errors="surrogateescape"))


def test_random_damage_never_raises_anything_else() -> None:
    rng = np.random.default_rng(0)
    whole = packed({"a" * 150: b"1" * 100, "b": b"2" * 600, "ä" * 90: b"3"})
    for _ in range(2000):
        content = bytearray(whole)
        for at in rng.integers(0, len(content), int(rng.integers(1, 6))):
            content[at] = rng.integers(0, 256)
        with contextlib.suppress(DatasetError):
            listed(bytes(content[: rng.integers(1, len(content) + 1)]))
