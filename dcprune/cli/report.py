"""`dcprune report`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from dcprune.cli import console, options


class Projection(StrEnum):
    AUTO = "auto"
    PCA = "pca"
    UMAP = "umap"


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Run folders or sweeps; the first is the headline, others stand beside."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The page to write.")] = Path("report.html"),
    coreset: Annotated[Path | None, typer.Option(help="The coreset, where the run's own is not to be found.")] = None,
    class_weights: Annotated[Path | None, typer.Option(help="The class weights, likewise.")] = None,
    scores: Annotated[Path | None, typer.Option(help="The scores, likewise.")] = None,
    embeddings: Annotated[Path | None, typer.Option(help="The embeddings, likewise.")] = None,
    projection: Annotated[
        Projection, typer.Option(help="Map of the embeddings; auto is umap where umap-learn is installed, else pca.")
    ] = Projection.AUTO,
    title: Annotated[str | None, typer.Option(help="Title of the page.")] = None,
    overwrite: options.Overwrite = False,
    data_dir: options.DataDir = None,
) -> None:
    """Make one self-contained HTML page of a chain: data, coreset, weights, runs and metrics."""
    from dcprune import formats
    from dcprune.api.reports import report as api_report

    formats.check_output(output, overwrite)
    path = api_report(
        runs,
        output=output,
        coreset=coreset,
        class_weights=class_weights,
        scores=scores,
        embeddings=embeddings,
        title=title,
        projection=projection.value,
        data_dir=data_dir,
        overwrite=overwrite,
        progress=console.ConsoleProgress(),
    )
    console.emit(path, runs=[str(run) for run in runs])
