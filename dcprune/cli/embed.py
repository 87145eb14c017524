"""`dcprune embed`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from dcprune.cli import console, options


class OnError(StrEnum):
    """What happens to an image that cannot be read."""

    FAIL = "fail"
    SKIP = "skip"


class Decode(StrEnum):
    """How JPEG files are decoded."""

    SCALED = "scaled"
    FULL = "full"
    GPU = "gpu"


class Compile(StrEnum):
    """Whether the network is compiled."""

    AUTO = "auto"
    ON = "on"
    OFF = "off"


class Store(StrEnum):
    """Precision of what is stored."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"


def embed(
    dataset: Annotated[
        str,
        typer.Argument(
            help="A registered dataset (cifar10, fashion-mini, ...), a folder of images, a .csv or .parquet list of "
            "images, hf:ORG/NAME[@REVISION], or wds:SHARDS."
        ),
    ],
    encoder: Annotated[str, typer.Option(help="The network.", autocompletion=options.names_of("encoder"))] = "resnet18",
    weights: Annotated[
        str | None, typer.Option(help="A file, or a name the encoder knows (imagenet).", show_default="its own")
    ] = None,
    settings: options.Setting = [],  # noqa: B006 - Typer reads the default, nothing changes it
    split: options.Split = "train",
    image_column: Annotated[str | None, typer.Option(help="Column of the images.", show_default="found")] = None,
    label_column: Annotated[str | None, typer.Option(help="Column of the labels.", show_default="found")] = None,
    caption_column: Annotated[str | None, typer.Option(help="Column of the captions.", show_default="found")] = None,
    pseudo_classes: Annotated[
        int | None,
        typer.Option(min=2, help="Use this many k-means clusters of the embeddings as classes.", show_default="none"),
    ] = None,
    on_error: Annotated[OnError, typer.Option(help="Stop at an image that cannot be read, or leave it out.")] = (
        OnError.FAIL
    ),
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The file to write; a folder of shards beyond 100,000 samples.")
    ] = Path("embeddings.safetensors"),
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what an interrupted run has left.")] = False,
    overwrite: options.Overwrite = False,
    data_dir: options.DataDir = None,
    batch_size: options.BatchSize = None,
    num_workers: Annotated[
        int | None, typer.Option(min=0, help="Threads that decode images.", show_default="one a core")
    ] = None,
    device: options.Device = "auto",
    dtype: options.Dtype = options.DtypeName.AUTO,
    store: Annotated[Store, typer.Option(help="Precision of what is stored.")] = Store.FP32,
    decode: Annotated[
        Decode,
        typer.Option(help="JPEGs far larger than needed at a fraction of their size, always in full, or by nvJPEG."),
    ] = Decode.SCALED,
    compile_mode: Annotated[
        Compile,
        typer.Option("--compile", help="Compile the network: auto does so on a GPU when the run earns it back."),
    ] = Compile.AUTO,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done and what it takes, and do nothing.")
    ] = False,
    seed: options.Seed = 0,
) -> None:
    """Embed every image with a surrogate network: DATASET -> embeddings.safetensors.

    The paper's ResNet-18 is trained on the dataset itself, once, and cached. Two cores train
    a narrow one on the embedded set in a minute: dcprune embed fashion-mini --set width=16

    Rows are written as they are ready: after a kill, --resume goes on. Under torchrun or
    accelerate launch the processes share the work.
    """
    columns = {"image": image_column, "label": label_column, "caption": caption_column}
    chosen: dict[str, Any] = {
        "weights": weights,
        "settings": options.parsed_settings(settings),
        "split": split,
        "columns": {name: column for name, column in columns.items() if column is not None} or None,
        "on_error": on_error.value,
        "data_dir": data_dir,
        "device": device,
        "dtype": dtype.value,
        "store": store.value,
        "decode": decode.value,
        "compile": compile_mode.value,
        "seed": seed,
        "batch_size": batch_size or 256,
        "num_workers": num_workers,
    }
    if dry_run:
        from dcprune.api.embedding_estimate import estimate_embedding
        from dcprune.api.embeddings import EmbedOptions

        console.emit(None, output=str(output), **estimate_embedding(dataset, encoder, EmbedOptions(**chosen)))
        return
    from dcprune.api.embeddings import embed as api_embed

    embeddings = api_embed(
        dataset,
        encoder,
        output=output,
        pseudo_classes=pseudo_classes,
        resume=resume,
        overwrite=overwrite,
        progress=console.ConsoleProgress(),
        **chosen,
    )
    console.emit(
        output,
        num_samples=len(embeddings.embeddings),
        num_skipped=len(embeddings.skipped),
        dim=embeddings.encoder.dim,
        encoder=embeddings.encoder.name,
        dataset=embeddings.dataset.uri,
        details=embeddings.encoder.details,
    )
