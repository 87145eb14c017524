"""`hf`: a Hugging Face dataset of the kept samples, as `datasets.load_from_disk` opens it."""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dcprune.errors import DcpruneError
from dcprune.exporters.samples import Samples
from dcprune.interfaces import HoldsTable, Progress


def write_huggingface(samples: Samples, folder: Path, progress: Progress, *, described: str) -> None:
    """Write the columns `image`, `label` (a ClassLabel), `caption` and `id`, those that the dataset has.

    Images keep their bytes; where there are none, they are PNG files of the pixels. A dataset of Hugging Face keeps all
    of its own columns instead.

    Args:
        samples: what to write.
        folder: an existing empty folder.
        progress: counts the samples.
        described: all that the rows depend on, as text; the dataset's own fingerprint is made from it.

    Raises:
        DcpruneError: the package `datasets` is not installed.
        DatasetError: an image cannot be read.
    """
    try:
        import datasets
        from datasets.arrow_writer import ArrowWriter
    except ImportError as error:
        raise DcpruneError('--to hf needs Hugging Face datasets: pip install "dcprune[datasets]"') from error
    if isinstance(samples.source, HoldsTable):
        _select(samples, samples.source.table, folder, progress)
        return
    features = _features(samples)
    digest = hashlib.sha256(described.encode()).hexdigest()[:16]
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}.") as scratch, _without_bars():
        arrow = str(Path(scratch, "rows.arrow"))
        with ArrowWriter(features=features, path=arrow) as writer:
            for example in _examples(samples, progress):
                writer.write(example)
            writer.finalize()
        table = datasets.Dataset.from_file(arrow).data
        info = datasets.DatasetInfo(features=features)
        datasets.Dataset(table, info=info, split=_split(samples.source.split), fingerprint=digest).save_to_disk(folder)


def _select(samples: Samples, table: Any, folder: Path, progress: Progress) -> None:
    with progress.task(f"export {samples.source.uri}", len(samples), "images") as task, _without_bars():
        table.select(samples.rows).save_to_disk(folder)
        task.advance(len(samples))


def _features(samples: Samples) -> Any:
    import datasets

    source = samples.source
    columns: dict[str, Any] = {"image": datasets.Image()}
    if source.labels is not None:
        columns["label"] = datasets.ClassLabel(names=list(source.class_names))
    if source.captions is not None:
        columns["caption"] = datasets.Value("string")
    if source.ids is not None:
        columns["id"] = datasets.Value("string")
    return datasets.Features(columns)


def _examples(samples: Samples, progress: Progress) -> Iterator[dict[str, Any]]:
    source = samples.source
    with progress.task(f"export {source.uri}", len(samples), "images") as task:
        for row in samples:
            file = samples.image_file(row)
            name = None if source.ids is None else source.ids[row]
            example: dict[str, Any] = {"image": {"bytes": file.content, "path": name}}
            if source.labels is not None:
                example["label"] = int(source.labels[row])
            if source.captions is not None:
                example["caption"] = source.captions[row]
            if source.ids is not None:
                example["id"] = name
            yield example
            task.advance()


def _split(name: str) -> Any:
    """The split's name, where the library takes it as one."""
    import datasets

    return datasets.NamedSplit(name) if re.fullmatch(r"\w+(\.\w+)*", name) else None


@contextmanager
def _without_bars() -> Iterator[None]:
    """The library draws its own bars, beside ours."""
    import datasets

    before = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not before:
            datasets.enable_progress_bars()
