"""`dcprune reweight`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dcprune.cli import console, options


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
        str | None, typer.Option(help="Recipe of the proxy: paper or tiny.", show_default="the reference's")
    ] = None,
    epochs: Annotated[
        float | None,
        typer.Option(help="Length of the proxy's training.", show_default="a tenth of the reference's"),
    ] = None,
    steps: options.Steps = None,
    eta: Annotated[float, typer.Option(help="Step size of the class weights.")] = 1.0,
    smoothing: Annotated[float, typer.Option(help="Share of the uniform weights mixed in at every step.")] = 1e-3,
    held_out: Annotated[
        bool, typer.Option("--held-out", help="Measure the excess loss on the pruned samples.")
    ] = False,
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write; - is stdout.")] = Path(
        "weights.json"
    ),
    overwrite: options.Overwrite = False,
    data_dir: options.DataDir = None,
    batch_size: options.BatchSize = None,
    device: options.Device = "auto",
    dtype: options.Dtype = options.DtypeName.AUTO,
    seed: options.Seed = 0,
) -> None:
    """Learn class weights by DRO over a proxy and a reference: coreset.json -> weights.json."""
    from dcprune import formats
    from dcprune.api.runs import reweight as api_reweight

    formats.check_output(output, overwrite)
    class_weights = api_reweight(
        coreset,
        reference,
        backend=backend,
        preset=preset,
        epochs=epochs,
        steps=steps,
        eta=eta,
        smoothing=smoothing,
        held_out=held_out,
        batch_size=batch_size,
        data_dir=data_dir,
        device=device,
        dtype=dtype.value,
        seed=seed,
        progress=console.ConsoleProgress(),
    )
    formats.write_class_weights(class_weights, output, overwrite=overwrite)
    console.emit(
        output,
        weights=class_weights.weights,
        entropy=class_weights.diagnostics.entropy,
        fraction_clipped=class_weights.diagnostics.fraction_clipped,
    )
