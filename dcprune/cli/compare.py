"""`dcprune compare`."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dcprune.cli import console, options, tables

if TYPE_CHECKING:
    from dcprune.artifacts import Comparison, Distances, Extrapolation, MetricValue

COLUMNS = ("frechet", "recall", "coverage", "density", "precision", "mean_radius", "max_radius")
MOST_CLASSES = 40
SEEDS, NEIGHBOURS = 5, 5


def compare(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="CORESET|METRICS...", help="What `dcprune select` wrote; or what `eval` wrote, or runs it measured."
        ),
    ],
    metric: Annotated[
        list[str], typer.Option(help="Of metrics: only this one; may be repeated.", show_default="all")
    ] = [],  # noqa: B006 - Typer reads the default, nothing changes it
    embeddings: Annotated[
        Path | None,
        typer.Option(help="The space in which distances to all samples are measured.", show_default="no distances"),
    ] = None,
    seeds: Annotated[int, typer.Option(min=0, help="Random choices that each coreset is held against.")] = SEEDS,
    neighbours: Annotated[
        int, typer.Option(min=1, help="Neighbours k of recall, coverage, density, precision.")
    ] = NEIGHBOURS,
    queries: Annotated[
        int | None,
        typer.Option(min=1, help="Look at the neighbours of this many samples, drawn at random.", show_default="all"),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Also write the comparison as JSON.", show_default=False)
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Also draw the coresets: an .svg file.", show_default=False)] = None,
    overwrite: options.Overwrite = False,
    device: options.Device = "auto",
    seed: options.Seed = 0,
) -> None:
    """Put coresets of one dataset, or metrics that were measured alike, side by side.

    Coresets: overlap, classes, and distance to all samples against random choice.
    dcprune compare coreset.json random.json --embeddings embeddings.safetensors

    Metrics: values and intervals; where protocols differ it says how, and compares nothing.
    dcprune compare runs/core runs/full
    """
    from dcprune import formats
    from dcprune.api.comparing import compare as api_compare
    from dcprune.errors import OptionError
    from dcprune.report.comparison import comparison_svg

    if all(formats.artifact_kind(each) in ("metrics", "run") for each in files):
        if embeddings or plot or queries or (seeds, neighbours) != (SEEDS, NEIGHBOURS):
            raise OptionError(
                "--embeddings, --plot, --queries, --seeds and --neighbours are for coresets, not metrics."
            )
        _compare_metrics(files, metric, output, overwrite)
        return
    if metric:
        raise OptionError("--metric is for files of metrics, not for coresets.")
    if plot is not None and plot.suffix.lower() != ".svg":
        raise OptionError(f"--plot draws an .svg file, not {plot.name!r}.")
    for path in (output, plot):
        if path is not None:
            formats.check_output(path, overwrite)
    comparison = api_compare(
        files,
        embeddings=embeddings,
        seeds=seeds,
        num_neighbours=neighbours,
        num_queries=queries,
        device=device,
        seed=seed,
        progress=console.ConsoleProgress(),
    )
    if output is not None:
        formats.write_comparison(comparison, output, overwrite=overwrite)
    if plot is not None:
        formats.atomic_write(plot, comparison_svg(comparison).encode(), overwrite=overwrite)
    if str(output) == "-":
        return
    if console.settings.json:
        typer.echo(comparison.model_dump_json())
        return
    _show_coresets(comparison)
    _show_classes(comparison)
    _show_overlap(comparison)
    _show_distances(comparison)


def _compare_metrics(files: list[Path], metric: list[str], output: Path | None, overwrite: bool) -> None:
    from dcprune import formats
    from dcprune.api.comparing_metrics import compare_metrics

    if output is not None:
        formats.check_output(output, overwrite)
    comparison = compare_metrics(files, metrics=metric)
    if output is not None:
        formats.write_metrics_comparison(comparison, output, overwrite=overwrite)
    if str(output) == "-":
        return
    if console.settings.json:
        typer.echo(comparison.model_dump_json())
        return
    rows = []
    for name in comparison.metrics:
        values = [column.values.get(name) for column in comparison.columns]
        first = next(each for each in values if each is not None)
        rows.append((name, f"{first.num_generated}", *(_cell(each) for each in values)))
        if any(each is not None and each.extrapolated is not None for each in values):
            rows.append(("", "ever more", *(_cell(None if each is None else each.extrapolated) for each in values)))
    header = ("metric", "images", *(column.name for column in comparison.columns))
    tables.show("Metrics, each measured alike", header, rows)


def _cell(value: MetricValue | Extrapolation | None) -> str:
    """A value and its interval; a dash where there is none."""
    if value is None:
        return "-"
    interval = value.interval
    bounds = "" if interval is None else f" [{tables.number(interval.low)}, {tables.number(interval.high)}]"
    return tables.number(value.value) + bounds


def _show_coresets(comparison: Comparison) -> None:
    count = comparison.dataset.num_samples
    rows = [
        (
            each.name,
            each.selection.scorer,
            each.selection.keep,
            each.selection.scope,
            f"{each.num_selected}",
            f"{100 * each.num_selected / count:.4g}",
            "-" if each.class_entropy is None else f"{each.class_entropy:.4f}",
        )
        for each in comparison.coresets
    ]
    header = ("coreset", "scorer", "keep", "scope", "kept", "percent", "class entropy")
    tables.show(f"{comparison.dataset.uri} ({comparison.dataset.split}), {count} samples", header, rows, left=4)


def _show_classes(comparison: Comparison) -> None:
    names = comparison.dataset.class_names
    if not 0 < len(names) <= MOST_CLASSES:
        return
    rows = [(name, *(str(each.class_counts[name]) for each in comparison.coresets)) for name in names]
    typer.echo()
    tables.show("Kept of every class", ("class", *(each.name for each in comparison.coresets)), rows)


def _show_overlap(comparison: Comparison) -> None:
    names = [each.name for each in comparison.coresets]
    if len(names) < 2:
        return
    rows = [
        (name, *(f"{value:.3f} ({chance:.3f})" for value, chance in zip(values, chances, strict=True)))
        for name, values, chances in zip(names, comparison.jaccard, comparison.jaccard_by_chance, strict=True)
    ]
    typer.echo()
    tables.show("Overlap: Jaccard index (of random choices of the same sizes)", ("coreset", *names), rows)


def _show_distances(comparison: Comparison) -> None:
    if comparison.encoder is None:
        return
    rows = []
    shown: set[tuple[int, str]] = set()
    for each in comparison.coresets:
        if each.distances is not None:
            rows.append((each.name, *(tables.number(getattr(each.distances, name)) for name in COLUMNS)))
        budget = (each.num_selected, each.selection.scope)
        if each.random and budget not in shown:
            shown.add(budget)
            baseline = f"random, {each.num_selected}, {each.selection.scope}"
            rows.append((baseline, *(_spread(each.random, name) for name in COLUMNS)))
    looked = "" if comparison.num_queries == comparison.dataset.num_samples else f" of {comparison.num_queries} samples"
    typer.echo()
    tables.show(
        f"Distance to all samples in {comparison.encoder.name} ({comparison.encoder.dim}-d), "
        f"{comparison.num_neighbours} neighbours{looked}; random choice: mean and standard deviation over seeds",
        ("choice", *(name.replace("_", " ") for name in COLUMNS)),
        rows,
    )


def _spread(found: tuple[Distances, ...], name: str) -> str:
    """`mean +- standard deviation`, the latter to the digits of the former; without it for a single seed."""
    values = [getattr(each, name) for each in found]
    mean = statistics.fmean(values)
    if len(values) < 2:
        return tables.number(mean)
    decimals = 3 if mean == 0 else max(0, 3 - math.floor(math.log10(abs(mean))))
    return f"{mean:.{decimals}f} +- {statistics.stdev(values):.{decimals}f}"
