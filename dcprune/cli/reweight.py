"""`dcprune reweight`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dcprune.cli import console, live, options

if TYPE_CHECKING:
    from dcprune.artifacts import ClassWeights


def reweight(
    coreset: Annotated[Path, typer.Argument(help="What `dcprune select` wrote.")] = Path("coreset.json"),
    reference: Annotated[Path, typer.Option(help="A run trained on the full data.")] = Path("runs/full"),
    backend: Annotated[
        str | None,
        typer.Option(
            help="Diffusion backend.", autocompletion=options.names_of("backend"), show_default="the reference's"
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(help="Recipe of the proxy.", autocompletion=options.preset_names, show_default="the reference's"),
    ] = None,
    epochs: Annotated[
        float | None,
        typer.Option(help="Length of the proxy's training.", show_default="a tenth of the reference's"),
    ] = None,
    steps: options.Steps = None,
    eta: Annotated[float, typer.Option(help="Step size of the class weights.")] = 1.0,
    smoothing: Annotated[float, typer.Option(help="Share of the uniform weights mixed in at every step.")] = 1e-3,
    excess_decay: Annotated[float, typer.Option(help="Moving average of the excess loss over steps; 0 is none.")] = 0.0,
    shared_dropout: Annotated[
        bool,
        typer.Option(
            "--shared-dropout", help="Score under the dropout of the training pass, which saves a forward pass."
        ),
    ] = False,
    held_out: Annotated[
        bool, typer.Option("--held-out", help="Measure the excess loss on the pruned samples.")
    ] = False,
    stratified: Annotated[
        bool, typer.Option(help="Spread the timesteps evenly within every class, so that less is left to luck.")
    ] = True,
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write; - is stdout.")] = Path(
        "weights.json"
    ),
    max_time: options.MaxTime = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where an interrupted call stopped; give its options again.")
    ] = False,
    overwrite: options.Overwrite = False,
    latents: options.Latents = None,
    data_dir: options.DataDir = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Images of one update, on all devices.", show_default="the reference's")
    ] = None,
    gradient_accumulation_steps: Annotated[
        int | None,
        typer.Option(
            min=1, help="Portions of a batch, one after the other, to save memory.", show_default="the reference's"
        ),
    ] = None,
    device: options.Device = "auto",
    dtype: options.Dtype = options.DtypeName.AUTO,
    dry_run: options.DryRun = False,
    seed: options.Seed = 0,
) -> None:
    """Learn class weights by DRO over a proxy and a reference: coreset.json -> weights.json.

    While the proxy trains, its state is in weights.json.partial; stopped by Ctrl-C, SIGTERM or --max-time the command
    exits with 130, and --resume goes on from there. --preset paper trains the proxy as long as the paper does.
    """
    chosen: dict[str, Any] = {
        "backend": backend,
        "preset": preset,
        "epochs": epochs,
        "steps": steps,
        "eta": eta,
        "smoothing": smoothing,
        "excess_decay": excess_decay,
        "shared_dropout": shared_dropout,
        "held_out": held_out,
        "stratified": stratified,
        "batch_size": batch_size,
        "gradient_accumulation_steps": gradient_accumulation_steps,
        "latents": latents,
        "data_dir": data_dir,
        "device": device,
        "dtype": dtype.value,
        "seed": seed,
    }
    progress = live.TrainingProgress()
    from dcprune.api.proxy import ReweightingRequest

    if dry_run:
        from dcprune.api.training_estimate import estimate_reweighting

        console.emit(None, **estimate_reweighting(ReweightingRequest(coreset, reference, **chosen), output, progress))
        return
    from dcprune import formats
    from dcprune.api.runs import reweight as api_reweight
    from dcprune.processes import processes

    if resume and output.exists():
        from dcprune.api.class_weights import finished_weights

        known = finished_weights(ReweightingRequest(coreset, reference, **chosen), output)
        console.say(f"{output} is finished; there is nothing to resume.")
        _emit(known, output)
        return
    formats.check_output(output, overwrite)
    state = None if str(output) == "-" else output.with_name(f"{output.name}.partial")
    class_weights = api_reweight(
        coreset,
        reference,
        state=state,
        max_time=max_time,
        resume=resume,
        overwrite=overwrite,
        progress=progress,
        **chosen,
    )
    if processes().is_main:
        formats.write_class_weights(class_weights, output, overwrite=overwrite)
        if state is not None:
            formats.remove(state)
    _emit(class_weights, output)


def _emit(class_weights: ClassWeights, output: Path) -> None:
    """The path, and what is in the file."""
    console.emit(
        output,
        weights=class_weights.weights,
        entropy=class_weights.diagnostics.entropy,
        fraction_clipped=class_weights.diagnostics.fraction_clipped,
        ledger=[cost.model_dump(mode="json") for cost in class_weights.costs],
    )
