"""`dcprune explain`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dcprune.cli import console, options, tables

if TYPE_CHECKING:
    from dcprune.api.explaining import Explanation, Neighbour, SampleExplanation, Standing


def explain(
    samples: Annotated[list[str], typer.Argument(metavar="ID_OR_INDEX...", help="Samples of the dataset.")],
    coreset: Annotated[Path, typer.Option(help="What `dcprune select` wrote.")] = Path("coreset.json"),
    scores: Annotated[
        Path | None, typer.Option(help="What it was selected by.", show_default="those that it was made from")
    ] = None,
    embeddings: Annotated[
        Path | None, typer.Option(help="The space of the neighbours.", show_default="those that it was made from")
    ] = None,
    neighbours: Annotated[int, typer.Option(min=1, help="Kept and dropped neighbours to show.")] = 5,
    data_dir: options.DataDir = None,
    device: options.Device = "auto",
) -> None:
    """Say why samples were kept or dropped: score, rank, what was kept of the class, and the nearest samples.

    dcprune explain cats/0001.png 1234
    """
    from dcprune.api.explaining import explain as api_explain

    found = api_explain(
        samples,
        coreset,
        scores=scores,
        embeddings=embeddings,
        num_neighbours=neighbours,
        data_dir=data_dir,
        device=device,
        progress=console.ConsoleProgress(),
    )
    if console.settings.json:
        document = {
            "dataset": found.dataset.model_dump(mode="json"),
            "selection": found.selection.model_dump(mode="json"),
            "scorer": found.scorer,
            "reproduced": found.reproduced,
            "samples": [asdict(sample) for sample in found.samples],
        }
        typer.echo(json.dumps(document, ensure_ascii=False))
        return
    for position, sample in enumerate(found.samples):
        if position:
            typer.echo()
        _show(sample, found)
    if found.scorer not in (None, found.selection.scorer):
        console.warn(f"The scores are those of {found.scorer!r}, but the coreset was chosen by its own scorer.")
    elif found.reproduced is False:
        console.warn("These scores and the coreset's policy give another coreset, so the reasons may not be its own.")


def _show(sample: SampleExplanation, found: Explanation) -> None:
    named = sample.id if sample.id == str(sample.index) else f"{sample.id} (index {sample.index})"
    typer.echo(f"{named}: {sample.reason}")
    if sample.standing is not None:
        for name, value in _facts(sample.standing, found):
            typer.echo(f"  {name.ljust(14)}  {value}")
    for words, near in (("nearest kept", sample.nearest_kept), ("nearest dropped", sample.nearest_dropped)):
        if near:
            _show_neighbours(words, near)


def _facts(standing: Standing, found: Explanation) -> list[tuple[str, str]]:
    from dcprune.api.explaining import told_apart

    selection, group = found.selection, standing.group
    kept_ends = [end for end in (group.kept_low, group.kept_high) if end is not None]
    score, mean, *words = told_apart([standing.score, group.mean, *group.quantiles.values(), *kept_ends])
    facts = [(f"{found.scorer}", score)]
    ranks = [("rank in class", standing.in_class), ("rank overall", standing.overall)]
    facts += [(name, f"{each.rank} of {each.of}, from the lowest score") for name, each in ranks if each is not None]
    facts.append(("chosen among", f"{group.name}: {group.num_kept} of {group.num_samples} kept by {selection.keep}"))
    if kept_ends:
        between = f"{group.dropped_between} dropped between" if group.dropped_between else "none dropped between"
        facts.append(("kept scores", f"{' to '.join(words[-2:])}, {between}"))
    spread = ", ".join(f"{100 * float(at):g} %: {word}" for at, word in zip(group.quantiles, words, strict=False))
    facts.append(("all scores", f"mean {mean}, std {tables.number(group.std)}; {spread}"))
    return facts


def _show_neighbours(words: str, near: Sequence[Neighbour]) -> None:
    rows = [(f"    {each.id}", each.class_name or "", tables.number(each.distance)) for each in near]
    tables.show(f"  {words}:", ("    id", "class", "distance"), rows, left=2)
