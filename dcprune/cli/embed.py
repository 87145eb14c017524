"""`dcprune embed`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dcprune.cli import console, options


def embed(
    dataset: Annotated[
        str, typer.Argument(help="A registered dataset (cifar10, fashion-mini, ...) or a folder of images.")
    ],
    encoder: Annotated[str, typer.Option(help="The network.", autocompletion=options.names_of("encoder"))] = "resnet18",
    weights: Annotated[
        str | None, typer.Option(help="A file, or a name the encoder knows (imagenet).", show_default="its own")
    ] = None,
    settings: options.Setting = [],  # noqa: B006 - Typer reads the default, nothing changes it
    split: options.Split = "train",
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The file to write; a folder of shards beyond 100,000 samples.")
    ] = Path("embeddings.safetensors"),
    overwrite: options.Overwrite = False,
    data_dir: options.DataDir = None,
    batch_size: options.BatchSize = None,
    num_workers: options.NumWorkers = 2,
    device: options.Device = "auto",
    dtype: options.Dtype = options.DtypeName.AUTO,
    seed: options.Seed = 0,
) -> None:
    """Embed every image with a surrogate network: DATASET -> embeddings.safetensors.

    The paper's ResNet-18 is trained on the dataset itself, once, and cached. Two cores train
    a narrow one on the embedded set in a minute: dcprune embed fashion-mini --set width=16
    """
    from dcprune import formats
    from dcprune.api.embeddings import embed as api_embed

    formats.check_output(output, overwrite)
    embeddings = api_embed(
        dataset,
        encoder,
        weights=weights,
        settings=options.parsed_settings(settings),
        split=split,
        data_dir=data_dir,
        device=device,
        dtype=dtype.value,
        seed=seed,
        num_workers=num_workers,
        progress=console.ConsoleProgress(),
        **({"batch_size": batch_size} if batch_size is not None else {}),
    )
    formats.write_embeddings(embeddings, output, overwrite=overwrite)
    console.emit(
        output,
        num_samples=len(embeddings.embeddings),
        dim=embeddings.encoder.dim,
        encoder=embeddings.encoder.name,
        dataset=embeddings.dataset.uri,
        details=embeddings.encoder.details,
    )
