"""`dcprune export`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from dcprune.cli import console, options


class Form(StrEnum):
    """What a coreset becomes."""

    FOLDER = "folder"
    LIST = "list"
    NUMPY = "numpy"
    HF = "hf"
    WEBDATASET = "webdataset"
    CSV = "csv"


class Link(StrEnum):
    """Whether exported files are copies."""

    COPY = "copy"
    SYMLINK = "symlink"
    HARDLINK = "hardlink"


def export(
    coreset: Annotated[Path, typer.Argument(help="What `dcprune select` wrote.")] = Path("coreset.json"),
    *,
    to: Annotated[
        Form,
        typer.Option(
            help="An image folder, a list of ids, the indices as .npy, a Hugging Face dataset, WebDataset shards, or a "
            "table of weights.",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The file or folder to write.")],
    link: Annotated[
        Link | None, typer.Option(help="folder: copy the files, or link to the originals.", show_default="copy")
    ] = None,
    absolute: Annotated[bool, typer.Option("--absolute", help="list: whole paths of the files.")] = False,
    shard_size: Annotated[
        int | None, typer.Option(min=1, help="webdataset: samples in a shard.", show_default="10000")
    ] = None,
    class_weights: Annotated[
        Path | None,
        typer.Option(help="csv, webdataset: what `dcprune reweight` wrote.", show_default="every sample alike"),
    ] = None,
    dropped: Annotated[
        bool, typer.Option("--all", help="csv: also the samples that are not kept, with weight 0.")
    ] = False,
    overwrite: options.Overwrite = False,
    data_dir: options.DataDir = None,
) -> None:
    """Give a coreset to other programs: coreset.json -> a folder, list, array, dataset, shards or table.

    dcprune export --to folder --link symlink -o core
    """
    from dcprune import formats
    from dcprune.api.exporting import export as api_export

    kept = formats.read_coreset(coreset)
    path = api_export(
        kept,
        to.value,
        output,
        link=None if link is None else link.value,
        absolute=absolute,
        shard_size=shard_size,
        class_weights=class_weights,
        dropped=dropped,
        data_dir=data_dir,
        overwrite=overwrite,
        progress=console.ConsoleProgress(),
    )
    console.emit(path, form=to.value, num_samples=kept.num_selected, dataset=kept.dataset.uri)
