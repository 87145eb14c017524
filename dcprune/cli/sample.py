"""`dcprune sample`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dcprune.cli import console, options


def sample(
    run: Annotated[Path, typer.Argument(help="A run folder.")] = Path("runs/core"),
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder of PNG images, one sub-folder a class.")
    ] = Path("samples"),
    num_samples: options.NumSamples = None,
    class_names: Annotated[
        list[str], typer.Option("--class", help="Draw this class only; may be repeated.", show_default="all")
    ] = [],  # noqa: B006 - Typer reads the default, nothing changes it
    prompts: Annotated[
        list[str],
        typer.Option("--prompt", help="Draw this text (backend sd); may be repeated.", show_default="classes"),
    ] = [],  # noqa: B006 - Typer reads the default, nothing changes it
    num_inference_steps: options.NumInferenceSteps = None,
    guidance_scale: options.GuidanceScale = None,
    sampler: options.Sampler = None,
    overwrite: options.Overwrite = False,
    batch_size: options.BatchSize = None,
    device: options.Device = "auto",
    dtype: options.Dtype = options.DtypeName.AUTO,
    seed: options.Seed = 0,
) -> None:
    """Draw images from a run, the same number of every class; image i depends on seed + i alone."""
    from dcprune.api.runs import sample as api_sample

    folder = api_sample(
        run,
        output=output,
        num_samples=num_samples,
        class_names=class_names or None,
        prompts=prompts or None,
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        sampler=sampler,
        batch_size=batch_size,
        device=device,
        dtype=dtype.value,
        seed=seed,
        overwrite=overwrite,
        progress=console.ConsoleProgress(),
    )
    console.emit(folder, num_samples=sum(1 for _ in folder.rglob("*.png")))
