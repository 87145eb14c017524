"""`dcprune eval`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dcprune.cli import console, options


def evaluate(
    run: Annotated[
        Path | None, typer.Argument(help="A run folder; not with --samples.", show_default="runs/core")
    ] = None,
    metric: Annotated[
        list[str],
        typer.Option(
            help="fid, cmmd, kid, fd:ENCODER, recall:ENCODER, ...; may be repeated.",
            autocompletion=options.names_of("metric"),
        ),
    ] = ["fid"],  # noqa: B006 - Typer reads the default, nothing changes it
    samples: Annotated[Path | None, typer.Option(help="Evaluate this folder of images instead of a run.")] = None,
    reference: Annotated[
        str | None, typer.Option(help="Dataset to compare with.", show_default="the run's own, whole")
    ] = None,
    settings: options.Setting = [],  # noqa: B006 - Typer reads the default, nothing changes it
    weights: Annotated[
        list[str],
        typer.Option(help="Encoder weights: a PATH for every metric, or METRIC=PATH.", show_default=False),
    ] = [],  # noqa: B006 - Typer reads the default, nothing changes it
    num_samples: options.NumSamples = None,
    num_inference_steps: options.NumInferenceSteps = None,
    guidance_scale: options.GuidanceScale = None,
    sampler: options.Sampler = None,
    per_class: Annotated[bool, typer.Option(help="Also within every class, where there are images enough.")] = True,
    split: Annotated[str | None, typer.Option(help="Split of the reference.", show_default="the run's")] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The file to write; - is stdout.", show_default="RUN/metrics.json"),
    ] = None,
    overwrite: options.Overwrite = False,
    data_dir: options.DataDir = None,
    batch_size: options.BatchSize = None,
    num_workers: options.NumWorkers = 2,
    device: options.Device = "auto",
    dtype: options.Dtype = options.DtypeName.AUTO,
    seed: options.Seed = 0,
) -> None:
    """Measure a run's images, or a folder of images, against real ones: a run -> RUN/metrics.json."""
    from dcprune import formats
    from dcprune.api.evaluation import evaluate as api_evaluate

    if run is None and samples is None:
        run = Path("runs/core")
    output = output or (run / "metrics.json" if run is not None else Path("metrics.json"))
    if run is not None:
        formats.read_run(run)
    formats.check_output(output, overwrite)
    metrics = api_evaluate(
        run,
        metrics=metric,
        samples=samples,
        reference=reference,
        settings=options.parsed_settings(settings),
        weights=_weights(weights),
        num_samples=num_samples,
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        sampler=sampler,
        per_class=per_class,
        split=split,
        data_dir=data_dir,
        num_workers=num_workers,
        device=device,
        dtype=dtype.value,
        seed=seed,
        progress=console.ConsoleProgress(),
        **({"batch_size": batch_size} if batch_size is not None else {}),
    )
    formats.write_metrics(metrics, output, overwrite=overwrite)
    console.emit(output, metrics={value.name: value.value for value in metrics.metrics})
    for value in metrics.metrics:
        console.say(f"{value.name} = {value.value:.4g} ({value.num_generated} images against {value.num_reference})")


def _weights(entries: list[str]) -> dict[str, Path] | Path | None:
    """One path for all metrics, or a path for each that is named."""
    from dcprune.errors import OptionError

    if not entries:
        return None
    if len(entries) == 1 and "=" not in entries[0]:
        return Path(entries[0])
    pairs = [entry.rpartition("=") for entry in entries]
    if not all(name for name, _, _ in pairs):
        raise OptionError("--weights takes one PATH, or METRIC=PATH for each metric.")
    return {name: Path(path) for name, _, path in pairs}
