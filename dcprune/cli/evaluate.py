"""`dcprune eval`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dcprune.cli import console, options
from dcprune.processes import is_main

if TYPE_CHECKING:
    from dcprune.artifacts import Interval, MetricValue

DEFAULT_RUN = "runs/core"


def evaluate(
    images: Annotated[
        str | None,
        typer.Argument(
            help="A run folder; or images: a folder, an .npz, a dataset, or a coreset.json.", show_default=DEFAULT_RUN
        ),
    ] = None,
    metric: Annotated[
        list[str],
        typer.Option(
            help="fid, cmmd, kid, isc, fd:ENCODER, recall:ENCODER, ...; may be repeated.",
            autocompletion=options.names_of("metric"),
        ),
    ] = ["fid"],  # noqa: B006 - Typer reads the default, nothing changes it
    samples: Annotated[
        Path | None, typer.Option(help="Images that the run drew before, instead of drawing: a folder or an .npz.")
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            help="What to compare with: a dataset, a folder, an .npz of images or of mu and sigma, a run, or what "
            "--export-reference wrote.",
            show_default="the run's own data, whole",
        ),
    ] = None,
    settings: options.Setting = [],  # noqa: B006 - Typer reads the default, nothing changes it
    weights: Annotated[
        list[str],
        typer.Option(help="Encoder weights: a PATH for every metric, or METRIC=PATH.", show_default=False),
    ] = [],  # noqa: B006 - Typer reads the default, nothing changes it
    num_samples: Annotated[
        str | None,
        typer.Option(
            metavar="N[,N...]",
            help="Images to draw, or to look at; of several numbers the metric at each, and its limit.",
            show_default="of the preset; all that are there",
        ),
    ] = None,
    seeds: Annotated[
        str | None,
        typer.Option(metavar="S,S[,S...]", help="Draw a set with each seed: means and intervals.", show_default="one"),
    ] = None,
    bootstrap: Annotated[
        int,
        typer.Option(min=0, help="Resamples of the images, against a fixed reference, for an interval; 0 for none."),
    ] = 0,
    confidence: Annotated[float, typer.Option(help="Level of the intervals.")] = 0.95,
    num_inference_steps: options.NumInferenceSteps = None,
    guidance_scale: options.GuidanceScale = None,
    sampler: options.Sampler = None,
    per_class: Annotated[bool, typer.Option(help="Also within every class, where there are images enough.")] = True,
    split: Annotated[str | None, typer.Option(help="Split of the reference.", show_default="the run's")] = None,
    export_reference: Annotated[
        Path | None,
        typer.Option(
            help="Only write what the metrics need to know of the reference to this .safetensors file.",
            show_default=False,
        ),
    ] = None,
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
    """Measure images against real ones: those of a run -> RUN/metrics.json, or any images -> metrics.json.

    dcprune eval runs/core --metric fid --metric isc --bootstrap 1000
    dcprune eval samples/ --reference photos/ --metric fd:dinov2
    dcprune eval samples.npz --reference stats.npz --num-samples 5000,10000,20000

    Every image is decoded or drawn once, for all metrics, and drawn images are not kept.
    """
    from dcprune import formats
    from dcprune.api.evaluation import evaluate as api_evaluate
    from dcprune.evaluation.choosing import weights_by_metric

    common: dict[str, Any] = {
        "metrics": metric,
        "settings": options.parsed_settings(settings),
        "weights": weights_by_metric(weights),
        "split": split,
        "data_dir": data_dir,
        "num_workers": num_workers,
        "device": device,
        "progress": console.ConsoleProgress(),
        **({"batch_size": batch_size} if batch_size is not None else {}),
    }
    if export_reference is not None:
        _export(export_reference, images, reference, overwrite, common)
        return
    run = _run(images)
    output = output or (run / "metrics.json" if run is not None else Path("metrics.json"))
    formats.check_output(output, overwrite)
    metrics = api_evaluate(
        run or images,
        samples=samples,
        reference=reference,
        num_samples=_integers("--num-samples", num_samples),
        seeds=_integers("--seeds", seeds) or (),
        bootstrap=bootstrap,
        confidence=confidence,
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        sampler=sampler,
        per_class=per_class,
        dtype=dtype.value,
        seed=seed,
        **common,
    )
    if is_main():
        formats.write_metrics(metrics, output, overwrite=overwrite)
    console.emit(output, metrics={value.name: value.value for value in metrics.metrics})
    for value in metrics.metrics:
        _say(value)


def _run(images: str | None) -> Path | None:
    """The run folder that is meant, or None where images are named.

    Raises:
        MissingInput, ArtifactError: none is named, and there is no default run.
    """
    from dcprune import formats
    from dcprune.formats.documents import RUN_FILE

    if images is not None and not (Path(images) / RUN_FILE).is_file():
        return None
    run = Path(images or DEFAULT_RUN)
    formats.read_run(run)
    return run


def _export(path: Path, images: str | None, reference: str | None, overwrite: bool, common: dict[str, Any]) -> None:
    from dcprune import formats
    from dcprune.api.evaluation import export_reference
    from dcprune.errors import OptionError

    if reference is None or images is not None:
        raise OptionError("--export-reference measures nothing: name a --reference, and no images.")
    if path.suffix != ".safetensors":
        raise OptionError(f"--export-reference writes a .safetensors file, not {path.name!r}.")
    formats.check_output(path, overwrite)
    statistics = export_reference(reference, **common)
    if is_main():
        formats.write_reference(statistics, path, overwrite=overwrite)
    console.emit(
        path,
        num_images=statistics.dataset.num_samples,
        encoders=[space.encoder.name for space in statistics.spaces],
        with_features=[space.features is not None for space in statistics.spaces],
    )


def _say(value: MetricValue) -> None:
    """The value on stderr, with what else was asked for."""
    against = f" against {value.num_reference}" if value.num_reference else ""
    console.say(f"{value.name} = {value.value:.4g}{_range(value.interval)} ({value.num_generated} images{against})")
    for each in value.sweep[:-1]:
        console.say(f"  {each.num_generated} images: {each.value:.4g}{_range(each.interval)}")
    if value.extrapolated is not None:
        console.say(f"  ever more images: {value.extrapolated.value:.4g}{_range(value.extrapolated.interval)}")


def _range(interval: Interval | None) -> str:
    return "" if interval is None else f" [{interval.low:.4g}, {interval.high:.4g}]"


def _integers(option: str, text: str | None) -> list[int] | None:
    """`"5000,10000"` as numbers; a TOML list arrives as its text.

    Raises:
        OptionError: anything else.
    """
    from dcprune.errors import OptionError

    if text is None:
        return None
    entries = [each.strip() for each in text.strip("[] ").split(",")]
    if not all(each.isdecimal() for each in entries):
        raise OptionError(f"{option} takes numbers separated by commas, not {text!r}.")
    return [int(each) for each in entries]
