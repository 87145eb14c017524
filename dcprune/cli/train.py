"""`dcprune train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dcprune.cli import console, live, options

CORESET = Path("coreset.json")


def train(
    dataset: Annotated[
        str | None, typer.Argument(help="Train on all of this dataset instead of a coreset.", show_default=False)
    ] = None,
    coreset: Annotated[
        Path | None, typer.Option(help="What `dcprune select` wrote.", show_default=str(CORESET))
    ] = None,
    class_weights: Annotated[
        Path | None, typer.Option(help="What `dcprune reweight` wrote.", show_default="every class alike")
    ] = None,
    class_weighting: Annotated[
        options.ClassWeighting | None,
        typer.Option(help="Class weights multiply the loss, or draw the classes.", show_default="loss"),
    ] = None,
    unconditional: Annotated[
        bool,
        typer.Option(
            "--unconditional", help="Learn without classes, as if there were none (the ddae encoder needs it)."
        ),
    ] = False,
    dynamic: Annotated[
        options.Dynamic | None,
        typer.Option(
            help="infobatch leaves out, in every epoch anew, half of the images that the model does well on.",
            show_default="none",
        ),
    ] = None,
    backend: Annotated[
        str, typer.Option(help="Diffusion backend.", autocompletion=options.names_of("backend"))
    ] = "ddpm",
    preset: Annotated[str, typer.Option(help="Recipe.", autocompletion=options.preset_names)] = "paper",
    settings: options.Setting = [],  # noqa: B006 - Typer reads the default, nothing changes it
    epochs: options.Epochs = None,
    steps: options.Steps = None,
    anneal: Annotated[
        float | None,
        typer.Option(help="This fraction of the training on the coreset, the rest on the full data (paper: 0.875)."),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Images of one update, on all devices.", show_default="of the preset")
    ] = None,
    gradient_accumulation_steps: Annotated[
        int | None,
        typer.Option(min=1, help="Portions of a batch, one after the other, to save memory.", show_default="1"),
    ] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak rate.", show_default="of the preset")] = None,
    checkpoint_every: Annotated[
        int | None, typer.Option(min=1, help="Updates between checkpoints.", show_default="of the preset")
    ] = None,
    sample_every: Annotated[
        int | None,
        typer.Option(min=0, help="Updates between sample grids; 0 draws one at the end.", show_default="of the preset"),
    ] = None,
    guidance_scale: options.GuidanceScale = None,
    trackers: Annotated[
        list[str],
        typer.Option("--tracker", help="tensorboard, trackio or wandb; may be repeated.", show_default="none"),
    ] = [],  # noqa: B006 - Typer reads the default, nothing changes it
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The run folder.", show_default="runs/core, or runs/full for a DATASET"),
    ] = None,
    max_time: options.MaxTime = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in the output folder; give its options again.")
    ] = False,
    overwrite: options.Overwrite = False,
    latents: options.Latents = None,
    split: options.Split = "train",
    data_dir: options.DataDir = None,
    device: options.Device = "auto",
    dtype: options.Dtype = options.DtypeName.AUTO,
    dry_run: options.DryRun = False,
    seed: options.Seed = 0,
) -> None:
    """Train a diffusion model on a coreset: coreset.json [+ weights.json] -> a run folder.

    dcprune train fashion-mini --preset tiny      trains the full-data reference, runs/full

    dcprune train --preset tiny --class-weights weights.json      trains on coreset.json, runs/core

    Stopped by Ctrl-C, SIGTERM or --max-time it saves its state and exits with 130; --resume goes on from there. Several
    devices share the batches: torchrun --nproc-per-node 8 -m dcprune train ...
    """
    if dataset is None and coreset is None:
        coreset = CORESET
    output = output or Path("runs", "full" if coreset is None else "core")
    chosen: dict[str, Any] = {
        "dataset": dataset,
        "coreset": coreset,
        "class_weights": class_weights,
        "backend": backend,
        "preset": preset,
        "settings": options.parsed_settings(settings),
        "epochs": epochs,
        "steps": steps,
        "anneal": anneal,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "class_weighting": class_weighting.value if class_weighting else None,
        "unconditional": unconditional,
        "dynamic": dynamic.value if dynamic else None,
        "gradient_accumulation_steps": gradient_accumulation_steps,
        "checkpoint_every": checkpoint_every,
        "sample_every": sample_every,
        "guidance_scale": guidance_scale,
        "trackers": trackers,
        "latents": latents,
        "split": split,
        "data_dir": data_dir,
        "device": device,
        "dtype": dtype.value,
        "seed": seed,
    }
    progress = live.TrainingProgress()
    if dry_run:
        from dcprune.api.training_estimate import estimate_training
        from dcprune.api.training_job import TrainingRequest

        console.emit(None, **estimate_training(TrainingRequest(**chosen), output, progress))
        return
    from dcprune.api.runs import train as api_train

    run = api_train(output=output, max_time=max_time, resume=resume, overwrite=overwrite, progress=progress, **chosen)
    console.emit(
        output,
        backend=run.backend,
        steps=run.step,
        num_trained_samples=run.num_trained_samples,
        ledger=[cost.model_dump(mode="json") for cost in run.ledger],
    )
