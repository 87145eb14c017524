"""`dcprune score` and `dcprune select`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dcprune.cli import console, options

EMBEDDINGS = Path("embeddings.safetensors")
SCORES = Path("scores.safetensors")


def score(
    embeddings: Annotated[Path, typer.Argument(help="What `dcprune embed` wrote.")] = EMBEDDINGS,
    scorer: Annotated[str, typer.Option(help="The criterion.", autocompletion=options.names_of("scorer"))] = "gaussian",
    settings: options.Setting = [],  # noqa: B006 - Typer reads the default, nothing changes it
    ratio: Annotated[
        float, typer.Option(help="Largest fraction that will be kept; greedy scorers order no more than that.")
    ] = 1.0,
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")] = SCORES,
    overwrite: options.Overwrite = False,
    data_dir: options.DataDir = None,
    device: options.Device = "auto",
    seed: options.Seed = 0,
) -> None:
    """Score every sample with one criterion: embeddings.safetensors -> scores.safetensors."""
    from dcprune import formats
    from dcprune.api.coresets import score as api_score

    formats.check_output(output, overwrite)
    scores = api_score(
        embeddings,
        scorer,
        settings=options.parsed_settings(settings),
        ratio=ratio,
        data_dir=data_dir,
        device=device,
        seed=seed,
        progress=console.ConsoleProgress(),
    )
    formats.write_scores(scores, output, overwrite=overwrite)
    console.emit(
        output,
        scorer=scorer,
        num_samples=len(scores.scores),
        keep=scores.keep,
        lowest=float(scores.scores.min()),
        highest=float(scores.scores.max()),
    )


def select(
    source: Annotated[
        Path | None,
        typer.Argument(
            metavar="INPUT",
            help="Embeddings when --scorer is given, scores otherwise.",
            show_default=f"{EMBEDDINGS} or {SCORES}",
        ),
    ] = None,
    scorer: Annotated[
        str | None,
        typer.Option(help="Score embeddings inline.", autocompletion=options.names_of("scorer")),
    ] = None,
    ratio: Annotated[float | None, typer.Option(help="Kept fraction, above 0 and at most 1.")] = None,
    num: Annotated[int | None, typer.Option(help="Kept number of samples, instead of --ratio.")] = None,
    scope: Annotated[
        options.Scope, typer.Option(help="The same fraction of every class, or one ranking over everything.")
    ] = options.Scope.CLASS,
    keep: Annotated[
        str | None,
        typer.Option(
            help="Which scores to keep: highest, lowest, median-window, nearest or random.",
            show_default="the scorer's",
        ),
    ] = None,
    settings: options.Setting = [],  # noqa: B006 - Typer reads the default, nothing changes it
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write; - is stdout.")] = Path(
        "coreset.json"
    ),
    overwrite: options.Overwrite = False,
    data_dir: options.DataDir = None,
    device: options.Device = "auto",
    seed: options.Seed = 0,
) -> None:
    """Choose the samples to keep: embeddings or scores -> coreset.json.

    dcprune select --scorer moderate --ratio 0.2
    """
    from dcprune import formats
    from dcprune.api.coresets import select as api_select
    from dcprune.errors import OptionError

    if source is None:
        source = EMBEDDINGS if scorer else SCORES
        if not scorer and not SCORES.exists() and EMBEDDINGS.exists():
            raise OptionError(
                f"There is {EMBEDDINGS} but no {SCORES} here. Pass --scorer NAME, or run `dcprune score` first."
            )
    formats.check_output(output, overwrite)
    coreset = api_select(
        source,
        scorer,
        ratio=ratio,
        num=num,
        scope=scope.value,
        keep=keep,
        settings=options.parsed_settings(settings),
        data_dir=data_dir,
        device=device,
        seed=seed,
        progress=console.ConsoleProgress(),
    )
    formats.write_coreset(coreset, output, overwrite=overwrite)
    console.emit(
        output,
        num_selected=coreset.num_selected,
        num_samples=coreset.dataset.num_samples,
        scorer=coreset.selection.scorer,
        keep=coreset.selection.keep,
        class_counts=coreset.class_counts,
    )
