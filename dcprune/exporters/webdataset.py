"""`webdataset`: tar shards of the kept samples."""

from __future__ import annotations

import io
import json
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from dcprune.exporters.samples import Samples, without_suffix
from dcprune.interfaces import Progress


def write_webdataset(samples: Samples, folder: Path, progress: Progress, *, shard_size: int) -> None:
    """Write `000000.tar`, `000001.tar`, ... of up to `shard_size` samples each, in the order of the dataset.

    A sample's members are its image under its own suffix, `.cls` (the label), `.txt` (the caption) and `.json` (index,
    id, label, class and weight). Its key is its id without the suffix of an image; dots, at which a key would end,
    become underscores. `classes.txt` beside the shards has the class names, one a line, in the order of the labels.
    Nothing in a shard depends on when, where or by whom it is written.

    Raises:
        DatasetError: an image cannot be read.
    """
    keys = _keys(samples)
    rows = samples.rows.tolist()
    names = samples.source.class_names
    if names and all(name == name.strip() and len(name.splitlines()) == 1 for name in names):
        (folder / "classes.txt").write_bytes("".join(f"{name}\n" for name in names).encode())
    with progress.task(f"export {samples.source.uri}", len(samples), "images") as task:
        for number, start in enumerate(range(0, len(rows), shard_size)):
            part = slice(start, start + shard_size)
            with tarfile.open(folder / f"{number:06d}.tar", "w", format=tarfile.PAX_FORMAT) as shard:
                for row, key, weight in zip(rows[part], keys[part], samples.weights[part].tolist(), strict=True):
                    for suffix, content in _members(samples, row, weight):
                        member = tarfile.TarInfo(key + suffix)
                        member.size, member.mode = len(content), 0o644
                        shard.addfile(member, io.BytesIO(content))
                    task.advance()


def _members(samples: Samples, row: int, weight: float) -> Iterator[tuple[str, bytes]]:
    source, label = samples.source, samples.label(row)
    file = samples.image_file(row)
    yield file.suffix, file.content
    facts: dict[str, object] = {"index": row, "id": samples.id(row)}
    if label is not None:
        yield ".cls", str(label).encode()
        facts |= {"label": label, "class": source.class_names[label]}
    if source.captions is not None:
        yield ".txt", source.captions[row].encode()
    yield ".json", json.dumps({**facts, "weight": weight}, ensure_ascii=False).encode()


def _keys(samples: Samples) -> list[str]:
    """Keys in the order of the rows, distinct; readers skip members that begin with two underscores."""
    keys = []
    for row in samples:
        folder, slash, name = without_suffix(samples.id(row)).rpartition("/")
        key = folder + slash + name.replace(".", "_")
        keys.append(f"x{key}" if key.startswith("__") else key)
    counts = Counter(keys)
    return [key if counts[key] == 1 else f"{key}-{row}" for key, row in zip(keys, samples, strict=True)]
