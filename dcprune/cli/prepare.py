"""`dcprune prepare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dcprune.cli import console, options


def prepare(
    dataset: Annotated[
        str,
        typer.Argument(
            help="A registered dataset (cifar10, imagenette, ...), a folder of images, a .csv or .parquet list of "
            "images, hf:ORG/NAME, or wds:SHARDS."
        ),
    ],
    backend: Annotated[
        str | None,
        typer.Option(
            help="Encode what trainings of this backend look for.",
            autocompletion=options.names_of("backend"),
            show_default="none: --vae and --resolution say what to encode",
        ),
    ] = None,
    preset: Annotated[str, typer.Option(help="Recipe.", autocompletion=options.preset_names)] = "paper",
    settings: options.Setting = [],  # noqa: B006 - Typer reads the default, nothing changes it
    vae: Annotated[
        str | None,
        typer.Option(
            metavar="REPO|FOLDER",
            help="Autoencoder of diffusers: ORG/NAME or ORG/NAME/SUBFOLDER of the hub (with a revision: "
            "ORG/NAME@REVISION), or a folder.",
            show_default="stabilityai/sd-vae-ft-mse",
        ),
    ] = None,
    resolution: Annotated[int | None, typer.Option(min=1, help="Side of the images.", show_default="256")] = None,
    flips: Annotated[bool, typer.Option("--flips/--no-flips", help="Encode the mirror images, too.")] = True,
    split: options.Split = "train",
    image_column: Annotated[str | None, typer.Option(help="Column of the images.", show_default="found")] = None,
    label_column: Annotated[str | None, typer.Option(help="Column of the labels.", show_default="found")] = None,
    caption_column: Annotated[str | None, typer.Option(help="Column of the captions.", show_default="found")] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="The folder to write, for `train --latents FOLDER`.",
            show_default="the user cache, where trainings look",
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what an interrupted run has left.")] = False,
    overwrite: options.Overwrite = False,
    data_dir: options.DataDir = None,
    dry_run: options.DryRun = False,
    device: options.Device = "auto",
) -> None:
    """Encode a dataset into latents ahead of time: DATASET -> a folder of safetensors files.

    dcprune prepare imagenette --backend sd      what its trainings need, prompts among it

    dcprune prepare imagenet --vae stabilityai/sd-vae-ft-mse --resolution 256 -o latents

    Trainings do this themselves where it was not done. After a kill the same command goes on,
    with -o if --resume is added. Under torchrun or accelerate launch the processes share the work.
    """
    columns = {"image": image_column, "label": label_column, "caption": caption_column}
    asked: dict[str, Any] = {
        "backend": backend,
        "preset": preset,
        "settings": options.parsed_settings(settings),
        "vae": vae,
        "resolution": resolution,
        "flips": flips,
        "output": output,
        "split": split,
        "columns": {name: column for name, column in columns.items() if column is not None} or None,
        "data_dir": data_dir,
        "device": device,
    }
    if dry_run:
        from dcprune.api.encoding_estimate import estimate_preparation

        console.emit(None, **estimate_preparation(dataset, **asked))
        return
    from dcprune.api.preparing import prepare as api_prepare

    made = api_prepare(dataset, **asked, resume=resume, overwrite=overwrite, progress=console.ConsoleProgress())
    console.emit(
        made.folder,
        num_samples=made.record.num_rows,
        autoencoder=made.record.autoencoder,
        resolution=made.record.resolution,
        flips=made.record.flips,
        sample_shape=list(made.record.sample_shape),
    )
