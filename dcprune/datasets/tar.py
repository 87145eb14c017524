"""Where the files in a tar archive lie.

The standard library's `tarfile` takes a damaged header for the end of the archive, so that samples would go missing
without a word, and three times as long over a member (18 and 7 us), which counts with millions. Nothing is ever
unpacked. Formats: POSIX ustar and pax, GNU.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from dcprune.errors import DatasetError

_BLOCK = 512
_END = bytes(_BLOCK)
_LONGEST_HEADER = 1 << 20
_LARGEST = 1 << 50
_FILE, _FOLDER, _PAX, _PAX_GLOBAL, _GNU_NAME = (b"0", b"\0", b"7"), b"5", b"x", b"g", b"L"
_REFUSED = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a character device",
    b"4": "a block device",
    b"6": "a named pipe",
    b"K": "a link with a long target",
    b"S": "a sparse file",
}


class Member(NamedTuple):
    """A file in an archive: its name, and where its bytes lie."""

    name: str
    offset: int
    size: int


class _Said(NamedTuple):
    """What extended headers say about the member after them."""

    name: str = ""
    size: int | None = None


_NOTHING = _Said()


def members(stream: BinaryIO, archive: str, length: int | None = None) -> Iterator[Member]:
    """Every file of an archive, in order; folders are left out.

    Between two members, the caller may read forward within the one that it got.

    Args:
        stream: the archive, uncompressed.
        archive: what to call it in an error.
        length: its size, where it is known: seeking beyond the end of a file on disk succeeds.

    Raises:
        DatasetError: no tar archive, damaged or truncated; or a member that is a link, a device or sparse, or whose
            name is absolute, leads out of its folder by `..` or is not UTF-8.
    """
    position, said = 0, _NOTHING
    while header := _header(stream, position, archive):
        kind, start, size = header[156:157], position + _BLOCK, _number(header[124:136], archive, position)
        extended = kind in (_PAX, _PAX_GLOBAL, _GNU_NAME)
        if said.size is not None and not extended:
            size = said.size
        end = start + -(-size // _BLOCK) * _BLOCK
        if length is not None and start + size > length:
            raise _truncated(archive, start + size)
        if extended:
            said = _extension(stream, kind, start, size, archive, said)
        else:
            name = said.name or _text(_plain_name(header), archive)
            if kind in _FILE and not name.endswith("/"):  # the oldest archives mark a folder so
                yield Member(_checked(name, archive), start, size)
            elif kind not in (*_FILE, _FOLDER):
                what = _REFUSED.get(kind, f"of the unknown kind {kind.decode('latin1')!r}")
                raise DatasetError(f"{name!r} in {archive!r} is {what}. Pack it again with plain files alone.")
            said = _NOTHING
        if stream.seek(end) < start + size:
            raise _truncated(archive, start + size)
        position = end


def _header(stream: BinaryIO, position: int, archive: str) -> bytes:
    """The block at `position`; empty for the zeros that end an archive."""
    block = stream.read(_BLOCK)
    if block == _END:
        return b""
    if len(block) < _BLOCK:
        raise _truncated(archive, position + _BLOCK)
    # The checksum counts its own eight bytes as spaces.
    if sum(block) - sum(block[148:156]) + 8 * 32 != _number(block[148:156], archive, position):
        raise _damaged(archive, position)
    return block


def _number(digits: bytes, archive: str, position: int) -> int:
    """Octal digits; or binary after a byte 128, which GNU writes for sizes of 8 GiB and more."""
    if digits[0] == 0x80:
        return _plausible(int.from_bytes(digits[1:]), archive, position)
    octal = digits.strip(b" \0") or b"0"
    if not octal.isdigit() or b"8" in octal or b"9" in octal:
        raise _damaged(archive, position)
    return int(octal, 8)


def _plausible(size: int, archive: str, position: int) -> int:
    if size > _LARGEST:
        raise _damaged(archive, position)
    return size


def _plain_name(header: bytes) -> bytes:
    name, prefix = header[:100].split(b"\0", 1)[0], b""
    if header[257:263] == b"ustar\0":
        prefix = header[345:500].split(b"\0", 1)[0]
    return prefix + b"/" + name if prefix else name


def _extension(stream: BinaryIO, kind: bytes, start: int, size: int, archive: str, said: _Said) -> _Said:
    """`said`, and what one more extended header says about the member after it."""
    if size > _LONGEST_HEADER:
        raise _damaged(archive, start)
    content = stream.read(size)
    if len(content) < size:
        raise _truncated(archive, start + size)
    if kind == _GNU_NAME:
        return said._replace(name=_text(content.split(b"\0", 1)[0], archive))
    records = _pax_records(content, archive, start)
    if kind == _PAX_GLOBAL:
        if {b"path", b"size"} & records.keys():
            raise DatasetError(f"{archive!r} names all of its members at once. Pack it again with GNU tar or Python.")
        return said
    name = _text(records[b"path"], archive) if b"path" in records else said.name
    if any(key.startswith(b"GNU.sparse.") for key in records):
        raise DatasetError(f"{name or 'A member'!r} in {archive!r} is a sparse file. Pack it again as a plain one.")
    if b"size" not in records:
        return said._replace(name=name)
    digits = records[b"size"]
    if not digits.isdigit() or len(digits) > 20:
        raise _damaged(archive, start)
    return _Said(name, _plausible(int(digits), archive, start))


def _pax_records(content: bytes, archive: str, start: int) -> dict[bytes, bytes]:
    """Records of the form `LENGTH KEY=VALUE` and a line feed."""
    records, at = dict[bytes, bytes](), 0
    while at < len(content):
        digits, _, _ = content[at : at + 20].partition(b" ")
        length = int(digits) if digits.isdigit() else 0
        record = content[at : at + length]
        key, equals, value = record[len(digits) + 1 : -1].partition(b"=")
        if not equals or len(record) < length:
            raise _damaged(archive, start)
        records[key] = value
        at += length
    return records


def _text(name: bytes, archive: str) -> str:
    try:
        return name.decode()
    except UnicodeDecodeError as error:
        raise DatasetError(f"The name {name!r} in {archive!r} is not UTF-8: rename it.") from error


def _checked(name: str, archive: str) -> str:
    if name.startswith("/") or ".." in name.split("/"):
        raise DatasetError(f"{name!r} in {archive!r} leads out of the archive. Pack it again with relative names.")
    return name


def _damaged(archive: str, position: int) -> DatasetError:
    return DatasetError(f"{archive!r} is no tar archive, or damaged at byte {position}. Fetch or pack it again.")


def _truncated(archive: str, needed: int) -> DatasetError:
    return DatasetError(f"{archive!r} is truncated: it should have at least {needed} bytes. Fetch it again.")
