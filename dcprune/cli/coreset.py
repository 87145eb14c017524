"""`dcprune score` and `dcprune select`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from dcprune.cli import console, options

EMBEDDINGS = Path("embeddings.safetensors")
SCORES = Path("scores.safetensors")
Number = TypeVar("Number", int, float)


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
    from dcprune.processes import is_main

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
    if is_main():
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
    ratio: Annotated[
        str | None,
        typer.Option(metavar="R[,R...]", help="Kept fraction, above 0 and at most 1; several make a coreset each."),
    ] = None,
    num: Annotated[
        str | None, typer.Option(metavar="N[,N...]", help="Kept number of samples, instead of --ratio.")
    ] = None,
    scope: Annotated[
        options.Scope, typer.Option(help="The same fraction of every class, or one ranking over everything.")
    ] = options.Scope.CLASS,
    keep: Annotated[
        str | None,
        typer.Option(
            help="Which scores to keep: highest, lowest, median-window, nearest, interval, stratified, order, random.",
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

    Several ratios, --ratio 0.1,0.2,0.4, share one pass and write coreset-0.1.json and so on.
    """
    from dcprune import formats
    from dcprune.api.coresets import select_each
    from dcprune.errors import OptionError
    from dcprune.processes import is_main

    if source is None:
        source = EMBEDDINGS if scorer else SCORES
        if not scorer and not SCORES.exists() and EMBEDDINGS.exists():
            raise OptionError(
                f"There is {EMBEDDINGS} but no {SCORES} here. Pass --scorer NAME, or run `dcprune score` first."
            )
    ratios, nums = _numbers(ratio, float, "--ratio"), _numbers(num, int, "--num")
    outputs = _outputs(output, [*ratios, *nums])
    for path in outputs:
        formats.check_output(path, overwrite)
    coresets = select_each(
        source,
        scorer,
        ratios=ratios,
        nums=nums,
        scope=scope.value,
        keep=keep,
        settings=options.parsed_settings(settings),
        data_dir=data_dir,
        device=device,
        seed=seed,
        progress=console.ConsoleProgress(),
    )
    summaries = []
    for path, coreset in zip(outputs, coresets, strict=True):
        if is_main():
            formats.write_coreset(coreset, path, overwrite=overwrite)
        summaries.append(
            {
                "num_selected": coreset.num_selected,
                "num_samples": coreset.dataset.num_samples,
                "scorer": coreset.selection.scorer,
                "keep": coreset.selection.keep,
                "class_counts": coreset.class_counts,
            }
        )
    if console.settings.json and len(outputs) > 1:
        named = [{"path": str(path), **each} for path, each in zip(outputs, summaries, strict=True)]
        console.emit(None, coresets=named)
        return
    for path, summary in zip(outputs, summaries, strict=True):
        console.emit(path, **summary)


def _numbers(text: str | None, kind: Callable[[str], Number], option: str) -> list[Number]:
    """`0.1,0.2` as numbers.

    Raises:
        OptionError: something that is not a number.
    """
    from dcprune.errors import OptionError

    try:
        return [] if text is None else [kind(part) for part in text.strip("[]() ").split(",")]
    except ValueError as error:
        raise OptionError(f"{option} takes a number, or several with commas between them; {text!r} is not.") from error


def _outputs(output: Path, budgets: Sequence[float]) -> list[Path]:
    """A path for every budget: `output` itself for one, with the budget before its suffix for several.

    Raises:
        OptionError: budgets that would write the same file, or several for stdout.
    """
    from dcprune.errors import OptionError

    if len(budgets) < 2:
        return [output] * max(1, len(budgets))
    if str(output) == "-":
        raise OptionError("Several coresets do not fit on stdout. Give one --ratio or --num, or a file as --output.")
    names = [f"{output.stem}-{budget}{output.suffix}" for budget in budgets]
    if len(set(names)) < len(names):
        raise OptionError(f"The budgets {', '.join(map(str, budgets))} are not distinct.")
    return [output.with_name(name) for name in names]
